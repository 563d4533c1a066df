"""Properties that a statistic has if it is right: coverage, pairing, invariance, and the textbook's numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.statistics import bootstrap as statistics
from analysis.statistics import pareto

COSTS = st.integers(1, 6).map(float)
POINTS = st.lists(st.tuples(COSTS, st.floats(-3, 3)), min_size=1, max_size=8)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random, covered = np.random.default_rng(0), 0
    for trial in range(400):
        sample = random.random(120) < 0.3
        low, high = statistics.interval(statistics.bootstrap([sample], np.ones((1, 120)), trial, repetitions=400))
        covered += bool(low[0] <= 0.3 <= high[0])
    assert 0.91 <= covered / 400 <= 0.98


def test_weights_make_a_ratio_of_sums() -> None:
    parts, weights = np.array([[1.0, 4.0, 9.0]]), np.array([[1.0, 2.0, 3.0]])
    draws = statistics.bootstrap(parts, weights, "x")
    assert draws.mean() == pytest.approx(14 / 6, rel=0.05)
    assert set(np.round(draws.ravel(), 9)) <= {round(v, 9) for v in ratios(parts[0], weights[0])}


def ratios(parts: np.ndarray, weights: np.ndarray) -> set[float]:
    picks = [(i, j, k) for i in range(3) for j in range(3) for k in range(3)]
    return {float(parts[list(pick)].sum() / weights[list(pick)].sum()) for pick in picks}


def test_the_bootstrap_has_the_standard_error_of_a_share() -> None:
    sample = (np.arange(500) % 4 == 0).astype(float)
    draws = statistics.bootstrap([sample], np.ones((1, 500)), "share")
    assert draws.std() == pytest.approx(math.sqrt(0.25 * 0.75 / 500), rel=0.06)


def test_pairing_sees_a_difference_that_separate_errors_hide() -> None:
    random = np.random.default_rng(1)
    hard = random.random(300)
    ours, theirs = (hard < 0.50).astype(float), (hard < 0.46).astype(float)  # they fail on the same samples
    paired = statistics.bootstrap([ours, theirs], np.ones((2, 300)), "task")
    apart = [statistics.normal(x.mean(), x.std() / math.sqrt(300), name) for x, name in ((ours, "a"), (theirs, "b"))]
    (p_paired,) = statistics.p_values((paired[:, 0] - paired[:, 1])[:, None])
    (p_apart,) = statistics.p_values((apart[0] - apart[1])[:, None])
    assert p_paired < 0.01
    assert p_apart > 0.2


def test_no_difference_is_found_as_seldom_as_promised() -> None:
    random, found = np.random.default_rng(2), 0
    for trial in range(400):
        samples = random.random((2, 150)) < 0.4
        draws = statistics.bootstrap(samples, np.ones((2, 150)), trial, repetitions=300)
        found += bool(statistics.p_values((draws[:, 0] - draws[:, 1])[:, None])[0] <= 0.05)
    assert 0.02 <= found / 400 <= 0.09


def test_the_same_samples_give_the_same_draws_and_others_do_not() -> None:
    sample = np.arange(50.0)[None]
    first = statistics.bootstrap(sample, np.ones((1, 50)), "task")
    assert (first == statistics.bootstrap(sample, np.ones((1, 50)), "task")).all()
    assert (first != statistics.bootstrap(sample, np.ones((1, 50)), "other")).any()


def test_a_variant_draws_alike_whoever_is_beside_it() -> None:
    samples = np.random.default_rng(3).random((3, 40))
    together = statistics.bootstrap(samples, np.ones((3, 40)), "task")
    alone = statistics.bootstrap(samples[1:2], np.ones((1, 40)), "task")
    assert together[:, 1] == pytest.approx(alone[:, 0])


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        statistics.bootstrap(np.ones((2, 0)), np.ones((2, 0)), "task")


def test_holm_on_the_textbooks_numbers() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.randoms())
def test_holm_never_helps_never_reorders_and_is_at_most_bonferroni(p: list[float], random: object) -> None:
    corrected = statistics.holm(p)
    assert (corrected >= np.array(p) - 1e-15).all()
    assert (corrected <= np.minimum(np.array(p) * len(p), 1) + 1e-12).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(corrected[order]) >= 0).all()


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (200, 1.972)])
def test_students_t_is_that_of_the_tables(freedom: int, quantile: float) -> None:
    assert statistics.t_quantile(freedom) == pytest.approx(quantile, abs=6e-4)


def test_one_repetition_has_no_interval() -> None:
    with pytest.raises(ValueError, match="freedom = 0"):
        statistics.t_quantile(0)


@given(POINTS, st.booleans())
def test_without_noise_the_front_is_the_front(points: list[tuple[float, float]], higher: bool) -> None:
    costs, scores = zip(*points, strict=True)
    found = statistics.front_probabilities(costs, scores, [None] * len(points), higher_is_better=higher)
    assert found == [float(on) for on in pareto.front(costs, scores, higher_is_better=higher)]


@settings(max_examples=30)
@given(POINTS, st.randoms())
def test_the_order_of_points_changes_nothing(points: list[tuple[float, float]], random: object) -> None:
    shuffled = points[::-1]
    found = [
        sorted(zip(ps, statistics.front_probabilities(*zip(*ps, strict=True), [0.5] * len(ps)), strict=True))
        for ps in (points, shuffled)
    ]
    assert [p for _, p in found[0]] == pytest.approx([p for _, p in found[1]])


def test_who_dominates_far_beyond_noise_is_surely_on_the_front_and_a_coin_toss_is_one() -> None:
    found = statistics.front_probabilities([1, 2, 3, 3], [0.9, 0.5, 0.2, 0.3], [0.01] * 4)
    assert found == [1.0, 0.0, 0.0, 0.0]
    tossed = statistics.front_probabilities([1, 2], [0.5, 0.5], [0.01, 0.01])
    assert tossed[0] == 1.0
    assert tossed[1] == pytest.approx(0.5, abs=0.05)


@given(POINTS, st.booleans(), st.tuples(COSTS, st.floats(-3, 3)))
def test_hypervolumes_are_those_of_every_repetition(
    points: list[tuple[float, float]], higher: bool, reference: tuple[float, float]
) -> None:
    costs, scores = zip(*points, strict=True)
    draws = np.array([scores, scores[::-1]])
    found = statistics.hypervolumes(costs, draws, reference, higher_is_better=higher)
    expected = [pareto.hypervolume(costs, row, reference, higher_is_better=higher) for row in draws]
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_same_outcomes_differ_by_nothing() -> None:
    sample = np.random.default_rng(4).random(300)
    draws = statistics.bootstrap(np.stack([sample] * 9), np.ones((9, 300)), "task")
    assert list(statistics.p_values(draws - draws[:, :1])) == [1.0] * 9
