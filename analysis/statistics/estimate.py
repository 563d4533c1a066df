"""The error of a number, and of the difference of two numbers, by formulas (bootstrap.py has what is drawn).

An error has two sources. One is the row's own: the spread of its seeds or repeats, or a recorded standard error where
samples are not stored. The other is the choice of samples: its part in the score is known sample by sample, so that two
scores over the same samples are compared pair by pair, document by document. Legend: `N` samples.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
"""The level of every interval."""
ALPHA = 1 - LEVEL
"""A difference with a larger p-value is within noise."""
REPETITIONS = 1000
"""Draws of a bootstrap (bootstrap.py)."""
_ROUNDING = 1e-12
"""An error below it (of numbers around one) is that of floating-point numbers."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean and its error.

    `error` is the row's own standard error, independent of other rows, None where it is not known; `freedom` its
    degrees of freedom (seeds - 1; infinite where the error counts as exact). `influence` has, by the name of the
    samples, how far each sample moves the value: `[N]`, summing to zero. `overlap` is the part of `error`² that the
    influence has too: seeds scored on the same samples differ by their answers as well as by their training. A
    `borrowed` error is estimated from the seeds of other rows, possibly of the row that this one is compared with.
    """

    value: float
    error: float | None = None
    freedom: float = math.inf
    influence: Mapping[str, Floats] = field(default_factory=dict)
    overlap: float = 0.0
    borrowed: bool = False

    @property
    def is_known(self) -> bool:
        """Whether there is an error of either source."""
        return self.error is not None or bool(self.influence)

    @property
    def content(self) -> tuple[object, ...]:
        """Equal for estimates that are equal in everything."""
        digest = hashlib.blake2b(digest_size=16)
        for samples in sorted(self.influence):
            digest.update(samples.encode())
            digest.update(self.influence[samples].tobytes())
        return self.value, self.error, self.freedom, digest.hexdigest()


@dataclass(frozen=True)
class Difference:
    """The difference of two estimates; `error` is None where neither has one."""

    value: float
    error: float | None
    freedom: float

    @property
    def p(self) -> float | None:
        """The two-sided p-value of Welch's t-test for no difference; None without an error.

        Where the difference is the same in every sample, its error is zero and t infinite. p = 0 would claim more than
        the data can: no resample disagrees, so that p is the smallest of a bootstrap of B draws, 1/(B + 1), or of a
        sign test of so few samples, whichever is larger.
        """
        if self.error is None:
            return None
        if self.error > _ROUNDING:
            return t_test(self.value / self.error, self.freedom)
        return 1.0 if abs(self.value) <= _ROUNDING else max(1 / (REPETITIONS + 1), 2.0**-self.freedom)

    @property
    def interval(self) -> tuple[float, float] | None:
        if self.error is None:
            return None
        reach = t_quantile(self.freedom) * self.error
        return self.value - reach, self.value + reach


def of_samples(value: float, parts: Floats, weights: Floats, samples: str) -> Estimate:
    """The score Σ parts / Σ weights over `N` samples, with each sample's influence on it (the delta method for a
    ratio).

    Raises ValueError below two samples, which have no spread.
    """
    if len(parts) < 2:
        raise ValueError(f"samples = {len(parts)}: a spread needs at least two")
    return Estimate(value, influence={samples: (parts - value * weights) / weights.sum()})


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of scores of one run: tasks over the same samples vary together, others independently. Its error is
    known where all of theirs are."""
    share = 1 / len(estimates)
    if not all(estimate.is_known for estimate in estimates):
        return Estimate(math.fsum(estimate.value for estimate in estimates) * share)
    errors = [estimate.error for estimate in estimates if estimate.error is not None]
    return Estimate(
        value=math.fsum(estimate.value for estimate in estimates) * share,
        error=math.sqrt(math.fsum(error**2 for error in errors)) * share if errors else None,
        influence=_mean_influence(estimates),
    )


def of_seeds(value: float, error: float | None, seeds: Sequence[Estimate]) -> Estimate:
    """The mean `value` of two seeds or more, `error` being s/√n of their spread.

    Where seeds were scored on the same samples, their spread contains their disagreement on single samples, which the
    influence contains too. It is returned as `overlap` and counted once, as in a two-way analysis of variance of seeds
    by samples.
    """
    n, influence, overlap = len(seeds), _mean_influence(seeds), []
    for samples, mean in influence.items():
        for seed in seeds:
            deviation = seed.influence.get(samples, np.zeros_like(mean)) - mean
            overlap.append(_variance(deviation) / (n * (n - 1)))
    return Estimate(value, error, n - 1, influence, math.fsum(overlap))


def borrow(lone: Estimate, others: Sequence[Estimate]) -> Estimate:
    """The estimate of a single finished seed of several that were planned, with the spread of the seeds of `others`,
    which all have several: their variances pooled, as in the t-test of a single value. Without others it is unchanged.

    The seed's own evaluation error would leave out the noise of training, and a lone seed would win too easily.
    """
    if not others:
        return lone
    freedom = math.fsum(other.freedom for other in others)

    def pooled(variances: Iterable[float]) -> float:
        pairs = zip(variances, others, strict=True)
        return math.fsum(each * (other.freedom + 1) * other.freedom for each, other in pairs) / freedom

    error = math.sqrt(pooled((other.error or 0.0) ** 2 for other in others))
    overlap = pooled(other.overlap for other in others) if lone.influence else 0.0
    return replace(lone, error=error, freedom=freedom, overlap=overlap, borrowed=True)


def difference(a: Estimate, b: Estimate) -> Difference:
    """a - b."""
    return contrast([(1, a), (-1, b)])


def contrast(weighted: Sequence[tuple[float, Estimate]]) -> Difference:
    """The sum of weight times estimate, with the Welch-Satterthwaite degrees of freedom of its error. The weights sum
    to zero. An unknown error counts as zero where another is known."""
    value, estimates = math.fsum(weight * one.value for weight, one in weighted), [one for _, one in weighted]
    if not any(one.is_known for one in estimates):
        return Difference(value, None, math.inf)
    terms = [((weight * (one.error or 0.0)) ** 2, one.freedom) for weight, one in weighted]
    # Paired by document: the influences are summed first, so that what the scores share cancels.
    names = sorted({name for one in estimates for name in one.influence})
    sums = [
        np.sum([weight * one.influence[name] for weight, one in weighted if name in one.influence], axis=0)
        for name in names
    ]
    sampled = [(_variance(each), len(each) - 1.0) for each in sums]
    total = math.fsum(variance for variance, _ in sampled)
    # The spread of seeds contains part of the samples' variance (overlap); only the rest is added. Without seeds: all.
    overlap = math.fsum(weight**2 * one.overlap for weight, one in weighted)
    share = max(0.0, total - overlap) / total if total > 0 else 0.0
    terms += [(variance * share, freedom) for variance, freedom in sampled]
    error, freedom = _combined(terms)
    # Welch's formula adds the degrees of freedom of independent spreads; a borrowed one is no further observation.
    borrowed = any(one.borrowed for one in estimates)
    return Difference(value, error, min([freedom, *(one.freedom for one in estimates)]) if borrowed else freedom)


def _combined(terms: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Standard error and degrees of freedom (Welch 1947, Satterthwaite 1946) of a sum of terms with these variances
    and degrees of freedom."""
    variance = math.fsum(term for term, _ in terms)
    if variance <= 0:
        return 0.0, min(freedom for _, freedom in terms)
    shares = math.fsum((term / variance) ** 2 / freedom for term, freedom in terms if term > 0)
    return math.sqrt(variance), 1 / shares if shares > 0 else math.inf


def _mean_influence(estimates: Sequence[Estimate]) -> dict[str, Floats]:
    """The influence on the mean of estimates. Summed in order of size, so that the order of estimates changes no
    digit."""
    names = {name for estimate in estimates for name in estimate.influence}
    found = {name: [e.influence[name] for e in estimates if name in e.influence] for name in sorted(names)}
    return {name: np.sort(np.stack(each), axis=0).sum(axis=0) / len(estimates) for name, each in found.items()}


def _variance(influence_N: Floats) -> float:
    """The variance of a value that its samples move by so much."""
    n = len(influence_N)
    return float(influence_N @ influence_N) * n / (n - 1)


def mean_of(sums: Sequence[Sequence[tuple[float, Estimate]]]) -> list[tuple[float, Estimate]]:
    """The mean of several weighted sums, for `contrast`: an estimate that is in several of them counts once, with all
    its weight, since its error is one error."""
    weights: dict[int, float] = defaultdict(float)
    estimates: dict[int, Estimate] = {}
    for weight, one in (pair for each in sums for pair in each):
        weights[id(one)] += weight / len(sums)
        estimates[id(one)] = one
    return [(weight, estimates[key]) for key, weight in weights.items()]


def with_pooled_spread(scores: Sequence[Estimate]) -> list[Estimate]:
    """The same scores, whose seeds have one spread for all of them, as in an analysis of variance. Where none has
    several seeds, what is left is the choice of samples, which all share."""
    seeded = [score for score in scores if _has_seeds(score) and not score.borrowed]
    freedom = math.fsum(score.freedom for score in seeded)
    if not freedom:
        return [score if score.influence else replace(score, error=None) for score in scores]

    def pool(variances: Iterable[float]) -> float:
        pairs = zip(variances, seeded, strict=True)
        return math.fsum(each * (score.freedom + 1) * score.freedom for each, score in pairs) / freedom

    variance, overlap = pool((s.error or 0.0) ** 2 for s in seeded), pool(s.overlap for s in seeded)
    return [_with_spread(score, variance, overlap, freedom) for score in scores]


def _has_seeds(score: Estimate) -> bool:
    return score.error is not None and math.isfinite(score.freedom)


def _with_spread(score: Estimate, variance: float, overlap: float, freedom: float) -> Estimate:
    seeds = score.freedom + 1 if _has_seeds(score) and not score.borrowed else 1
    overlap = overlap if score.influence else 0.0
    return replace(score, error=math.sqrt(variance / seeds), overlap=overlap / seeds, freedom=freedom)


# Student's t


def t_test(t: float, freedom: float) -> float:
    """The two-sided p-value of a number that is `t` standard errors from zero."""
    from scipy.special import stdtr

    return float(min(1.0, 2 * stdtr(freedom, -abs(t))))


def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """The number of standard errors between which the middle `level` of Student's t lies. Raises ValueError below one
    degree of freedom."""
    from scipy.special import stdtrit

    if freedom < 1:
        raise ValueError(f"freedom = {freedom}: a spread needs at least two repetitions")
    return float(stdtrit(freedom, (1 + level) / 2))


def p_text(p: float) -> str:
    """`p = 0.012`; a smaller one than 0.001 says no more than that."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def holm(p: ArrayLike) -> Floats:
    """p-values `[V]` corrected for their number (Holm 1979): those up to 0.05 hold together at 95 %.

    Holm's step-down holds for dependent p-values, as these are: rows share samples and a baseline. It is never weaker
    than Bonferroni's correction.
    """
    p_V = np.asarray(p, float)
    order = np.argsort(p_V, kind="stable")
    steps = p_V[order] * np.arange(len(p_V), 0, -1)
    corrected = np.empty_like(p_V)
    # A larger p-value may not become the smaller one.
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected
