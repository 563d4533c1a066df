"""How sure a comparison is. Pure numpy: numbers in, numbers out, the same for the same input in whatever order.

A score's uncertainty is a column of draws: `[R, V]`, R imagined repetitions for each of V variants. Variants scored on
the same samples share the resampled samples in every row, so that the difference of two columns is a paired comparison.
Legend: `R` repetitions, `V` variants, `N` samples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

REPETITIONS = 1000
LEVEL = 0.95
"""Of every interval."""
ALPHA = 1 - LEVEL
"""A difference whose p is above it is within noise."""
_ROUNDING = 1e-12
"""A spread below it is that of floating-point numbers: the difference is the same in every repetition."""
_CHUNK = 2_000_000
"""Resampled counts that are in memory at a time."""


def seed_of(*words: object) -> np.random.Generator:
    """The same random numbers for the same words, in every process."""
    text = "\x1f".join(map(str, words)).encode()
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "big"))


def bootstrap(parts: ArrayLike, weights: ArrayLike, *words: object, repetitions: int = REPETITIONS) -> Floats:
    """Draws `[R, V]` of Σ parts / Σ weights, both `[V, N]`, over samples drawn with replacement, alike for all.

    `words` name the samples: equal words draw equally. Raises ValueError where there is no sample.
    """
    parts_VN, weights_VN = np.atleast_2d(np.asarray(parts, float)), np.atleast_2d(np.asarray(weights, float))
    n = parts_VN.shape[1]
    if n == 0:
        raise ValueError("there are no samples to draw from")
    random, draws = seed_of("bootstrap", n, *words), []
    shared = bool((weights_VN == weights_VN[:1]).all())
    rows = max(1, _CHUNK // n)
    for first in range(0, repetitions, rows):
        counts_RN = random.multinomial(n, np.full(n, 1 / n), size=min(rows, repetitions - first)).astype(float)
        wholes = counts_RN @ (weights_VN[:1] if shared else weights_VN).T
        draws.append(counts_RN @ parts_VN.T / wholes)
    return np.concatenate(draws)


def normal(value: float, stderr: float | None, *words: object, repetitions: int = REPETITIONS) -> Floats:
    """Draws `[R]` around a score of which only the standard error is known; without one it counts as exact."""
    noise = seed_of("normal", *words).standard_normal(repetitions)
    return value + (stderr or 0.0) * noise


def student(mean: float, stderr: float, freedom: int, *words: object, repetitions: int = REPETITIONS) -> Floats:
    """Draws `[R]` around the mean of `freedom` + 1 repetitions whose spread is itself estimated."""
    return mean + stderr * seed_of("student", *words).standard_t(freedom, repetitions)


def interval(draws: Floats) -> tuple[Floats, Floats]:
    """Ends of the middle 95 % of draws `[R, …]`."""
    low, high = np.quantile(draws, [ALPHA / 2, 1 - ALPHA / 2], axis=0)
    return low, high


def p_values(differences: Floats) -> Floats:
    """Two-sided p of differences `[R, V]` being none, from their mean and spread taken as normal: unlike a count of
    draws on the wrong side it can be small enough to survive a correction for many comparisons."""
    means, spreads = np.atleast_1d(differences.mean(0)), np.atleast_1d(differences.std(0, ddof=1))
    return np.array([_p_value(mean, spread) for mean, spread in zip(means, spreads, strict=True)])


def _p_value(mean: float, spread: float) -> float:
    if spread < _ROUNDING:
        return 1.0 if abs(mean) < _ROUNDING else 0.0
    return math.erfc(abs(mean) / spread / math.sqrt(2))


def holm(p: ArrayLike) -> Floats:
    """p-values `[V]` corrected for all being looked at (Holm 1979): those up to 0.05 hold together at 95 %."""
    found = np.asarray(p, float)
    order = np.argsort(found, kind="stable")
    steps = found[order] * np.arange(len(found), 0, -1)
    corrected = np.empty_like(found)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


@cache
def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """How many standard errors the middle `level` of Student's t reaches. Raises ValueError below one degree."""
    from scipy.special import stdtrit

    if freedom < 1:
        raise ValueError(f"freedom = {freedom}: a spread takes two repetitions at least")
    return float(stdtrit(freedom, (1 + level) / 2))


# The front


def on_front(costs: ArrayLike, draws: Floats, *, higher_is_better: bool = True) -> Bools:
    """`[R, V]`: whether no variant dominates (analysis.pareto) this one, if scores were as in draws `[R, V]`."""
    cost_V, score_RV = np.asarray(costs, float), draws if higher_is_better else -draws
    order = np.argsort(cost_V, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(cost_V[order]) > 0]))
    group_V = np.empty(len(order), int)
    group_V[order] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(order)]))
    best_RG = np.maximum.reduceat(score_RV[:, order], starts, axis=1)
    below_RG = np.full_like(best_RG, -np.inf)
    below_RG[:, 1:] = np.maximum.accumulate(best_RG, axis=1)[:, :-1]
    return np.asarray((score_RV == best_RG[:, group_V]) & (score_RV > below_RG[:, group_V]))


def front_probabilities(
    costs: Sequence[float], scores: Sequence[float], stderrs: Sequence[float | None], *, higher_is_better: bool = True
) -> list[float]:
    """For each point, how probably it is on the front, its score's error being normal and independent of the others'.

    Cost is better when lower. A score without a standard error counts as exact. Raises ValueError for unequal lengths.
    """
    points = list(zip(costs, scores, (stderr or 0.0 for stderr in stderrs), strict=True))
    if not points:
        return []
    taken: dict[tuple[float, ...], int] = {}
    draws = []
    for point in points:  # equal points are different variants: each its own noise, whatever their order
        taken[point] = taken.get(point, -1) + 1
        draws.append(normal(point[1], point[2], *point, taken[point]))
    shares = on_front(costs, np.column_stack(draws), higher_is_better=higher_is_better).mean(0)
    return [float(share) for share in shares]


def hypervolumes(
    costs: ArrayLike, draws: Floats, reference: tuple[float, ArrayLike], *, higher_is_better: bool = True
) -> Floats:
    """`[R]`: analysis.pareto.hypervolume of every repetition in draws `[R, V]`.

    The score of the `reference` (cost, score) may be one for each repetition: a variant's own draws, say, so that what
    all variants have in common does not count as noise.
    """
    sign = 1.0 if higher_is_better else -1.0
    cost_V = np.minimum(np.asarray(costs, float), reference[0])
    floor_R = np.broadcast_to(sign * np.asarray(reference[1], float), draws.shape[:1])
    order = np.argsort(cost_V, kind="stable")
    reached_RV = np.maximum.accumulate(sign * draws[:, order], axis=1)
    heights_RV = np.maximum(reached_RV - floor_R[:, None], 0.0)
    return np.asarray(heights_RV @ np.diff([*cost_V[order], reference[0]]))
