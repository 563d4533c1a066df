"""Layouts cut from one elastic training against the same layouts uptrained separately: how much worse, and in which
order.

Legend: `R` repetitions of the bootstrap, `V` layouts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.data import replicates
from analysis.data.frame import Row
from analysis.statistics import bootstrap
from analysis.statistics.estimate import Difference, Estimate, Floats, difference
from analysis.statistics.results import Results
from analysis.statistics.sources import Source
from mlkv.layout import KVLayout
from sweeps.store.schema import VariantRow

_WAY = ("calibrate", "elastic", "convert", "uptrain")
"""Groups of the configuration that say how a layout is made and trained."""


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Pair:
    """A layout in both ways. `excess`: by how much the cut is worse, in the unit of the score."""

    variant: VariantRow
    cut: Row
    separate: Row
    excess: Difference


@dataclass(frozen=True)
class Comparison:
    """The layouts of one elastic training, and those that one recipe trains each by itself.

    cut_recipe, separate_recipe: the swept values of each, in words. mean_excess: the mean of the pairs' excess.
    gap: the mean by which the separate variants are worse than the untouched base. share: mean_excess / gap.
    tau: Kendall's correlation of the two rankings of the layouts. Each is None where it cannot be computed.
    cut_tokens: of the elastic training, once, and of any training after a cut; separate_tokens: of all separate ones.
    """

    cut_recipe: str
    separate_recipe: str
    pairs: list[Pair]
    mean_excess: Interval | None
    gap: float | None
    share: Interval | None
    tau: Interval | None
    cut_tokens: float
    separate_tokens: float


Scored = tuple[VariantRow, Row]


@dataclass(frozen=True)
class _Way:
    """What all variants that are made in one way have in common. `given`: the swept values of model, text and whatever
    else is not the way."""

    elastic: bool
    recipe: str
    given: str


def comparisons(source: Source) -> list[Comparison]:
    """One for every elastic training and every recipe of separate trainings that share model and text, of the layouts
    that are scored in both ways. Baselines are left out, as nothing is merged in them."""
    ways, found = _ways(source), []
    for cut, cuts in ways.items():
        for separate, separates in ways.items():
            both = [layout for layout in cuts if layout in separates]
            if cut.elastic and not separate.elastic and cut.given == separate.given and both:
                pairs = [(cuts[layout], separates[layout]) for layout in both]
                found.append(_comparison(source.results, cut, separate, pairs))
    return found


def _ways(source: Source) -> dict[_Way, dict[KVLayout, Scored]]:
    """The scored variants of a sweep by how they are made, and then by layout; seeds are one row."""
    rows = {row["variant"]: row for row in source.results.rows()}
    ways: dict[_Way, dict[KVLayout, Scored]] = defaultdict(dict)
    for name, variant, sweep in source.planned:
        row = rows[name]
        trained = variant.steps.elastic or variant.steps.uptrain
        if variant.baseline is None and trained and row["quality"] is not None:
            given = f"{sweep} {_swept(variant, of_way=False)}"
            way = _Way(bool(variant.steps.elastic), _swept(variant, of_way=True), given)
            ways[way].setdefault(variant.layout, (variant, row))
    return ways


def _swept(variant: VariantRow, *, of_way: bool) -> str:
    """Its swept values but those of the layout and the seeds: those that say how it is made, or the others."""
    values = {key: value for key, value in variant.overrides.items() if key not in replicates.SEEDS}
    groups = {key: key.partition(".")[0] for key in values}
    chosen = [key for key, group in groups.items() if group != "layout" and (group in _WAY) == of_way]
    return " ".join(f"{key}={values[key]}" for key in chosen)


def _comparison(results: Results, cut: _Way, separate: _Way, scored: Sequence[tuple[Scored, Scored]]) -> Comparison:
    metric, rows = results.estimates.metric("quality"), {row["variant"]: row for row in results.rows()}
    sign = -1.0 if metric and metric.higher_is_better else 1.0
    cuts, separates = [[_worse(results, row, sign) for _, row in side] for side in zip(*scored, strict=True)]
    bases = [rows.get(row["untouched"] or "") for _, (_, row) in scored]
    untouched = [_worse(results, row, sign) for row in bases if row and row["quality"] is not None]
    values_V = np.array([[each.value for each in (*cuts, *separates)]])
    drawn_RV = bootstrap.draws([*cuts, *separates])
    gap = None
    if len(untouched) == len(scored):
        gap = float(np.mean([each.value for each in separates]) - np.mean([each.value for each in untouched]))
    return Comparison(
        cut_recipe=cut.recipe,
        separate_recipe=separate.recipe,
        pairs=[
            Pair(variant, own, other, difference(of_cut, of_separate))
            for ((variant, own), (_, other)), of_cut, of_separate in zip(scored, cuts, separates, strict=True)
        ],
        mean_excess=_interval(mean_excess, values_V, drawn_RV),
        gap=gap,
        share=_share(cuts, separates, untouched) if gap else None,
        tau=_interval(rank_correlation, values_V, drawn_RV),
        cut_tokens=max(_tokens(row, "elastic") for (_, row), _ in scored)
        + math.fsum(_tokens(row, "uptrain") for (_, row), _ in scored),
        separate_tokens=math.fsum(_tokens(row, "uptrain") for _, (_, row) in scored),
    )


def _worse(results: Results, row: Row, sign: float) -> Estimate:
    """The main score of a row, turned where needed so that more is worse."""
    found = results.estimates.of(row, "quality")
    assert found, "only rows with a score are compared"
    influence = {name: sign * each for name, each in found.influence.items()}
    return replace(found, value=sign * found.value, influence=influence)


def _tokens(row: Row, kind: str) -> float:
    return float(row.get(f"{kind}.tokens") or 0.0)


def mean_excess(values_RV: Floats) -> Floats:
    """`[R]`, of the first half of the columns over the second."""
    cuts_RV, separates_RV = np.split(values_RV, 2, axis=1)
    return np.asarray((cuts_RV - separates_RV).mean(1))


def rank_correlation(values_RV: Floats) -> Floats:
    """`[R]`: Kendall's tau-b between the first half of the columns and the second; NaN where all of one half are equal,
    and for fewer than two."""
    cuts_RV, separates_RV = np.split(values_RV, 2, axis=1)
    i, j = np.triu_indices(cuts_RV.shape[1], 1)
    x_RP, y_RP = (np.sign(each[:, i] - each[:, j]) for each in (cuts_RV, separates_RV))
    with np.errstate(invalid="ignore"):
        return np.asarray((x_RP * y_RP).sum(1) / np.sqrt((x_RP != 0).sum(1) * (y_RP != 0).sum(1)))


def _share(cuts: Sequence[Estimate], separates: Sequence[Estimate], untouched: Sequence[Estimate]) -> Interval | None:
    def share(values_RV: Floats) -> Floats:
        cuts_RV, separates_RV, untouched_RV = np.split(values_RV, 3, axis=1)
        return np.asarray((cuts_RV - separates_RV).mean(1) / (separates_RV - untouched_RV).mean(1))

    # The untouched base is one row, whose draws all layouts share.
    alone = list({each.content: each for each in untouched}.values())
    place = {each.content: number for number, each in enumerate(alone)}
    columns = [*range(2 * len(cuts)), *(2 * len(cuts) + place[each.content] for each in untouched)]
    every = [*cuts, *separates, *alone]
    values_V = np.array([[each.value for each in every]])
    return _interval(share, values_V[:, columns], bootstrap.draws(every)[:, columns])


def _interval(statistic: Callable[[Floats], Floats], values_V: Floats, drawn_RV: Floats) -> Interval | None:
    value, drawn_R = float(statistic(values_V)[0]), statistic(drawn_RV)
    drawn_R = drawn_R[~np.isnan(drawn_R)]
    if math.isnan(value) or not len(drawn_R):
        return None
    low, high = bootstrap.interval(drawn_R)
    return Interval(value, float(low), float(high))
