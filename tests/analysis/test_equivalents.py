"""What layouts are worth in tokens of their base: the law against scipy's fit, and the table on known losses."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from analysis.data import frame
from analysis.statistics.equivalents import equivalents, fitted, tokens_for
from analysis.statistics.sources import Source
from analysis.tables.equivalents_table import equivalents_table
from analysis.tables.paper import make_tables
from mlkv.evaluate.outcomes import Outcomes
from tests.support.read_back import present

LENGTHS = (100_000.0, 200_000.0, 400_000.0, 800_000.0)
WINDOWS = 50


def loss(tokens: float, floor: float = 1.5, factor: float = 0.4, power: float = 0.5) -> float:
    return floor + factor * (tokens / LENGTHS[-1]) ** -power


class Losses:
    """A long table of bases and layouts, with the bits of every window."""

    def __init__(self, noise: float = 0.0) -> None:
        self.random, self.noise = np.random.default_rng(0), noise
        self.bytes = self.random.integers(80, 120, WINDOWS).astype(float)
        self.spread = self.random.normal(0, 0.1, WINDOWS)
        self.bits: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []

    def outcomes(self, step: str, task: str, metric: str) -> Outcomes:
        return Outcomes(np.arange(WINDOWS), self.bits[step], self.bytes)

    def add(
        self, name: str, value: float, base: float, uptrained: float = 0.0, text: str = "corpus-1", **own: Any
    ) -> None:
        own_noise = self.spread + self.random.normal(0, self.noise, WINDOWS)
        around = own_noise - (own_noise * self.bytes).sum() / self.bytes.sum()
        self.bits[name] = self.bytes * (value + around)
        shared = {
            **{"sweep": "s", "variant": name, "family": "MLKV", "kv_heads": "1", "kv_bytes_per_token": 64},
            **{"parameters": 1000, "model": "tiny", "state": "DONE", "overrides": f"base.steps={base:.0f}", **own},
        }
        score = {"kind": "evaluate", "task": "bits_per_byte", "metric": "bits_per_byte", "in_axis": True}
        self.rows += [
            {**shared, "kind": "corpus", "step": text},
            {**shared, "kind": "base", "metric": "tokens", "value": base, "step": f"base-{base}"},
            {**shared, **score, "value": float(self.bits[name].sum() / self.bytes.sum()), "step": name},
        ]
        if uptrained:
            trained = {"kind": "uptrain", "metric": "tokens", "value": uptrained, "step": f"uptrain-{name}"}
            self.rows.append({**shared, **trained})

    def bases(self, lengths: Iterable[float] = LENGTHS, **own: Any) -> None:
        for tokens in lengths:
            self.add(f"untouched {tokens:.0f} {own}", loss(tokens), tokens, baseline="untouched", **own)

    def source(self) -> Source:
        return Source("x", frame.make(self.rows), samples=self)


def of(table: Any, header: str) -> dict[str, str]:
    place = table.headers.index(header)
    return {row[0].text: row[place].text for row in table.rows}


floors, factors, powers = st.floats(0.5, 3), st.floats(0.05, 3), st.floats(0.1, 1.5)


@settings(max_examples=40)
@given(floors, factors, powers, st.floats(1.05, 20))
def test_a_law_is_found_again_and_turned_round(floor: float, factor: float, power: float, beyond: float) -> None:
    losses = [loss(tokens, floor, factor, power) for tokens in LENGTHS]
    found = fitted(LENGTHS, [losses])
    assert [float(each[0]) for each in found] == pytest.approx([floor, factor, power], rel=0.06, abs=0.06)
    for tokens in (LENGTHS[0], 3e5, LENGTHS[-1]):
        assert tokens_for(loss(tokens, floor, factor, power), *found, LENGTHS[-1])[0] == pytest.approx(tokens, rel=0.01)
    assert math.isinf(tokens_for(floor - 0.2, *found, LENGTHS[-1])[0])
    assert tokens_for(losses[-1], *found, LENGTHS[-1])[0] < tokens_for(losses[-1] - 1e-3, *found, LENGTHS[-1])[0]


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_the_fit_is_scipys(seed: int) -> None:
    random = np.random.default_rng(seed)
    tokens = np.array([1e5, 2e5, 4e5, 8e5, 1.6e6])
    losses = np.array([loss(each) for each in tokens]) + random.normal(0, 0.003, len(tokens))
    law = lambda t, floor, factor, power: floor + factor * (t / tokens[-1]) ** -power  # noqa: E731
    theirs, _ = curve_fit(law, tokens, losses, p0=(1.5, 0.3, 0.5), bounds=([0, 0, 0.01], [9, 9, 4]), max_nfev=10000)
    ours = [float(each[0]) for each in fitted(tokens, [losses])]

    def squares(values: Any) -> float:
        return float(((law(tokens, *values) - losses) ** 2).sum())

    assert squares(ours) == pytest.approx(squares(theirs), rel=0.02, abs=1e-7), "or both go through all lengths"
    assert law(tokens, *ours) == pytest.approx(law(tokens, *theirs), abs=2e-4)


def test_losses_that_do_not_fall_have_no_law() -> None:
    _, factor, _ = fitted(LENGTHS, [[2.0, 2.0, 2.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    assert factor.tolist() == [0.0, 0.0]
    assert np.isinf(tokens_for([1.0, 2.0], [2.0, 2.0], [0.0, 0.0], [1.0, 1.0], 10.0)).all()


def test_the_table_says_what_each_layout_is_worth_and_where_the_law_is_all_there_is() -> None:
    made = Losses()
    made.bases()
    made.add("inside", loss(300_000), 200_000, 50_000)
    made.add("better", loss(1_600_000), 200_000, 50_000, kv_heads="2")
    made.add("worse", loss(50_000), 200_000, 50_000, kv_heads="3")
    made.add("impossible", 1.2, 200_000, 50_000, kv_heads="4")
    made.add("elsewhere", loss(300_000), 200_000, kv_heads="5", model="large")
    table = present(equivalents_table(made.source()))
    assert of(table, "base tokens") == {
        "inside": "300 K",
        "better": "1.6 M ‡",
        "worse": "50 K ‡",
        "impossible": "never",
    }
    assert of(table, "of its own") == {"inside": "1.20×", "better": "6.40× ‡", "worse": "0.20× ‡", "impossible": "–"}
    assert of(table, "base operations")["inside"] == f"{6 * 1000 * 300_000:.2e}"
    notes = "\n".join(table.notes)
    assert "fitted to 4 lengths (100 K 2.631, 200 K 2.300, 400 K 2.066, 800 K 1.900), none of them farther" in notes
    assert "‡: outside of the lengths that were trained" in notes
    assert "never: a loss that the law has at no number of tokens" in notes


def test_with_five_lengths_the_longest_tests_the_law() -> None:
    made = Losses()
    made.bases([*LENGTHS, 1_600_000.0])
    made.add("layout", loss(300_000), 200_000, 50_000)
    law = present(equivalents(made.source())).law
    assert law.foretold == pytest.approx(loss(1_600_000), abs=2e-3)
    assert any("the longest is foretold to +0.00" in note for note in present(equivalents_table(made.source())).notes)


def test_the_interval_holds_the_truth_and_grows_with_noise() -> None:
    widths = []
    for noise in (0.01, 0.05):
        made = Losses(noise)
        made.bases()
        made.add("layout", loss(300_000), 200_000, 50_000)
        [worth] = present(equivalents(made.source())).worths
        low, high = present(worth.interval)
        assert low <= worth.tokens <= high
        assert worth.tokens == pytest.approx(300_000, rel=1e-3)
        widths.append(high / low)
    assert 1 < widths[0] < widths[1]


def test_lengths_of_other_recipes_texts_or_models_are_no_lengths_of_one_base() -> None:
    made = Losses()
    made.bases(LENGTHS[:2])
    made.bases(LENGTHS[2:3], overrides="base.steps=3 base.lr=0.1")
    made.bases(LENGTHS[2:], model="large")
    made.bases(LENGTHS[1:], text="corpus-2")
    made.add("layout", loss(300_000), 200_000, 50_000)
    assert equivalents(made.source()) is None
    with pytest.raises(
        ValueError, match=r"nothing of that kind, planned or finished; it needs four lengths of one base"
    ):
        make_tables(made.source(), ["equivalents"])
