"""A law of recovery: from the first third of the tokens, what is left of the gap at the end, and how far that is off.

The gap after `t` tokens is g(t) = g(0) · (1 + t / s)^-b: what conversion lost, falling as a power of tokens once they
are many against `s`. `s` and `b` are fitted to the logarithms of the gaps after up to a third of the longest
uptraining; everything later is for judging. Legend: `R` draws of a bootstrap, `P` points, `S` values of `s`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.data.metrics import METRICS
from analysis.statistics import bootstrap
from analysis.statistics.elastic import Interval
from analysis.statistics.estimate import Floats
from analysis.statistics.recovery import Curve

SHARE = 1 / 3
"""Of the longest uptraining's tokens: the law sees no more."""
_FEWEST = 2
"""Lengths that the law needs beside the conversion: it has two parameters."""
_SCALES = 400
"""Values of `s` that are tried, evenly in its logarithm."""


@dataclass(frozen=True)
class Law:
    """scale, power: `s` in tokens, and `b`. lengths: how many it was fitted to. predicted: the gap at the longest, in
    the unit of the score, larger being worse; off: that minus the measured one, with its 95 % interval where errors are
    known."""

    scale: float
    power: float
    lengths: int
    predicted: float
    off: Interval | None
    off_value: float


def law(curve: Curve, metric: str) -> Law | None:
    """None with fewer than two lengths in the first third, and where a gap is not above zero, so that it has no
    logarithm."""
    longest = curve.points[-1].tokens
    early = [i for i, point in enumerate(curve.points) if point.tokens <= SHARE * longest]
    if len(early) < 1 + _FEWEST:
        return None
    sign = -1.0 if METRICS[metric].higher_is_better else 1.0
    gaps_1P = np.array([[sign * point.gap.value for point in curve.points]])
    if (gaps_1P[:, early] <= 0).any():
        return None
    tokens = np.array(curve.tokens)
    scale_1, power_1 = fitted(tokens[early], gaps_1P[:, early])
    predicted = float(_at(longest, gaps_1P[:, 0], scale_1, power_1)[0])
    return Law(
        scale=float(scale_1[0]),
        power=float(power_1[0]),
        lengths=len(early) - 1,
        predicted=predicted,
        off_value=predicted - float(gaps_1P[0, -1]),
        off=_interval(curve, sign, tokens, early, predicted - float(gaps_1P[0, -1])),
    )


def _interval(curve: Curve, sign: float, tokens: Floats, early: list[int], value: float) -> Interval | None:
    estimates = [estimate for point in curve.points for estimate in (point.score, point.reference)]
    if not all(estimate.is_known for estimate in estimates):
        return None
    drawn = bootstrap.draws(estimates)
    gaps_RP = sign * (drawn[:, ::2] - drawn[:, 1::2])
    gaps_RP = gaps_RP[(gaps_RP[:, early] > 0).all(1)]  # a draw without a gap has no law
    if not len(gaps_RP):
        return None
    scale_R, power_R = fitted(tokens[early], gaps_RP[:, early])
    low, high = bootstrap.interval(_at(tokens[-1], gaps_RP[:, 0], scale_R, power_R) - gaps_RP[:, -1])
    return Interval(value, float(low), float(high))


def _at(tokens: float, first_R: Floats, scale_R: Floats, power_R: Floats) -> Floats:
    return np.asarray(first_R * (1 + tokens / scale_R) ** -power_R)


def fitted(tokens: ArrayLike, gaps: ArrayLike) -> tuple[Floats, Floats]:
    """`s` and `b`, each `[R]`, of gaps `[R, P]` after `tokens` `[P]`, the first of them 0: least squares in logarithms,
    exact in `b`, over a grid of `s` from a hundredth of the first length to a hundred times the last, where the law is
    all but exponential."""
    token_P, gap_RP = np.asarray(tokens, float)[1:], np.asarray(gaps, float)
    scale_S = np.geomspace(token_P[0] / 100, 100 * token_P[-1], _SCALES)
    x_SP = np.log1p(token_P / scale_S[:, None])
    y_RP = np.log(gap_RP[:, :1] / gap_RP[:, 1:])
    product_RS, square_S = y_RP @ x_SP.T, (x_SP**2).sum(1)
    best_R = np.argmax(product_RS**2 / square_S, axis=1)  # what is left of the sum of squares is least there
    rows = np.arange(len(y_RP))
    return scale_S[best_R], product_RS[rows, best_R] / square_S[best_R]
