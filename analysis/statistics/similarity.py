"""Whether layers that are alike are those whose sharing does little damage: rank correlations over pairs of layers.

Legend: `L` layers, `N` windows, `P` pairs of layers, `R` repetitions of the bootstrap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.data.similarity import BaseSimilarity, of_plan
from analysis.statistics.bootstrap import seed_of
from analysis.statistics.estimate import ALPHA, REPETITIONS, Floats
from analysis.statistics.sources import Source
from mlkv.similarity.results import APART, Similarity, pairs_below

Ints = NDArray[np.int64]
FEWEST = 3
"""Of pairs, or of layers that one could read; fewer have no correlation to speak of."""


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation of unlikeness and damage over pairs: above 0, layers that are alike share at less damage.
    low, high: of its 95 % interval; None where too few repetitions have a value."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Readers:
    """How much of the damage's variance over all ordered pairs follows from which layer reads, and from which layer it
    reads from; what remains is of the two together."""

    reader: float
    source: float


def similarities(source: Source) -> list[BaseSimilarity]:
    """Of a sweep, or of all parts, whichever of their rows are selected. Raises DamagedFileError."""
    if source.whole is not None:
        return similarities(source.whole)
    of_parts = [each for part in source.parts for each in similarities(part.source)]
    own = of_plan(source.sweep.plan, source.steps) if source.sweep and source.steps else []
    return list({each.step: each for each in [*own, *of_parts]}.values())


def agreement(found: Similarity, measure: str) -> Agreement | None:
    """Over pairs in which a layer reads one below it. The bootstrap draws layers and windows with replacement: pairs
    that have a layer in common are not independent (Snijders and Borgatti, Connections 22(2), 1999). None without
    damage, for few pairs, and where one of the two is the same for all pairs."""
    pairs, unlike_LL = np.array(pairs_below(len(found.key_heads)), int).reshape(-1, 2), _unlikeness(found, measure)

    def over_pairs(damage_LL: Floats, drawn_L: Ints) -> float | None:
        own = drawn_L[pairs]
        places = tuple(own[own[:, 0] != own[:, 1]].T)
        return spearman(unlike_LL[places], damage_LL[places]) if len(places[0]) >= FEWEST else None

    if found.damage is None or (value := over_pairs(found.damage, np.arange(len(unlike_LL)))) is None:
        return None
    drawn = [over_pairs(damage, layers) for damage, layers in zip(*_draws(found, measure), strict=True)]
    return _agreement(value, [rho for rho in drawn if rho is not None])


def agreement_of_sources(found: Similarity, measure: str) -> Agreement | None:
    """Of each layer that reads, over all others that it could read; the mean over layers. It asks which layer is best
    read, and not which layer had best keep its own keys and values. The bootstrap draws the layers that read, and
    windows. None as for `agreement`."""
    unlike_LS = _others(_unlikeness(found, measure))
    if found.damage is None or unlike_LS.shape[1] < FEWEST:
        return None
    rho_L = _of_rows(unlike_LS, _others(found.damage))
    if np.isnan(rho_L).all():
        return None
    damage_RLL, layers_RL = _draws(found, measure)
    drawn_RL = np.take_along_axis(_of_rows(unlike_LS, _others(damage_RLL)), layers_RL, 1)
    known_RL = ~np.isnan(drawn_RL)
    counted = known_RL.any(1)
    sums_R = np.where(known_RL, drawn_RL, 0.0).sum(1)[counted]
    return _agreement(float(np.nanmean(rho_L)), list(sums_R / known_RL.sum(1)[counted]))


def _unlikeness(found: Similarity, measure: str) -> Floats:
    return found.layers[measure] * (1 if measure in APART else -1)


def _others(values: Floats) -> Floats:
    """`[…, L, L]` without the diagonal: `[…, L, L − 1]`."""
    layers = values.shape[-1]
    return values[..., ~np.eye(layers, dtype=bool)].reshape(*values.shape[:-1], layers - 1)


def _draws(found: Similarity, measure: str) -> tuple[Floats, Ints]:
    """The damage `[R, L, L]` of windows drawn with replacement, and layers so drawn `[R, L]`, lowest first."""
    layers, windows = len(found.key_heads), len(found.tokens)
    random = seed_of("similarity", measure, layers, windows)
    counts_RN = random.multinomial(windows, np.full(windows, 1 / windows), size=REPETITIONS).astype(float)
    damage_RLL = np.tensordot(counts_RN, found.excess, 1) / (counts_RN @ found.tokens)[:, None, None]
    return damage_RLL, np.sort(random.integers(0, layers, (REPETITIONS, layers)), 1)


def _agreement(value: float, drawn: list[float]) -> Agreement:
    if len(drawn) < REPETITIONS / 2:
        return Agreement(value, None, None)
    low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2])
    return Agreement(value, float(low), float(high))


def _of_rows(one: Floats, other: Floats) -> Floats:
    """Spearman's correlation of the rows of two arrays, along the last axis; NaN where a row has one value alone."""
    from scipy.stats import rankdata

    a, b = (rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2 for values in (one, other))
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), scale, where=scale > 0, out=np.full(scale.shape, np.nan))


def spearman(one: Floats, other: Floats) -> float | None:
    """The correlation of ranks, ties at their mean rank; None where all values of one are equal."""
    rho = float(_of_rows(one, other))
    return None if math.isnan(rho) else rho


def readers(found: Similarity) -> Readers | None:
    """Of a model with an effect of each reader and each source, fitted to the damage of all ordered pairs by least
    squares; the shares of variance that each adds to the other's. None where there is no damage or no variance."""
    if found.damage is None or len(found.damage) < FEWEST:
        return None
    layers = len(found.damage)
    reader_P, source_P = np.nonzero(~np.eye(layers, dtype=bool))
    damage_P = found.damage[reader_P, source_P] - found.damage[reader_P, source_P].mean()
    effects = [np.eye(layers)[index] for index in (reader_P, source_P)]
    whole = float(damage_P @ damage_P)
    if whole <= 0:
        return None
    left = [_unexplained(damage_P, [effects[i] for i in used]) for used in ((0, 1), (1,), (0,))]
    return Readers((left[1] - left[0]) / whole, (left[2] - left[0]) / whole)


def _unexplained(values_P: Floats, effects: list[Floats]) -> float:
    """The sum of squares that a model of these effects leaves."""
    design = np.concatenate(effects, 1)
    left = values_P - design @ np.linalg.lstsq(design, values_P, rcond=None)[0]
    return float(left @ left)
