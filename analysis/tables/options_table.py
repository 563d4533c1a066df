"""The table of options: what each swept value of a recipe does, over all layouts and for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analysis.data.metrics import Metric, fixed
from analysis.statistics.compare import corrected_p
from analysis.statistics.estimate import ALPHA, Difference
from analysis.statistics.options import Level, Option, options
from analysis.statistics.sources import Source
from analysis.tables.columns import WITHIN_NOISE
from analysis.tables.table import BEST, Cell, Column, Table, make_table

MOST_LAYOUTS = 8
"""That have a column of their own."""


def options_table(source: Source, published: Source | None = None) -> Table | None:
    """A row for every value of every option; None where nothing but layouts and seeds is swept and scored."""
    metric = source.results.estimates.metric("quality")
    found = options(source)
    if not found or metric is None:
        return None
    levels = [(option, level) for option in found for level in option.levels]
    layouts = list(dict.fromkeys(name for option in found for name in option.layouts))
    columns = [
        Column("option", "name", [Cell(_text(option, level)) for option, level in levels]),
        Column("comparisons", "shape", [Cell(str(option.groups), option.groups) for option, _ in levels]),
        Column(f"mean {metric.arrow}", "score", [_score(level.mean, metric) for _, level in levels]),
        Column("behind the best", "difference", [cell for option in found for cell in _behind(option, metric)]),
        Column("best for", "part", [_best_for(option, level) for option, level in levels]),
        *(_of_layout(name, found, metric) for name in layouts if len(layouts) <= MOST_LAYOUTS),
    ]
    notes = [*_WORDS, *(line for option in found for line in _wanted(option))]
    return make_table(columns, baselines=[None] * len(levels), states=["DONE"] * len(levels), notes=notes)


_WORDS = (
    "comparisons: groups of variants that differ in nothing but this option, and have all of its values; mean and "
    "differences are over them; ±: half of the 95 % interval over seeds and samples",
    f"{WITHIN_NOISE.strip()}: within noise of the best, corrected for the number of values (Holm)",
    f"best for: layouts for which the value is the best, by the mean over their other settings; {BEST}: within noise "
    "of the best for this layout",
)


def _text(option: Option, level: Level) -> str:
    return " ".join(f"{key}={value}" for key, value in zip(option.keys, level.value, strict=True))


def _score(value: float, metric: Metric, *, best: bool = False) -> Cell:
    return Cell(fixed(value * metric.scale, metric.digits), value, best)


def _behind(option: Option, metric: Metric) -> Iterator[Cell]:
    differences = [level.behind for level in option.levels]
    corrected = corrected_p([None if each.value == 0 else each.p for each in differences])
    for each, p in zip(differences, corrected, strict=True):
        if each.value == 0:
            yield Cell("best", 0.0)
        else:
            yield _difference(each, p, metric)


def _difference(each: Difference, p: float | None, metric: Metric) -> Cell:
    text = fixed(each.value * metric.scale, metric.digits + 1, "+")
    if each.interval is not None:
        reach = (each.interval[1] - each.interval[0]) / 2
        text += f" ± {fixed(reach * metric.scale, metric.digits + 1)}"
    mark = WITHIN_NOISE if p is not None and p > ALPHA else ""
    return Cell(text + mark, each.value, stderr=each.error)


def _best_for(option: Option, level: Level) -> Cell:
    wins = sum(difference.value == 0 for _, difference in level.of_layout.values())
    return Cell(f"{wins} of {len(option.layouts)}", wins)


def _of_layout(name: str, found: Sequence[Option], metric: Metric) -> Column:
    return Column(name, "part", [cell for option in found for cell in _cells(name, option, metric)])


def _cells(name: str, option: Option, metric: Metric) -> list[Cell]:
    if name not in option.layouts:
        return [Cell("")] * len(option.levels)
    scored = [level.of_layout[name] for level in option.levels]
    best = [difference.value == 0 or (difference.p or 0.0) > ALPHA for _, difference in scored]
    return [
        _score(mean, metric, best=is_best and not all(best)) for (mean, _), is_best in zip(scored, best, strict=True)
    ]


def _wanted(option: Option) -> Iterator[str]:
    """Whether layouts that cache less want more of it."""
    found = option.with_bytes
    if found is not None:
        yield (
            f"{option.keys[0]}: the value that is best for a layout and the bytes that it caches, Spearman's rho "
            f"{found.value:+.2f} (95 % interval {found.low:+.2f} to {found.high:+.2f}); below 0: the less a layout "
            "caches, the higher its best value"
        )
