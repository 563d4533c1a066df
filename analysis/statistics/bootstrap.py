"""Bootstrap draws, for what has no formula: the probability of being on the front, the interval of the hypervolume.

A row's draws are a column of `[R, V]`: R repetitions of the experiment for each of V rows. Rows scored on the same
samples share the resampled samples in every repetition (Efron and Tibshirani 1993, chapter 8). The draws depend on the
numbers alone, not on names or on the order of rows: a table that is sorted or renamed has the same probabilities.
Legend: `R` repetitions, `V` rows, `N` samples.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.statistics.estimate import ALPHA, REPETITIONS, Estimate, Floats

Bools = NDArray[np.bool_]
_CHUNK = 2_000_000
"""The most resampled counts in memory at a time."""


def seed_of(*words: object) -> np.random.Generator:
    """The same random numbers for the same words, in every process."""
    text = "\x1f".join(map(str, words)).encode()
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "big"))


def resampled(influence: ArrayLike, *words: object, repetitions: int = REPETITIONS) -> Floats:
    """`[R, V]`: how far each value moves when its samples are drawn with replacement, where sample i moves it by
    `influence` `[V, N]`. All values see the same resampled samples.

    `words` name the samples: equal words give equal draws. Raises ValueError where there is no sample.
    """
    influence_VN = np.atleast_2d(np.asarray(influence, float))
    n = influence_VN.shape[1]
    if n == 0:
        raise ValueError("there are no samples to draw from")
    random, draws = seed_of("bootstrap", n, *words), []
    # A resample is how often each sample occurs in it, so that all values are one matrix product.
    rows = max(1, _CHUNK // n)
    for first in range(0, repetitions, rows):
        counts_RN = random.multinomial(n, np.full(n, 1 / n), size=min(rows, repetitions - first)).astype(float)
        draws.append(counts_RN @ influence_VN.T)
    # A bootstrap's variance divides by n; the standard errors that are printed divide by n - 1.
    return np.concatenate(draws) * math.sqrt(n / max(1, n - 1))


def draws(estimates: Sequence[Estimate], *keys: Sequence[object], repetitions: int = REPETITIONS) -> Floats:
    """`[R, V]` around the estimates: their samples are resampled, and the error of each row's own is drawn from
    Student's t with its degrees of freedom.

    `keys` are further values of each row: rows that differ in them have independent errors. Rows that are equal in
    everything are different variants, and each has independent errors too.
    """
    contents = [estimate.content for estimate in estimates]
    values_RV = np.tile([estimate.value for estimate in estimates], (repetitions, 1))
    for samples in sorted({name for estimate in estimates for name in estimate.influence}):
        # Equal influences are one column: the matrix product may round them differently, and a tie would be lost.
        first = {
            content: e.influence[samples]
            for content, e in zip(contents, estimates, strict=True)
            if samples in e.influence
        }
        moved = dict(
            zip(first, resampled(np.stack(list(first.values())), samples, repetitions=repetitions).T, strict=True)
        )
        for column, content in enumerate(contents):
            if content in moved:
                values_RV[:, column] += moved[content]
    # The random numbers of a row are named by its content; equal rows are numbered, in whichever order they come.
    repeated: Counter[tuple[object, ...]] = Counter()
    for column, (estimate, row) in enumerate(zip(estimates, zip(contents, *keys, strict=True), strict=True)):
        own = math.sqrt(max(0.0, (estimate.error or 0.0) ** 2 - estimate.overlap))
        if own > 0:
            random = seed_of("noise", *row, repeated[row])
            is_normal = math.isinf(estimate.freedom)
            values_RV[:, column] += own * (
                random.standard_normal(repetitions) if is_normal else random.standard_t(estimate.freedom, repetitions)
            )
            repeated[row] += 1
    return values_RV


def interval(draws: Floats) -> tuple[Floats, Floats]:
    """Ends of the middle 95 % of draws `[R, …]`."""
    low, high = np.quantile(draws, [ALPHA / 2, 1 - ALPHA / 2], axis=0)
    return low, high


# The front


def on_front(costs: ArrayLike, draws: Floats, *, higher_is_better: bool = True) -> Bools:
    """`[R, V]`: whether no row dominates (pareto.py) this one, with scores as in draws `[R, V]`. Costs are `[V]`, or
    `[R, V]` where they are drawn too."""
    cost_V, score_RV = np.asarray(costs, float), draws if higher_is_better else -draws
    if cost_V.ndim == 2:
        return np.concatenate([on_front(cost, row[None]) for cost, row in zip(cost_V, score_RV, strict=True)])
    # Rows by cost, equal costs in one group G: on the front is the best of a group that beats all cheaper groups.
    order = np.argsort(cost_V, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(cost_V[order]) > 0]))
    group_V = np.empty(len(order), int)
    group_V[order] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(order)]))
    best_RG = np.maximum.reduceat(score_RV[:, order], starts, axis=1)
    below_RG = np.full_like(best_RG, -np.inf)
    below_RG[:, 1:] = np.maximum.accumulate(best_RG, axis=1)[:, :-1]
    return np.asarray((score_RV == best_RG[:, group_V]) & (score_RV > below_RG[:, group_V]))


def front_probabilities(
    costs: Sequence[Estimate], scores: Sequence[Estimate], *, higher_is_better: bool = True
) -> list[float]:
    """For each row, the probability of being on the front: the share of repetitions in which no row dominates it.

    Cost is better when lower. An error that is not known counts as zero. Raises ValueError for unequal lengths.
    """
    if len(costs) != len(scores):
        raise ValueError(f"cost has {len(costs)} points, quality {len(scores)}: they must pair up")
    if not scores:
        return []
    keys = [(cost.content, score.content) for cost, score in zip(costs, scores, strict=True)]
    exact = not any(cost.error for cost in costs)
    cost_RV = np.array([cost.value for cost in costs]) if exact else draws(costs, keys, ["cost"] * len(keys))
    shares = on_front(cost_RV, draws(scores, keys), higher_is_better=higher_is_better).mean(0)
    # Rows that are equal in everything have the same probability, whichever random numbers each one got.
    equal: dict[object, list[float]] = {}
    for key, share in zip(keys, shares, strict=True):
        equal.setdefault(key, []).append(float(share))
    return [math.fsum(equal[key]) / len(equal[key]) for key in keys]


def hypervolumes(
    costs: ArrayLike, draws: Floats, reference: tuple[float, ArrayLike], *, higher_is_better: bool = True
) -> Floats:
    """`[R]`: pareto.hypervolume of every repetition in draws `[R, V]`.

    The score of the `reference` (cost, score) is one number, or `[R]`: with the draws of a row as the reference, an
    error that all rows share moves the reference too, and does not widen the interval.
    """
    sign = 1.0 if higher_is_better else -1.0
    cost_V = np.minimum(np.asarray(costs, float), reference[0])
    floor_R = np.broadcast_to(sign * np.asarray(reference[1], float), draws.shape[:1])
    order = np.argsort(cost_V, kind="stable")
    reached_RV = np.maximum.accumulate(sign * draws[:, order], axis=1)
    heights_RV = np.maximum(reached_RV - floor_R[:, None], 0.0)
    return np.asarray(heights_RV @ np.diff([*cost_V[order], reference[0]]))
