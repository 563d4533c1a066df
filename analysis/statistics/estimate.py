"""What is known of a number's error, and of the difference of two numbers. Exact formulas: nothing here is drawn.

An error has two sources. One is the row's own: the spread of its seeds or repeats, or, where nobody kept the samples, a
recorded standard error. The other is the choice of samples: its part in the score is known sample by sample, so that
two scores over the same samples are compared pair by pair. Legend: `N` samples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
"""Of every interval."""
ALPHA = 1 - LEVEL
"""A difference whose p is above it is within noise."""
REPETITIONS = 1000
"""Draws, where draws are needed (bootstrap.py)."""
_ROUNDING = 1e-12
"""An error below it (of numbers around one) is that of floating-point numbers."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean and its error.

    `error` is the standard error of its own, independent of other rows, None where nobody knows it; `freedom` the
    degrees of freedom of that error (seeds - 1; infinite where it counts as known). `influence` has, by the name of the
    samples, how far each sample moves the value: `[N]`, summing to zero. `overlap` is the part of `error`² that the
    influence holds too: seeds scored on the same samples differ by their answers as well as by their training. An
    error that is `borrowed` was found in the seeds of other rows, perhaps of the one that this is compared with.
    """

    value: float
    error: float | None = None
    freedom: float = math.inf
    influence: Mapping[str, Floats] = field(default_factory=dict)
    overlap: float = 0.0
    borrowed: bool = False

    @property
    def is_known(self) -> bool:
        """Whether anything is known of its error."""
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
    """Of two estimates; `error` is None where neither has one."""

    value: float
    error: float | None
    freedom: float

    @property
    def p(self) -> float | None:
        """Two-sided, of there being no difference (Welch's t-test); None without an error.

        Where the difference is the same in every sample its error is zero. What is known then is that no resample
        would disagree: p is at the floor of a bootstrap, 1/(B + 1), or of the sign test of so few samples.
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
    """The score Σ parts / Σ weights over `N` samples, linear in each sample's part (the delta method).

    Raises ValueError below two samples, which have no spread.
    """
    if len(parts) < 2:
        raise ValueError(f"samples = {len(parts)}: a spread takes two at least")
    return Estimate(value, influence={samples: (parts - value * weights) / weights.sum()})


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of scores of one run: tasks over the same samples vary together, others by themselves. Its error is
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

    Where seeds were scored on the same samples, that spread holds their disagreement on single samples, which varies
    with the samples too: `overlap`, so that it counts once (as in a two-way layout of seeds by samples).
    """
    n, influence, overlap = len(seeds), _mean_influence(seeds), []
    for samples, mean in influence.items():
        for seed in seeds:
            apart = seed.influence.get(samples, np.zeros_like(mean)) - mean
            overlap.append(_variance(apart) / (n * (n - 1)))
    return Estimate(value, error, n - 1, influence, math.fsum(overlap))


def borrow(lone: Estimate, others: Sequence[Estimate]) -> Estimate:
    """A single seed of several that were planned: it varies as the seeds of `others` do, which all have several
    (their variances pooled, as in a t-test of one value). Itself where there are no others."""
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
    """a - b, with the Welch-Satterthwaite degrees of freedom of its error. An unknown error counts as none beside a
    known one."""
    value = a.value - b.value
    if not a.is_known and not b.is_known:
        return Difference(value, None, math.inf)
    terms = [((one.error or 0.0) ** 2, one.freedom) for one in (a, b)]
    sampled = [(_variance(apart), len(apart) - 1.0) for apart in _apart(a, b)]
    total = math.fsum(variance for variance, _ in sampled)
    # What the samples add to the spread of the seeds: without seeds, all of it.
    beyond = max(0.0, total - a.overlap - b.overlap) / total if total > 0 else 0.0
    terms += [(variance * beyond, freedom) for variance, freedom in sampled]
    error, freedom = _combined(terms)
    # What is borrowed is no second observation of the spread, which Welch's formula would count.
    return Difference(value, error, min(freedom, a.freedom, b.freedom) if a.borrowed or b.borrowed else freedom)


def _apart(a: Estimate, b: Estimate) -> list[Floats]:
    """How far each sample moves the difference, by samples."""
    names = sorted({*a.influence, *b.influence})
    return [np.asarray(a.influence.get(name, 0.0) - b.influence.get(name, 0.0)) for name in names]


def _combined(terms: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Standard error and degrees of freedom (Welch 1947, Satterthwaite 1946) of a sum of terms with these variances
    and degrees of freedom."""
    variance = math.fsum(term for term, _ in terms)
    if variance <= 0:
        return 0.0, min(freedom for _, freedom in terms)
    shares = math.fsum((term / variance) ** 2 / freedom for term, freedom in terms if term > 0)
    return math.sqrt(variance), 1 / shares if shares > 0 else math.inf


def _mean_influence(estimates: Sequence[Estimate]) -> dict[str, Floats]:
    """Of the mean of estimates. Summed in order of size, so that their order changes no digit."""
    names = {name for estimate in estimates for name in estimate.influence}
    found = {name: [e.influence[name] for e in estimates if name in e.influence] for name in sorted(names)}
    return {name: np.sort(np.stack(each), axis=0).sum(axis=0) / len(estimates) for name, each in found.items()}


def _variance(influence_N: Floats) -> float:
    """Of a value that its samples move by so much."""
    n = len(influence_N)
    return float(influence_N @ influence_N) * n / (n - 1)


# Student's t


def t_test(t: float, freedom: float) -> float:
    """Two-sided p of a value that is `t` standard errors from zero."""
    from scipy.special import stdtr

    return float(min(1.0, 2 * stdtr(freedom, -abs(t))))


def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """How many standard errors the middle `level` of Student's t reaches. Raises ValueError below one degree."""
    from scipy.special import stdtrit

    if freedom < 1:
        raise ValueError(f"freedom = {freedom}: a spread takes two repetitions at least")
    return float(stdtrit(freedom, (1 + level) / 2))


def holm(p: ArrayLike) -> Floats:
    """p-values `[V]` corrected for all being looked at (Holm 1979): those up to 0.05 hold together at 95 %."""
    found = np.asarray(p, float)
    order = np.argsort(found, kind="stable")
    steps = found[order] * np.arange(len(found), 0, -1)
    corrected = np.empty_like(found)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected
