"""Properties that a statistic has if it is right: coverage, pairing, invariance, and the textbook's numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from analysis.statistics import bootstrap as statistics
from analysis.statistics import estimate, pareto
from analysis.statistics.estimate import Estimate, of_samples

COSTS = st.integers(1, 6).map(float)
POINTS = st.lists(st.tuples(COSTS, st.floats(-3, 3)), min_size=1, max_size=8)


def scored(parts: ArrayLike, weights: ArrayLike | None = None, name: str = "task") -> Estimate:
    """The score over samples with these parts."""
    own = np.asarray(parts, float)
    over = np.ones(len(own)) if weights is None else np.asarray(weights, float)
    return of_samples(own.sum() / over.sum(), own, over, name)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random, covered = np.random.default_rng(0), 0
    for trial in range(400):
        sample = scored(random.random(120) < 0.3, name=str(trial))
        low, high = statistics.interval(statistics.draws([sample], repetitions=400))
        covered += bool(low[0] <= 0.3 <= high[0])
    assert 0.91 <= covered / 400 <= 0.98


def test_weights_make_a_ratio_of_sums() -> None:
    random = np.random.default_rng(1)
    weights = random.uniform(1, 9, 300)
    parts = weights * random.uniform(1, 2, 300)
    picks = random.integers(0, 300, (4000, 300))
    expected = parts[picks].sum(1) / weights[picks].sum(1)  # every sample drawn anew, by brute force
    draws = statistics.draws([scored(parts, weights)])
    assert draws.mean() == pytest.approx(parts.sum() / weights.sum(), rel=1e-3)
    assert draws.std() == pytest.approx(expected.std(), rel=0.06)


def test_the_bootstrap_has_the_standard_error_of_a_share() -> None:
    draws = statistics.draws([scored(np.arange(500) % 4 == 0)])
    assert draws.std() == pytest.approx(math.sqrt(0.25 * 0.75 / 500), rel=0.06)


def test_the_same_samples_give_the_same_draws_and_others_do_not() -> None:
    sample = np.arange(50.0)
    first = statistics.draws([scored(sample)])
    assert (first == statistics.draws([scored(sample)])).all()
    assert (first != statistics.draws([scored(sample, name="other")])).any()


def test_a_variant_draws_alike_whoever_is_beside_it() -> None:
    samples = [scored(row) for row in np.random.default_rng(3).random((3, 40))]
    together, alone = statistics.draws(samples), statistics.draws(samples[1:2])
    assert together[:, 1] == pytest.approx(alone[:, 0])


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        statistics.resampled(np.ones((2, 0)), "task")


def test_holm_on_the_textbooks_numbers() -> None:
    assert estimate.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert estimate.holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_never_helps_never_reorders_and_is_at_most_bonferroni(p: list[float]) -> None:
    corrected = estimate.holm(p)
    assert (corrected >= np.array(p) - 1e-15).all()
    assert (corrected <= np.minimum(np.array(p) * len(p), 1) + 1e-12).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(corrected[order]) >= 0).all()


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (200, 1.972)])
def test_students_t_is_that_of_the_tables(freedom: int, quantile: float) -> None:
    assert estimate.t_quantile(freedom) == pytest.approx(quantile, abs=6e-4)


def test_one_repetition_has_no_interval() -> None:
    with pytest.raises(ValueError, match="freedom = 0"):
        estimate.t_quantile(0)


def exact(values: Iterable[float]) -> list[Estimate]:
    return [Estimate(value, 0.0) for value in values]


def chances(costs: Sequence[float], scores: Sequence[float], error: float, **better: bool) -> list[float]:
    return statistics.front_probabilities(exact(costs), [Estimate(score, error) for score in scores], **better)


@given(POINTS, st.booleans())
def test_without_noise_the_front_is_the_front(points: list[tuple[float, float]], higher: bool) -> None:
    costs, scores = zip(*points, strict=True)
    found = chances(costs, scores, 0.0, higher_is_better=higher)
    assert found == [float(on) for on in pareto.front(costs, scores, higher_is_better=higher)]


@settings(max_examples=30)
@given(POINTS, st.sampled_from([math.inf, 1.0, 2.0]), st.data())
def test_the_order_of_points_changes_nothing(points: list[tuple[float, float]], freedom: float, data: Any) -> None:
    order = data.draw(st.permutations(range(len(points))))

    def found(each: Sequence[tuple[float, float]]) -> list[float]:
        return statistics.front_probabilities(
            exact(cost for cost, _ in each), [Estimate(score, 0.5, freedom) for _, score in each]
        )

    first = found(points)
    assert found([points[i] for i in order]) == [first[i] for i in order]


def test_who_dominates_far_beyond_noise_is_surely_on_the_front_and_a_coin_toss_is_one() -> None:
    assert chances([1, 2, 3, 3], [0.9, 0.5, 0.2, 0.3], 0.01) == [1.0, 0.0, 0.0, 0.0]
    tossed = chances([1, 2], [0.5, 0.5], 0.01)
    assert tossed[0] == 1.0
    assert tossed[1] == pytest.approx(0.5, abs=0.05)


def test_chances_are_the_integral_over_all_that_could_be() -> None:
    """Of independent errors: that a row beats all that are as cheap, by quadrature of Student's t."""
    from scipy.stats import t

    scores = [(0.50, 0.02, 2), (0.51, 0.01, 4), (0.53, 0.03, 1)]
    grid = np.linspace(-3, 4, 200_001)
    expected = []
    for i, (mean, error, freedom) in enumerate(scores):
        inside = t.pdf(grid, freedom, mean, error)
        for other, spread, degrees in scores[:i]:
            inside = inside * t.cdf(grid, degrees, other, spread)
        expected.append(np.trapezoid(inside, grid))
    found = statistics.front_probabilities(exact([1, 2, 3]), [Estimate(*score) for score in scores])
    assert found == pytest.approx(expected, abs=0.06)


def test_costs_that_are_measured_are_drawn_too() -> None:
    scores = [Estimate(0.50, 0.001), Estimate(0.60, 0.001)]
    sure = statistics.front_probabilities(exact([1.0, 1.1]), scores)
    close = statistics.front_probabilities([Estimate(1.0, 0.5), Estimate(1.1, 0.5)], scores)
    assert sure == [1.0, 1.0]
    assert close[1] == 1.0  # better, whatever its cost
    assert close[0] == pytest.approx(0.556, abs=0.05)  # on the front where it is cheaper: Φ(0.1 / √0.5)


@given(st.lists(st.tuples(COSTS, st.integers(0, 3).map(float)), min_size=1, max_size=8))
def test_drawn_costs_make_the_front_of_every_repetition(points: list[tuple[float, float]]) -> None:
    costs, scores = np.array(points).T
    found = statistics.on_front(np.stack([costs, costs[::-1]]), np.stack([scores, scores]))
    expected = [pareto.front(list(own), list(scores)) for own in (costs, costs[::-1])]
    assert found.tolist() == expected


@given(POINTS, st.booleans(), st.tuples(COSTS, st.floats(-3, 3)))
def test_hypervolumes_are_those_of_every_repetition(
    points: list[tuple[float, float]], higher: bool, reference: tuple[float, float]
) -> None:
    costs, scores = zip(*points, strict=True)
    draws = np.array([scores, scores[::-1]])
    found = statistics.hypervolumes(costs, draws, reference, higher_is_better=higher)
    expected = [pareto.hypervolume(costs, row, reference, higher_is_better=higher) for row in draws]
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_same_outcomes_are_drawn_alike_to_the_last_digit() -> None:
    sample = np.random.default_rng(4).random(300)
    draws = statistics.draws([scored(sample)] * 9)
    assert (draws == draws[:, :1]).all()
