"""Errors and differences by formula: against scipy, against brute force, and by how often they are right."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from analysis.statistics.estimate import (
    ALPHA,
    REPETITIONS,
    Estimate,
    average,
    difference,
    of_samples,
    of_seeds,
    p_text,
    t_quantile,
    t_test,
)
from tests.support.read_back import present

Floats = NDArray[np.float64]
TRIALS = 2000


def seeds(values: Floats) -> Estimate:
    """The mean of runs of which only the scores are known."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return of_seeds(float(values.mean()), error, [Estimate(float(value)) for value in values])


def scored(answers: Floats, name: str = "task") -> Estimate:
    return of_samples(float(answers.mean()), answers, np.ones(len(answers)), name)


def sampled_seeds(answers_SN: Floats, name: str = "task") -> Estimate:
    """The mean of runs that were scored on the same samples."""
    error = float(answers_SN.mean(1).std(ddof=1)) / math.sqrt(len(answers_SN))
    return of_seeds(float(answers_SN.mean()), error, [scored(answers, name) for answers in answers_SN])


SCORES = st.lists(st.floats(-10, 10), min_size=2, max_size=6).map(np.array)


@given(SCORES, SCORES)
def test_seeds_are_compared_as_scipy_compares_them(ours: Floats, theirs: Floats) -> None:
    assume(min(ours.std(ddof=1), theirs.std(ddof=1)) > 1e-6)
    found, expected = difference(seeds(ours), seeds(theirs)), stats.ttest_ind(ours, theirs, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert found.freedom == pytest.approx(expected.df, rel=1e-6)
    low, high = expected.confidence_interval(0.95)
    assert found.interval == pytest.approx((low, high), rel=1e-6, abs=1e-9)


@given(st.integers(2, 40), st.integers(0, 2**32 - 1), st.floats(-1, 1))
def test_runs_over_the_same_samples_are_compared_pair_by_pair(n: int, seed: int, shift: float) -> None:
    random = np.random.default_rng(seed)
    theirs = random.normal(size=n)
    ours = theirs + shift + 0.1 * random.normal(size=n)
    found, expected = difference(scored(ours), scored(theirs)), stats.ttest_rel(ours, theirs)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert found.freedom == pytest.approx(expected.df)


def test_six_combined_errors_of_five_seeds_are_four_in_a_thousand() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    ours = seeds(values)
    assert ours.error is not None
    found = difference(ours, Estimate(3.0 - 6 * ours.error))  # of the other one no error is known
    assert found.p == pytest.approx(2 * stats.t.sf(6, 4)) == pytest.approx(0.0039, abs=5e-5)


@pytest.mark.parametrize("n", [4, 5])
def test_p_is_near_that_of_all_permutations(n: int) -> None:
    """Brute force over every way to deal the scores out, which assumes no distribution."""
    random, apart = np.random.default_rng(n), []
    for _ in range(60):
        ours, theirs = random.normal(0.5, 1, n), random.normal(0, 1, n)
        together = np.concatenate([ours, theirs])
        deals = [np.isin(range(2 * n), deal) for deal in itertools.combinations(range(2 * n), n)]
        others = np.array([abs(together[deal].mean() - together[~deal].mean()) for deal in deals])
        permuted = (others >= abs(ours.mean() - theirs.mean()) - 1e-12).mean()
        apart.append((difference(seeds(ours), seeds(theirs)).p or 0.0) - permuted)
    assert np.median(np.abs(apart)) < 0.03
    assert abs(np.mean(apart)) < 0.03


def rejections(draw: Callable[[np.random.Generator], tuple[Estimate, Estimate]], trials: int = TRIALS) -> float:
    random = np.random.default_rng(0)
    return sum((difference(*draw(random)).p or 0.0) <= ALPHA for _ in range(trials)) / trials


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 3), (5, 5), (4, 2), (3, 10)])
@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_size_and_power_over_seeds_are_those_of_welch(n: int, m: int, ratio: float) -> None:
    found = []
    for effect in (0.0, 4.0):
        random = np.random.default_rng(0)
        drawn = [(random.normal(effect, ratio, n), random.normal(0, 1, m)) for _ in range(TRIALS)]
        ours = np.array([difference(seeds(a), seeds(b)).p for a, b in drawn], float) <= ALPHA
        first, second = (np.array(each) for each in zip(*drawn, strict=True))
        theirs = stats.ttest_ind(first, second, axis=1, equal_var=False).pvalue <= ALPHA
        assert (ours == theirs).all()
        found.append(ours.mean())
    assert found[0] <= 0.09
    assert found[1] > 1.5 * found[0]


@pytest.mark.parametrize(
    ("training", "layout", "answers"),
    [(1.0, 0.0, 0.1), (0.0, 0.0, 10.0), (0.7, 0.0, 7.0), (0.0, 10.0, 0.1), (0.6, 6.0, 6.0)],
    ids=["training", "answers", "both", "layouts", "all"],
)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_seeds_on_the_same_samples_have_the_promised_size(
    n: int, training: float, layout: float, answers: float
) -> None:
    """Scores vary with the training, with what a layout finds hard, and from answer to answer: no difference between
    layouts is found oftener than in 5 % of cases, whichever of them it is, and a large one is found."""
    samples = 100

    def runs(random: np.random.Generator, effect: float) -> Floats:
        own = training * random.standard_normal((n, 1)) + layout * random.standard_normal((1, samples))
        return np.asarray(effect + own + answers * random.standard_normal((n, samples)))

    def drawn(effect: float) -> Callable[[np.random.Generator], tuple[Estimate, Estimate]]:
        return lambda random: (sampled_seeds(runs(random, effect)), sampled_seeds(runs(random, 0.0)))

    assert rejections(drawn(0.0), 600) <= 0.085
    assert rejections(drawn(60.0), 40) >= 0.9


def test_between_seed_spread_is_never_ignored() -> None:
    """The same few samples right in every run of a layout: pairing alone would be certain."""
    answers = np.zeros((3, 400))
    ours = answers + np.array([[0.2], [0.5], [0.8]])
    found = difference(sampled_seeds(ours), sampled_seeds(answers))
    welch = stats.ttest_ind(ours.mean(1), answers.mean(1), equal_var=False)
    assert found.p == pytest.approx(welch.pvalue)


def test_runs_that_differ_in_single_answers_count_them_once() -> None:
    random = np.random.default_rng(5)
    ours, theirs = (random.standard_normal((5, 400)) for _ in range(2))
    found = difference(sampled_seeds(ours), sampled_seeds(theirs))
    assert found.error == pytest.approx(math.sqrt(2 / 5 / 400), rel=0.35)
    apart = difference(seeds(ours.mean(1)), seeds(theirs.mean(1)))
    assert present(found.error) >= present(apart.error)


def test_pairing_sees_a_difference_that_separate_errors_hide() -> None:
    hard = np.random.default_rng(1).random(300)
    ours, theirs = (hard < 0.50).astype(float), (hard < 0.46).astype(float)  # they fail on the same samples
    apart = [Estimate(float(x.mean()), float(x.std()) / math.sqrt(300)) for x in (ours, theirs)]
    assert (difference(scored(ours), scored(theirs)).p or 0) < 0.01
    assert (difference(*apart).p or 0) > 0.2


def test_no_difference_over_samples_is_found_as_seldom_as_promised() -> None:
    def answers(random: np.random.Generator) -> tuple[Estimate, Estimate]:
        ours, theirs = (random.random((2, 150)) < 0.4).astype(float)
        return scored(ours), scored(theirs)

    assert 0.03 <= rejections(answers) <= 0.07


def test_tasks_of_one_run_vary_together_on_the_same_samples_and_alone_on_others() -> None:
    random = np.random.default_rng(2)
    first, second = random.normal(size=(2, 300))
    zero = scored(np.zeros(300))
    same = average([scored(first), scored(first)])
    other = average([scored(first), scored(second, "other task")])
    assert difference(same, zero).error == pytest.approx(difference(scored(first), zero).error)
    expected = math.hypot(first.std(ddof=1), second.std(ddof=1)) / 2 / math.sqrt(300)
    assert difference(other, average([zero, scored(np.zeros(300), "other task")])).error == pytest.approx(expected)


def test_the_same_outcomes_differ_by_nothing() -> None:
    sample = scored(np.random.default_rng(4).random(300))
    assert difference(sample, sample).p == 1.0


@pytest.mark.parametrize(("samples", "p"), [(400, 1 / (REPETITIONS + 1)), (3, 0.25), (2, 0.5)])
def test_a_difference_without_any_spread_is_not_certain(samples: int, p: float) -> None:
    assert difference(scored(np.ones(samples)), scored(np.zeros(samples))).p == pytest.approx(p)


def test_where_nobody_knows_an_error_there_is_no_p() -> None:
    assert difference(Estimate(1.0), Estimate(2.0)).p is None
    assert difference(Estimate(1.0), Estimate(2.0)).interval is None
    assert average([Estimate(1.0, 0.1), Estimate(2.0)]).error is None


def test_one_sample_has_no_spread() -> None:
    with pytest.raises(ValueError, match="samples = 1"):
        scored(np.ones(1))


@given(st.floats(-60, 60), st.floats(1, 1e6))
def test_students_t_is_scipys(t: float, freedom: float) -> None:
    assert t_test(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-7, abs=1e-300)
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom))


@pytest.mark.parametrize(
    ("p", "text"), [(1e-30, "p < 0.001"), (0.00099, "p < 0.001"), (0.0124, "p = 0.012"), (1, "p = 1.000")]
)
def test_a_p_value_is_printed_to_three_decimals(p: float, text: str) -> None:
    assert p_text(p) == text
