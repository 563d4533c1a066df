"""Which recipe and how many tokens gave back what conversion lost: of the model's own results, else of the reference
data and of what others published, the nearest in size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.data import reference
from analysis.statistics.evidence import EvidenceSet
from analysis.statistics.prediction import LARGER


@dataclass(frozen=True)
class Recovery:
    """tokens: of uptraining, the most that it took; least: the fewest. parameters: of the model that it is known of.
    outcome: what they gave back, in words. extrapolated: the model that it is asked for is more than LARGER times
    larger."""

    how: str
    tokens: float
    least: float
    parameters: float
    outcome: str
    source: str
    extrapolated: bool


def own_set(sets: Sequence[EvidenceSet], model: str) -> EvidenceSet | None:
    """Of the sets of a model, one of a loss if there is one: that whose layouts lost least for what they share, among
    those of several layouts. None where there is none."""
    own = [each for each in sets if model and each.model == model]
    kind = "loss" if any(each.kind == "loss" for each in own) else "accuracy"
    alike = [each for each in own if each.kind == kind]
    most = max((len(each.rows) for each in alike), default=0)
    several = [each for each in alike if len(each.rows) >= min(3, most)]
    return min(several, key=lambda each: math.fsum(row.loss for row in each.rows) / len(each.rows), default=None)


def recoveries(sets: Sequence[EvidenceSet], own: EvidenceSet | None, parameters: float) -> list[Recovery]:
    """What is known, the most relevant first: of the same model and recipe by their number of tokens, then of other
    models, the nearest in size first."""
    of_model = [each for each in sets if own and each.group == own.group and each.how == own.how]
    of_others = [each for each in sets if each not in of_model and each.recovered is not None and each.tokens]
    measured = [_measured(each, parameters) for each in of_model if each.recovered is not None and each.tokens]
    measured.sort(key=lambda each: -each.tokens)
    others = [*(_measured(each, parameters) for each in of_others), *_published(parameters)]
    return [*measured, *sorted(others, key=lambda each: abs(math.log(parameters / each.parameters)))]


def _measured(each: EvidenceSet, parameters: float) -> Recovery:
    tokens, share = each.tokens or 0.0, each.recovered or 0.0
    outcome = f"gave back {share:.0%} of what conversion lost (median of {len(each.rows)} layouts)"
    extrapolated = parameters > LARGER * each.parameters
    return Recovery(each.how, tokens, tokens, each.parameters, outcome, each.name, extrapolated)


def _published(parameters: float) -> list[Recovery]:
    found = []
    for row in reference.read("uptraining"):
        most, size = float(row["tokens_high"]), float(row["parameters"])
        least = float(row["tokens_low"] or 0)
        outcome = f"at {row['kept']} of the cache: {row['outcome']}"
        found.append(Recovery(row["method"], most, least, size, outcome, row["source"], parameters > LARGER * size))
    return found
