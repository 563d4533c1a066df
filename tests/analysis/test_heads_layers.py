"""Fewer heads with fewer owners: the interaction and the two fits against independent computations."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.figures.drawing import draw
from analysis.figures.heads_layers import heads_layers_figure
from analysis.statistics.heads_layers import fits, overall, singles, together
from analysis.statistics.landscape import landscapes
from analysis.tables.heads_layers_table import heads_layers
from mlkv.groupings import groupings
from tests.support.figures import assert_readable, drawn_points
from tests.support.landscapes import BYTES, Answers, Groups, measured


def of_layers(groups: Groups) -> float:
    return 0.01 * sum((size - 1) * (place + 1) for place, size in enumerate(groups))


OF_HEADS = {1: 0.05, 2: 0.02, 4: 0.0}


def adding(groups: Groups, heads: int) -> float:
    return of_layers(groups) + OF_HEADS[heads]


def multiplying(groups: Groups, heads: int) -> float:
    return (0.01 + of_layers(groups)) * (1 + 40 * OF_HEADS[heads])


def test_costs_that_add_up_have_no_interaction() -> None:
    [landscape] = landscapes(measured(adding, noise=1e-9))
    rows = together(landscape)
    assert [(row.owners, row.heads, row.layouts) for row in rows] == [
        (3, 2, 3),
        (3, 1, 3),
        (2, 2, 3),
        (2, 1, 3),
        (1, 2, 1),
        (1, 1, 1),
    ]
    for row in rows:
        layers = [of_layers(groups) for groups in groupings(4, row.owners)]
        assert row.layers_alone.value == pytest.approx(np.mean(layers), abs=1e-6)
        assert row.heads_alone.value == pytest.approx(OF_HEADS[row.heads], abs=1e-6)
        assert row.both.value == pytest.approx(np.mean(layers) + OF_HEADS[row.heads], abs=1e-6)
        assert row.interaction.value == pytest.approx(0, abs=1e-6)
    shape = fits(landscape)
    assert shape
    assert (shape.groupings, shape.heads) == (7, 2)
    assert shape.sum == pytest.approx(0, abs=1e-6)
    assert shape.nearer.high < 0, "the sum is nearer"


def test_costs_that_multiply_do_not_add_up() -> None:
    [landscape] = landscapes(measured(multiplying, noise=1e-9))
    assert (mean := overall(landscape))
    assert mean.interval
    assert mean.interval[0] > 0
    shape = fits(landscape)
    assert shape
    assert shape.product == pytest.approx(0, abs=1e-6)
    assert shape.nearer.low > 0


def by_least_squares(table: np.ndarray) -> float:
    """What a regression on indicator variables of rows and columns leaves, as a root mean square."""
    rows, columns = table.shape
    i, j = (each.ravel() for each in np.indices(table.shape))
    design = np.concatenate([np.eye(rows)[i], np.eye(columns)[j]], axis=1)
    fitted = design @ np.linalg.lstsq(design, table.ravel(), rcond=None)[0]
    return float(np.sqrt(np.mean((table.ravel() - fitted) ** 2)))


def test_the_fits_and_errors_are_those_of_an_independent_computation() -> None:
    source = measured(multiplying, noise=0.004, seeds=(1, 2, 3))
    [landscape] = landscapes(source)
    assert isinstance(source.samples, Answers)
    parts = source.samples.parts

    def score(groups: Groups, heads: int, seed: int) -> np.ndarray:
        return parts[f"{'+'.join(map(str, groups))} × {heads} uptrain.seed={seed}"] / BYTES

    def mean(groups: Groups, heads: int) -> float:
        return float(np.mean([score(groups, heads, seed).mean() for seed in (1, 2, 3)]))

    whole = (1, 1, 1, 1)
    table = np.array([[mean(g, heads) - mean(whole, 4) for heads in (1, 2)] for g in groupings(4) if g != whole])
    shape = fits(landscape)
    assert shape
    assert shape.sum == pytest.approx(by_least_squares(table))
    logs = np.log(table)
    product = np.exp(logs.mean(1, keepdims=True) + logs.mean(0) - logs.mean())
    assert shape.product == pytest.approx(float(np.sqrt(np.mean((table - product) ** 2))))
    # The mean interaction: as one number per seed of each layout and per window.
    groups = [g for g in groupings(4) if g != whole]
    weights = {(g, heads): 1 / (2 * len(groups)) for g in groups for heads in (1, 2)}
    weights |= {(g, 4): -1 / len(groups) for g in groups} | {(whole, heads): -1 / 2 for heads in (1, 2)}
    weights[whole, 4] = 1.0
    windows = sum(w * np.mean([score(*key, seed) for seed in (1, 2, 3)], axis=0) for key, w in weights.items())
    assert (found := overall(landscape))
    assert found.value == pytest.approx(float(np.mean(windows)))
    spreads = [np.var([score(*key, seed).mean() for seed in (1, 2, 3)], ddof=1) for key in weights]
    of_seeds = sum(w**2 for w in weights.values()) * np.mean(spreads) / 3
    of_windows = np.var(windows, ddof=1) / len(np.atleast_1d(windows))
    assert found.error
    assert of_seeds * 0.9999 <= found.error**2 <= (of_seeds + of_windows) * 1.0001


def test_an_unfinished_sweep_has_the_rows_of_what_is_measured() -> None:
    [landscape] = landscapes(measured(adding, without=lambda groups, heads: heads == 1 or groups == (2, 2)))
    assert [(row.owners, row.heads, row.layouts) for row in together(landscape)] == [(3, 2, 3), (2, 2, 2), (1, 2, 1)]
    assert fits(landscape) is None, "one number of heads has no columns"
    assert heads_layers(measured(adding, without=lambda groups, heads: heads != 4)) is None


def test_the_table_says_what_the_statistics_say() -> None:
    source = measured(multiplying, noise=1e-4)
    table = heads_layers(source)
    assert table
    [landscape] = landscapes(source)
    assert [row[0].text for row in table.rows] == ["3×2", "3×1", "2×2", "2×1", "1×2", "1×1"]
    shown = [row[table.headers.index("together − sum")].number for row in table.rows]
    assert shown == [each.interaction.value for each in together(landscape)]
    assert any("the product is nearer" in note for note in table.notes)
    assert len(singles(landscape)) == 14


def test_the_figure_has_a_point_for_every_layout_that_saves_in_both_ways() -> None:
    source = measured(multiplying, noise=1e-4)
    figure = draw("heads_layers", source)
    assert figure
    assert_readable(figure)
    [landscape] = landscapes(source)
    expected = {(each.predicted.value, each.damage.value) for each in singles(landscape)}
    assert len(expected) == 14
    assert expected <= set(drawn_points(figure))
    assert heads_layers_figure(measured(adding, heads=(1, 2), without=lambda groups, heads: len(groups) < 4)) is None


def test_a_score_that_is_better_when_higher_is_turned() -> None:
    source = measured(adding, noise=1e-9, samples=False)
    table = source.table.assign(task="heldout", metric="acc", value=1 - source.table["value"])
    [turned], [plain] = (landscapes(type(source)("s", each)) for each in (table, source.table))
    assert [row.both.value for row in together(turned)] == pytest.approx([row.both.value for row in together(plain)])
