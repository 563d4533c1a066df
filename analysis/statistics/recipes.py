"""Which recipe and how many tokens gave back what conversion lost: of the model's own results, else of the reference
data and of what others published, the nearest in size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.data import reference
from analysis.statistics.evidence import EvidenceSet
from analysis.statistics.prediction import LARGER, Law

SHARE = 0.9
"""Of what conversion lost, whose recovery is asked for."""
_SEVERAL = 3
"""Layouts from which a set tells recipes apart."""
_FARTHEST = 1e6
"""Times the law's own scale: what it says of more tokens is not said."""
_LENGTHS = 2
"""Of uptraining, from which the law of recovery is fitted."""


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


def own_set(sets: Sequence[EvidenceSet], model: str, law: Law) -> EvidenceSet | None:
    """Of the sets of a model, those of a loss if there are any: of the recipe and tokens whose layouts lost least for
    what they share, the set with most layouts. None where there is none."""
    own = [each for each in sets if model and each.model == model]
    kind = "loss" if any(each.kind == "loss" for each in own) else "accuracy"
    recipes: dict[tuple[str, float | None], EvidenceSet] = {}
    for each in own:
        best = recipes.get((each.how, each.tokens))
        if each.kind == kind and (best is None or len(each.rows) > len(best.rows)):
            recipes[each.how, each.tokens] = each
    most = max((len(each.rows) for each in recipes.values()), default=0)
    several = [each for each in recipes.values() if len(each.rows) >= min(_SEVERAL, most)]
    return min(several, key=law.scale, default=None)


def recoveries(sets: Sequence[EvidenceSet], own: EvidenceSet | None, parameters: float) -> list[Recovery]:
    """What is known, the most relevant first: of the same model and recipe by their number of tokens, then of other
    models, but for those that were trained too briefly to count for others, the nearest in size first."""
    of_model = [each for each in sets if own and each.group == own.group and each.how == own.how]
    others = [each for each in sets if each not in of_model and not each.brief]
    of_others = [each for each in others if each.recovered is not None and each.tokens]
    measured = [_measured(each, parameters) for each in of_model if each.recovered is not None and each.tokens]
    measured.sort(key=lambda each: -each.tokens)
    if found := _by_law(of_model, parameters):
        measured.insert(0, found)
    elsewhere = [*(_measured(each, parameters) for each in of_others), *_published(parameters)]
    return [*measured, *sorted(elsewhere, key=lambda each: abs(math.log(parameters / each.parameters)))]


def _by_law(sets: Sequence[EvidenceSet], parameters: float) -> Recovery | None:
    """The tokens after which SHARE is given back, by the law of recovery (recovery_law.py) over the lengths of one
    sweep, that with most of them. None with fewer than two, and where the law never gets there."""
    lengths: dict[str, dict[float, EvidenceSet]] = {}
    for each in sets:
        if each.tokens and each.recovered is not None and 0 < each.recovered < 1:
            lengths.setdefault(each.name, {})[each.tokens] = each
    own = max(lengths.values(), key=len, default={})
    if len(own) < _LENGTHS:
        return None
    from analysis.statistics.recovery_law import fitted

    tokens = sorted(own)
    scale_1, power_1 = fitted([0.0, *tokens], [[1.0, *(1 - (own[each].recovered or 0.0) for each in tokens)]])
    exponent = -math.log(1 - SHARE) / float(power_1[0])
    if not 0 < exponent < math.log(_FARTHEST):
        return None
    needed = float(scale_1[0]) * math.expm1(exponent)
    longest, first = tokens[-1], own[tokens[-1]]
    where = f", {needed / longest:.1f} times the longest" if needed > longest else ""
    outcome = f"give back {SHARE:.0%} by the law of recovery over {len(tokens)} lengths{where}"
    extrapolated = parameters > LARGER * first.parameters or needed > LARGER * longest
    return Recovery(first.how, needed, needed, first.parameters, outcome, first.name, extrapolated)


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
