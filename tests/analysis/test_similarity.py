"""What is read of similarities: correlations, shares of variance, the table and the figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from analysis.data.similarity import BaseSimilarity, table_of
from analysis.figures import similarity as figure
from analysis.figures.drawing import draw
from analysis.figures.similarity import cell_text, panels_of
from analysis.statistics.similarity import Agreement, agreement, agreement_of_sources, readers, spearman
from analysis.statistics.sources import Source, published_source
from analysis.tables import similarity_table
from mlkv.similarity.results import ATTENTION, DISTANCE, MEASURES, Floats, Similarity, pairs_below
from tests.support.figures import assert_readable
from tests.support.read_back import present

WINDOWS = 20


def made(
    layers: int,
    damage: Floats | None = None,
    noise: float = 0.001,
    names: Sequence[str] = MEASURES,
    **own: Floats,
) -> Similarity:
    """Symmetric measures at random, unless they are given; every window has nearly the same damage."""
    random = np.random.default_rng(layers)
    measures = {}
    for name in names:
        values = random.uniform(0, 1, (layers, layers))
        measures[name] = own.get(name, (values + values.T) / 2)
    excess, tokens = np.zeros((0, layers, layers)), np.zeros(0)
    if damage is not None:
        tokens = np.full(WINDOWS, 50.0)
        excess = 50 * (damage + noise * random.normal(size=(WINDOWS, layers, layers)) * ~np.eye(layers, dtype=bool))
    heads = {name: values for name, values in measures.items() if name != DISTANCE}
    ones = np.ones(layers, np.int64)
    return Similarity(measures, heads, ones, ones, excess, tokens, 4 * tokens)


def far(layers: int) -> Floats:
    """How many layers two are apart."""
    return np.abs(np.subtract.outer(np.arange(layers), np.arange(layers))).astype(float)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12))
def test_spearman_is_scipys(pairs: list[tuple[int, int]]) -> None:
    one, other = np.array(pairs, float).T
    found = spearman(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(one, other).statistic)


def test_unlikeness_counts_the_same_for_every_measure() -> None:
    """Layers further apart are less alike, and share at more damage: by similarities and by distances alike."""
    damage = far(12) / 10
    found = made(12, damage, cka_keys=1 - far(12) / 20, attention_divergence=far(12) / 20, distance=20 - far(12))
    for correlate in (agreement, agreement_of_sources):
        for name, sign in (("cka_keys", 1), (ATTENTION, 1), (DISTANCE, -1)):
            rho = present(correlate(found, name))
            assert rho.value == pytest.approx(sign, abs=0.02)
            assert present(rho.low) <= rho.value + 1e-9
            assert present(rho.high) - present(rho.low) < 0.2
        by_chance = present(correlate(found, "cosine_values"))
        assert present(by_chance.low) < 0 < present(by_chance.high)
        assert correlate(found, "cosine_values") == by_chance, "the same in every process"


def test_without_damage_or_with_few_layers_there_is_no_correlation() -> None:
    assert agreement(made(6), "cka_keys") is None
    assert readers(made(6)) is None
    for layers in (1, 2):
        found = made(layers, far(layers))
        assert agreement(found, "cka_keys") is None
        assert agreement_of_sources(found, "cka_keys") is None
        assert readers(found) is None
    assert isinstance(agreement(made(3, far(3)), "cka_keys"), Agreement)


@pytest.mark.parametrize("of_reader", [0.0, 0.3, 1.0])
def test_shares_of_the_damage_are_those_of_a_model_of_two_effects(of_reader: float) -> None:
    effects = np.arange(7.0)
    damage = of_reader * effects[:, None] + (1 - of_reader) * effects[None]
    shares = present(readers(made(7, damage, noise=0)))
    whole = of_reader**2 + (1 - of_reader) ** 2
    if of_reader in (0, 1):
        assert min(shares.reader, shares.source) == pytest.approx(0, abs=1e-9)
        assert max(shares.reader, shares.source) > 0.9
    else:
        assert shares.reader / (shares.reader + shares.source) == pytest.approx(of_reader**2 / whole)


def shown(monkeypatch: pytest.MonkeyPatch, *found: Similarity) -> Source:
    """A source whose bases have these similarities."""
    bases = [BaseSimilarity(f"base {i}", f"similarity-{i}", each) for i, each in enumerate(found)]
    for module in (figure, similarity_table):
        monkeypatch.setattr(module, "similarities", lambda source: bases)
    return published_source("mlkv")


@pytest.mark.parametrize("layers", [2, 12, 40])
def test_the_figure_is_readable_at_every_depth(monkeypatch: pytest.MonkeyPatch, layers: int) -> None:
    names = ("cka_keys", "cosine_values") if layers > 2 else MEASURES
    source = shown(monkeypatch, made(layers, -far(layers) / 7, names=names))
    drawn = present(draw("similarity", source))
    assert_readable(drawn)
    panels = [axes for axes in drawn.axes if axes.get_title()]
    assert len(panels) == len(names) + 1
    written = layers * (layers - 1) if layers <= 12 else 0
    assert all(len(axes.texts) == written for axes in panels)


def test_two_bases_are_drawn_and_more_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    some = ("cka_keys", ATTENTION)
    source = shown(monkeypatch, made(3, far(3), names=some), made(4, names=some), made(5, names=some))
    drawn = present(draw("similarity", source))
    assert_readable(drawn)
    assert "2 of 3 bases" in drawn.get_supxlabel()
    table = present(similarity_table.similarity(source, None))
    assert len(table.rows) == sum(len(pairs_below(layers)) for layers in (3, 4, 5))
    assert "base 1: without damage (similarity.damage=false)" in table.notes
    assert table.headers[:4] == ["layers", "base", "damage", "from above"]


def test_without_a_similarity_step_there_is_nothing() -> None:
    assert draw("similarity", published_source("mlkv")) is None
    assert similarity_table.similarity(published_source("mlkv"), None) is None


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.874, 2, ".87"), (-0.06, 2, "-.06"), (1, 2, "1.00"), (-0.001, 2, ".00"), (2.71, 1, "2.7")],
)
def test_cells_are_written_short(value: float, digits: int, text: str) -> None:
    assert cell_text(value, digits) == text


def test_a_measure_has_one_scale_for_keys_and_values() -> None:
    panels = {panel.title: panel for panel in panels_of(BaseSimilarity("x", "y", made(5, far(5))))}
    assert panels["CKA of keys"].low == panels["CKA of values"].low
    assert panels["cosine of keys"].high == -panels["cosine of values"].low
    assert panels["damage (nats per token)"].high == pytest.approx(4, abs=0.01)


def test_what_is_saved_is_read_again_and_is_one_long_table(tmp_path: Path) -> None:
    found = made(3, far(3))
    found.save(tmp_path)
    again = Similarity.load(tmp_path)
    for name in MEASURES:
        np.testing.assert_array_equal(again.layers[name], found.layers[name])
    np.testing.assert_array_equal(again.excess, found.excess)
    table = table_of([BaseSimilarity("x", "y", again)])
    assert len(table) == 9 * (len(MEASURES) + 1) + 9 * (len(MEASURES) - 1)
    row = table[(table["measure"] == "damage") & (table["layer"] == 2) & (table["other_layer"] == 0)].iloc[0]
    assert row["value"] == pytest.approx(2, abs=0.01)
    assert row["stderr"] > 0
    assert table_of([]).empty
