"""What a layout's score is worth in tokens of the base alone: a law of the base's loss, from bases of several lengths.

A base trained on D tokens, with a schedule of its own to its end, has the loss L(D) = E + A · D^-b. It is fitted to the
untouched bases of the results that differ in nothing but their length, and turned round: a layout's loss is that of a
base after so many tokens. Legend: `R` draws of a bootstrap, `P` lengths, `B` values of `b`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.data import frame
from analysis.data.frame import Row
from analysis.data.metrics import METRICS
from analysis.statistics import bootstrap
from analysis.statistics.estimate import Estimate, Floats
from analysis.statistics.recovery import tokens_of
from analysis.statistics.results import Results
from analysis.statistics.sources import Source

FEWEST = 4
"""Lengths that the law needs: it has three parameters, and one length is left to tell how far it is off."""
BASE_TOKENS = "base.tokens"
"""The column of the tokens that a row's base was trained on."""
_OWN = ("base.steps", "base.tokens", "base.epochs", "base.seed")
"""Swept values in which bases of one law may differ."""
Made = tuple[str | None, str | None]
"""The model of a row, and the step that made its text."""
_POWERS = np.geomspace(0.01, 4, 120)
"""Values of `b` that are tried first."""


@dataclass(frozen=True)
class Length:
    """A base after so many tokens."""

    name: str
    tokens: float
    score: Estimate


@dataclass(frozen=True)
class BaseLaw:
    """floor, factor, power: E, A (for tokens divided by the longest length's) and b. foretold: the loss at the longest
    length by the law of the others; None for the fewest lengths, whose others fit any law."""

    lengths: tuple[Length, ...]
    floor: float
    factor: float
    power: float
    foretold: float | None

    @property
    def longest(self) -> float:
        return self.lengths[-1].tokens

    def loss(self, tokens: float) -> float:
        return self.floor + self.factor * (tokens / self.longest) ** -self.power

    @property
    def residual(self) -> float:
        """The farthest that a length is from the law."""
        return max(abs(self.loss(each.tokens) - each.score.value) for each in self.lengths)


@dataclass(frozen=True)
class Worth:
    """A row, in tokens of the base. seen: those of its base and of its uptraining; None where that is not known.
    tokens: with which the base alone has the row's loss, infinite where the law has none so low; interval: its 95 %
    interval, None where errors are not known. inside: whether that is between the shortest length and the longest."""

    row: Row
    score: Estimate
    seen: float | None
    tokens: float
    interval: tuple[float, float] | None
    inside: bool

    @property
    def share(self) -> float | None:
        """Of what it has seen."""
        return self.tokens / self.seen if self.seen else None


@dataclass(frozen=True)
class Equivalents:
    metric: str
    law: BaseLaw
    worths: list[Worth]


def equivalents(source: Source) -> Equivalents | None:
    """Of every row on the bases' model and text, by the main axis. None where that is no loss, where fewer than FEWEST
    lengths of one base are scored, and where their losses do not fall."""
    results, estimates = source.results, source.results.estimates
    metric = estimates.axis.rpartition(".")[2]
    if metric not in METRICS or METRICS[metric].higher_is_better:
        return None
    of_rows = _of_rows(source)
    groups = _lengths(results, of_rows)
    group = max(groups, key=lambda key: len(groups[key]), default=None)
    if group is None or len(groups[group]) < FEWEST or (law := base_law(groups[group])) is None:
        return None
    others = [
        row
        for row in results.rows()
        if row["baseline"] != "untouched" and of_rows[row["variant"]] == group[0] and estimates.of(row, "quality")
    ]
    return Equivalents(metric, law, list(_worths(others, results, law)))


def _of_rows(source: Source) -> dict[str, Made]:
    """Row → its model and the step of its text."""
    rows = frame.records(source.table[source.table["kind"] == "corpus"])
    return {row["replicate_of"] or row["variant"]: (row["model"], row["step"]) for row in rows}


def _lengths(results: Results, of_rows: Mapping[str, Made]) -> dict[tuple[Made, str], list[Length]]:
    """The untouched bases that differ in nothing but their length, one for each number of tokens, the shortest
    first."""
    found: dict[tuple[Made, str], dict[float, Length]] = {}
    for row in results.rows():
        tokens, score = row.get(BASE_TOKENS), results.estimates.of(row, "quality")
        if row["baseline"] == "untouched" and tokens and score and row["variant"] in of_rows:
            key = of_rows[row["variant"]], _recipe(row, results)
            found.setdefault(key, {}).setdefault(tokens, Length(row["variant"], tokens, score))
    return {key: [own[tokens] for tokens in sorted(own)] for key, own in found.items()}


def _recipe(row: Row, results: Results) -> str:
    """The swept values of a base without its length; what a layout is made by is no part of an untouched base."""
    words = shlex.split(results.estimates.members[row["variant"]][0].get("overrides") or "")
    return shlex.join(sorted(word for word in words if word.startswith("base.") and word.split("=")[0] not in _OWN))


def base_law(lengths: Sequence[Length]) -> BaseLaw | None:
    """None where losses do not fall."""
    tokens, values = [each.tokens for each in lengths], [each.score.value for each in lengths]
    floor_1, factor_1, power_1 = fitted(tokens, [values])
    if not factor_1[0] > 0:
        return None
    foretold = None
    if len(lengths) > FEWEST:
        floor, factor, power = (float(each[0]) for each in fitted(tokens[:-1], [values[:-1]]))
        foretold = floor + factor * (tokens[-1] / tokens[-2]) ** -power
    return BaseLaw(tuple(lengths), float(floor_1[0]), float(factor_1[0]), float(power_1[0]), foretold)


def fitted(tokens: ArrayLike, losses: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """E, A and b, each `[R]`, of losses `[R, P]` after `tokens` `[P]`, which A counts in lengths of the last of them:
    least squares, exact in E and A, over a grid of b that is made finer around the best. Neither E nor A is below
    zero."""
    share_P, loss_RP = np.asarray(tokens, float), np.asarray(losses, float)
    share_P = share_P / share_P[-1]
    power_RB = np.broadcast_to(_POWERS, (len(loss_RP), len(_POWERS)))
    best_R = _squares(share_P, loss_RP, power_RB)[2].argmin(1)
    around_R1 = _POWERS[best_R][:, None]
    power_RB = around_R1 * (_POWERS[1] / _POWERS[0]) ** np.linspace(-1, 1, len(_POWERS))
    floor_RB, factor_RB, squares_RB = _squares(share_P, loss_RP, power_RB)
    best_R, rows = squares_RB.argmin(1), np.arange(len(loss_RP))
    return floor_RB[rows, best_R], factor_RB[rows, best_R], power_RB[rows, best_R]


def _squares(share_P: Floats, loss_RP: Floats, power_RB: Floats) -> tuple[Floats, Floats, Floats]:
    """E and A for each b, and the sum of squares that is left, `[R, B]` each."""
    x_RBP = share_P ** -power_RB[..., None]
    loss_R1P = loss_RP[:, None, :]
    mean_RB, mean_R1 = x_RBP.mean(-1), loss_RP.mean(1, keepdims=True)
    around_RBP = x_RBP - mean_RB[..., None]
    factor_RB = np.maximum((around_RBP * (loss_R1P - mean_R1[..., None])).sum(-1) / (around_RBP**2).sum(-1), 0.0)
    floor_RB = mean_R1 - factor_RB * mean_RB
    factor_RB = np.where(floor_RB < 0, (x_RBP * loss_R1P).sum(-1) / (x_RBP**2).sum(-1), factor_RB)
    floor_RB = np.maximum(floor_RB, 0.0)
    left_RBP = loss_R1P - floor_RB[..., None] - factor_RB[..., None] * x_RBP
    return floor_RB, factor_RB, (left_RBP**2).sum(-1)


def tokens_for(loss: ArrayLike, floor: ArrayLike, factor: ArrayLike, power: ArrayLike, longest: float) -> Floats:
    """The law turned round: tokens after which a base has this loss; infinite where it never has."""
    above, factors = np.asarray(loss, float) - np.asarray(floor, float), np.asarray(factor, float)
    reached = (above > 0) & (factors > 0)
    share = np.where(reached, above, 1.0) / np.where(reached, factors, 1.0)
    with np.errstate(over="ignore"):
        return np.where(reached, longest * share ** (-1 / np.asarray(power, float)), math.inf)


def _worths(rows: Sequence[Row], results: Results, law: BaseLaw) -> Iterator[Worth]:
    scores = [score for row in rows if (score := results.estimates.of(row, "quality"))]
    for row, score, interval in zip(rows, scores, _intervals(scores, law), strict=True):
        tokens = float(tokens_for(score.value, law.floor, law.factor, law.power, law.longest))
        own, uptrained = row.get(BASE_TOKENS), tokens_of(row)
        seen = None if own is None or uptrained is None else own + uptrained
        yield Worth(row, score, seen, tokens, interval, law.lengths[0].tokens <= tokens <= law.longest)


def _intervals(scores: Sequence[Estimate], law: BaseLaw) -> list[tuple[float, float] | None]:
    """From draws of the held-out samples, the same for all; and of the noise of seeds where there are several."""
    estimates = [*(each.score for each in law.lengths), *scores]
    if not all(each.is_known for each in estimates):
        return [None] * len(scores)
    drawn_RV, count = bootstrap.draws(estimates), len(law.lengths)
    law_R = fitted([each.tokens for each in law.lengths], drawn_RV[:, :count])
    found = (tokens_for(drawn_RV[:, count + i], *law_R, law.longest) for i in range(len(scores)))
    ends = (np.quantile(each_R, [0.025, 0.975], method="inverted_cdf").tolist() for each_R in found)
    return [(low, high) for low, high in ends]
