"""Rules scored against measured layouts: regret, what chance gives, and rank correlations against scipy's."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.data import reference
from analysis.data.pairs import PairMatrix
from analysis.figures import rules as drawn_rules
from analysis.figures.drawing import draw
from analysis.figures.rules import rules_figure
from analysis.statistics.landscape import Landscape, landscapes
from analysis.statistics.pair_matrices import matrices
from analysis.statistics.rules import (
    PLACED,
    RANDOM,
    Rule,
    Scored,
    byte_cells,
    floor,
    kendall,
    place_cells,
    rules_of,
    scored,
    spearman,
)
from analysis.statistics.sources import Source, published_source
from analysis.tables.rules_table import rules_table
from mlkv.groupings import groupings
from mlkv.rules import cost_of
from mlkv.similarity.results import DISTANCE, Similarity
from tests.support.figures import assert_readable, drawn_points
from tests.support.landscapes import Groups, measured

PAIRS = [[abs(i - j) * (1 + i) + 0.1 * j for j in range(5)] for i in range(5)]
"""What it costs that layer j reads layer i."""


def true_cost(groups: Groups, heads: int) -> float:
    return 0.01 * cost_of(groups, PAIRS) + 0.02 * (4 // heads - 1)


def of_rules(landscape: Landscape, rules: list[Rule], *, by_bytes: bool = False) -> dict[str, Scored]:
    return {each.rule: each for each in scored(landscape, rules) if each.by_bytes == by_bytes}


@pytest.fixture(scope="module")
def landscape() -> Landscape:
    [found] = landscapes(
        measured(true_cost, layers=5, noise=1e-7, converted=lambda groups, heads: true_cost(groups, heads) ** 2)
    )
    return found


def test_a_cell_is_every_grouping_with_as_many_owners_and_heads(landscape: Landscape) -> None:
    found = {cell.place: cell for cell in place_cells(landscape)}
    assert set(found) == {(owners, heads) for owners in (2, 3, 4) for heads in (1, 2, 4)}
    for place, cell in found.items():
        assert place
        assert {point.groups for point in cell.points} == set(groupings(5, place[0]))
        assert cell.possible == len(cell.points)


def test_chance_is_the_mean_of_all_and_a_pattern_its_own_layout(landscape: Landscape) -> None:
    found = of_rules(landscape, rules_of(landscape))
    scores = {cell.place: {point.groups: point.score.value for point in cell.points} for cell in place_cells(landscape)}
    chance = fmean(fmean(each.values()) - min(each.values()) for each in scores.values())
    assert found[RANDOM].regret.value == pytest.approx(chance)
    assert (share := found[RANDOM].of_random)
    assert share.value == pytest.approx(1)
    assert (found[RANDOM].tau, found[RANDOM].best) == (None, None)
    ends = {2: None, 3: (1, 3, 1), 4: (1, 1, 2, 1)}
    own = [(cell[groups], min(cell.values())) for place, cell in scores.items() if place and (groups := ends[place[0]])]
    assert found["keep_ends"].cells == len(own) == 6
    assert found["keep_ends"].regret.value == pytest.approx(fmean(pick - low for pick, low in own))
    assert set(found) == {*PLACED, RANDOM, "score before training"}


def test_a_rule_with_the_true_cost_has_no_regret_and_the_opposite_one_has_most(landscape: Landscape) -> None:
    alike = [[-value for value in row] for row in PAIRS]
    matrices = [PairMatrix("damage", PAIRS, is_cost=True), PairMatrix("cka", alike, higher_is_alike=True)]
    found = of_rules(landscape, rules_of(landscape, matrices))
    for name in ("cheapest in all: damage", "similar in all: cka", "score before training"):
        assert found[name].regret.value == pytest.approx(0, abs=1e-6)
        assert found[name].best == found[name].cells == 9
        assert (tau := found[name].tau)
        assert (rho := found[name].rho)
        assert tau.value == pytest.approx(1)
        assert rho.value == pytest.approx(1)
    assert (opposite := found["dissimilar first: cka"].tau)
    assert opposite.value == pytest.approx(-1)
    assert "dissimilar first: damage" not in found, "nobody shares what costs most"
    assert found["dissimilar first: cka"].regret.value > found[RANDOM].regret.value
    ranked = scored(landscape, rules_of(landscape, matrices))
    order = [(each.by_bytes, each.of_random.value) for each in ranked if each.of_random]
    assert order == sorted(order)


def test_at_equal_bytes_other_owners_and_heads_count_too(landscape: Landscape) -> None:
    found = of_rules(landscape, rules_of(landscape))
    best: dict[int, float] = {}
    for point in landscape.points:
        best[point.budget] = min(best.get(point.budget, np.inf), point.score.value)
    chance = [fmean(p.score.value for p in cell.points) - best[cell.budget] for cell in place_cells(landscape)]
    assert found[RANDOM].at_bytes.value == pytest.approx(fmean(chance))
    assert found[RANDOM].at_bytes.value > found[RANDOM].regret.value


def test_in_cells_of_equal_bytes_every_layout_counts_and_numbers_choose() -> None:
    """Untrained scores of opposite order are wrong about every pair; costs by pairs hold for any sources."""
    source = measured(true_cost, layers=5, noise=1e-7, converted=lambda groups, heads: -true_cost(groups, heads))
    [landscape] = landscapes(source)
    by_budget: dict[int, list[float]] = defaultdict(list)
    for point in landscape.points:
        by_budget[point.budget].append(point.score.value)
    cells = byte_cells(landscape)
    assert [cell.budget for cell in cells] == [2, 4, 8], "the others have two layouts or one shape"
    found = of_rules(landscape, rules_of(landscape, [PairMatrix("damage", PAIRS, is_cost=True)]), by_bytes=True)
    assert set(found) == {RANDOM, "score before training", "cheapest in all: damage"}
    own = [by_budget[cell.budget] for cell in cells]
    assert found[RANDOM].regret.value == pytest.approx(fmean(fmean(each) - min(each) for each in own))
    worst = found["score before training"]
    assert worst.regret.value == pytest.approx(fmean(max(each) - min(each) for each in own))
    assert worst.regret == worst.at_bytes
    assert (rho := worst.rho)
    assert rho.value == pytest.approx(-1)


def test_drawn_layouts_are_compared_at_equal_bytes() -> None:
    """Their heads are unequal and their sources no neighbours, so that no two have their owners and heads in common."""
    table = rules_table(published_source("drawn_layouts_recall"))
    assert table
    rows = {(row[0].text, row[1].text): row for row in table.rows}
    assert set(rows) == {("score before training", "bytes"), (RANDOM, "bytes")}
    lines: dict[str, list[float]] = defaultdict(list)
    layouts: dict[int, list[float]] = defaultdict(list)
    for line in reference.read("layout_scores"):
        if line["set"] == "drawn_layouts_recall" and line["baseline"] != "untouched":
            lines[f"{line['kv_bytes_per_token']} {line['sources']} {line['kv_heads']}"].append(
                float(line["bits_per_byte"])
            )
    for name, scores in lines.items():
        layouts[int(name.split()[0])].append(fmean(scores))
    chance = fmean(fmean(each) - min(each) for each in layouts.values() if len(each) > 2)
    assert rows[RANDOM, "bytes"][3].number == pytest.approx(chance, abs=1e-6)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1)), min_size=3, max_size=9))
def test_correlations_are_scipys(pairs: list[tuple[int, float]]) -> None:
    numbers, scores = (np.array(each, float) for each in zip(*pairs, strict=True))
    for ours, theirs in ((kendall, stats.kendalltau), (spearman, stats.spearmanr)):
        if len(set(numbers)) > 1 and len(set(scores)) > 1:
            assert ours(numbers, scores[None])[0] == pytest.approx(theirs(numbers, scores).statistic)


def test_intervals_hold_the_value_and_noise_has_a_floor() -> None:
    noisy, calm = (landscapes(measured(true_cost, layers=5, noise=noise))[0] for noise in (0.02, 1e-7))
    noise, none = (floor(each, place_cells(each)) for each in (noisy, calm))
    assert noise > 0.002 > 1e-6 > none
    matrix = [PairMatrix("damage", PAIRS, is_cost=True)]
    assert floor(noisy, byte_cells(noisy)) > 0.002
    for each in scored(noisy, rules_of(noisy, matrix)):
        assert each.regret.low <= each.regret.high
        if each.tau:
            assert -1 <= each.tau.value <= 1
    perfect = of_rules(noisy, rules_of(noisy, matrix))["cheapest in all: damage"]
    assert perfect.regret.value < 4 * noise


def test_half_a_table_scores_the_picks_that_are_measured() -> None:
    [landscape] = landscapes(measured(true_cost, layers=5, without=lambda groups, heads: groups[0] == 2 or heads == 1))
    found = of_rules(landscape, rules_of(landscape))
    assert {cell.possible for cell in place_cells(landscape)} == {4, 6}
    assert found["even"].cells < found[RANDOM].cells
    assert "score before training" not in found
    assert rules_table(measured(true_cost, without=lambda groups, heads: len(set(groups)) > 1)) is None


def test_what_a_similarity_step_found_is_read_the_right_way_round(landscape: Landscape) -> None:
    """There the row of the damage reads the column; of an asymmetric one only one way round is the true cost."""
    excess = 50 * np.array(PAIRS).T[None]
    apart = np.array([[0.0 if i == j else PAIRS[min(i, j)][max(i, j)] for j in range(5)] for i in range(5)])
    ones = np.ones(5, np.int64)
    measures = {DISTANCE: apart, "cka_keys": 1 - apart / 100}
    similarity = Similarity(measures, {}, ones, ones, excess, np.array([50.0]), np.array([200.0]))
    found = of_rules(landscape, rules_of(landscape, matrices(similarity)))
    for name in (
        "cheapest in all: damage of reading",
        "similar in all: distance of mean caches",
        "similar in all: CKA of keys",
    ):
        assert found[name].best == found[name].cells == 9, name
    assert {name for name in found if name.startswith("dissimilar")} == {
        "dissimilar first: distance of mean caches",
        "dissimilar first: CKA of keys",
    }


def test_another_recipe_is_a_rule_where_it_has_the_layouts() -> None:
    truth, proxy = (measured(cost, layers=5, noise=1e-7) for cost in (true_cost, lambda g, h: -true_cost(g, h)))
    others = proxy.table.assign(overrides=proxy.table["overrides"] + " elastic=nested")
    for column in ("variant", "replicate_of", "mha", "step"):
        others[column] = others[column] + " elastic=nested"
    both = Source("s", pd.concat([truth.table, others], ignore_index=True))
    plain, elastic = landscapes(both)
    assert (plain.title, elastic.title) == ("", "elastic=nested")
    rule = of_rules(plain, rules_of(plain, others=[plain, elastic]))["best by elastic=nested"]
    assert (rule.cells, rule.best) == (9, 0)
    assert (tau := rule.tau)
    assert tau.value == pytest.approx(-1)
    table = rules_table(both)
    assert table
    assert "best by the plain recipe" in {row[0].text for row in table.rows}


def test_the_figure_shows_what_the_table_says() -> None:
    source = measured(true_cost, layers=5, noise=1e-3)
    figure = rules_figure(source)
    assert figure
    [landscape] = landscapes(source)
    expected = [each for each in of_rules(landscape, rules_of(landscape)).values() if each.rule != RANDOM]
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [each.rule for each in expected]
    places = [(each.of_random.value, float(row)) for row, each in enumerate(expected) if each.of_random]
    assert set(places) <= set(drawn_points(figure))


def test_the_figure_is_readable_where_names_of_rules_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    title = "CKA of keys before rotation"
    monkeypatch.setattr(drawn_rules, "matrices_of", lambda *_: [PairMatrix(title, PAIRS, higher_is_alike=True)])
    figure = draw("rules", measured(true_cost, layers=5, noise=1e-3))
    assert figure
    assert f"dissimilar first: {title}" in {label.get_text() for label in figure.axes[0].get_yticklabels()}
    assert_readable(figure)


def test_the_figure_of_drawn_layouts_says_that_their_bytes_are_equal() -> None:
    figure = rules_figure(published_source("drawn_layouts_recall"))
    assert figure
    assert "the best measured layout of as many bytes" in " ".join(text.get_text() for text in figure.texts)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["score before training"]


def test_the_table_names_what_was_measured() -> None:
    source = measured(true_cost, layers=5, noise=1e-3, without=lambda groups, heads: groups == (2, 3))
    table = rules_table(source)
    assert table
    assert {row[1].text for row in table.rows} == {"owners × heads"}, "patterns say nothing of heads"
    assert {row[0].text: row[4].number for row in table.rows}[RANDOM] == pytest.approx(1)
    assert any(
        "9 cells of owners × heads with 39 layouts of 42 measured, several seeds" in note for note in table.notes
    )
