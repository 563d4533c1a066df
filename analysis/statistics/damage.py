"""What a layout costs against the untouched base: by distance, and by domain.

Damage is a difference of two scores over the same samples, turned so that more is worse: nats that are added, or
accuracy that is lost.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.data.frame import Row
from analysis.data.metrics import METRICS, Metric, task_label
from analysis.statistics.columns import is_converted
from analysis.statistics.estimate import Difference, difference
from analysis.statistics.results import Results

DOMAINS = ("domain_code", "domain_prose", "domain_recall")
"""Tasks of which each is a domain."""
_BASELINES = ("untouched", "mha")
"""The untouched base before the one that was trained equally: damage is what sharing and its repair cost together."""
_MEMBER = re.compile(r"(?P<task>[^/]+)/(?P<kind>.*)_(?P<distance>\d+)\.(?P<metric>[^./]+)")


@dataclass(frozen=True)
class Damage:
    """In the metric's printed unit, with the ends of its 95 % interval, None where no error is known."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Line:
    """A layout's damage by distance, or by task."""

    variant: str
    family: str | None
    bytes: float | None
    damage: dict[int, Damage]


@dataclass(frozen=True)
class ByDistance:
    """The damage in one task's score. `beyond`: distances that are farther than a row of the corpus, and extrapolated.
    `baseline` is the row that all are compared with, or the first of several sources' own; `paired` whether that is on
    the same samples."""

    task: str
    metric: Metric
    lines: list[Line]
    beyond: set[int]
    baseline: Row
    paired: bool

    @property
    def distances(self) -> list[int]:
        return sorted({distance for line in self.lines for distance in line.damage})


@dataclass(frozen=True)
class ByDomain:
    """The damage in several tasks: a line's numbers are places in `domains`."""

    domains: list[str]
    metric: Metric
    lines: list[Line]
    baseline: Row
    paired: bool


def by_distance(results: Results) -> list[ByDistance]:
    """Of every task whose members are called by a distance, `NAME_64`, at two distances or more; in the metric that
    METRICS has first."""
    found = [_by_distance(results, task, members) for task, members in _members(results).items()]
    return [each for each in found if each]


def by_domain(results: Results) -> ByDomain | None:
    """Of the tasks in DOMAINS that are scored. None without one."""
    metric = "nats_per_token"
    columns = [column for task in DOMAINS if (column := f"{task}.{metric}") in results.frame]
    base = _baseline(results, columns)
    lines = _lines(results, dict(enumerate(columns)), METRICS[metric], base) if base else []
    if base is None or not lines:
        return None
    labels = [task_label(column.rpartition(".")[0]) for column in columns]
    return ByDomain(labels, METRICS[metric], lines, base, _is_paired(results, columns))


Members = dict[str, dict[int, tuple[str, str]]]
"""By metric and distance: the kind of the member and its column."""


def _members(results: Results) -> dict[str, Members]:
    """By task. A task with a member of another form is none of distances."""
    found: dict[str, Members] = defaultdict(lambda: defaultdict(dict))
    others = set()
    for name in map(str, results.frame):
        if not name.endswith("_missing") or is_converted(column := name.removesuffix("_missing")) or "/" not in column:
            continue
        if match := _MEMBER.fullmatch(column):
            task, kind, distance, metric = match.group("task", "kind", "distance", "metric")
            found[task][metric][int(distance)] = kind, column
        else:
            others.add(column.partition("/")[0])
    return {task: members for task, members in found.items() if task not in others}


def _by_distance(results: Results, task: str, members: Members) -> ByDistance | None:
    name = next((name for name in METRICS if len(members.get(name, ())) > 1), None)
    if name is None:
        return None
    columns = {distance: column for distance, (_, column) in sorted(members[name].items())}
    base = _baseline(results, [*columns.values()])
    lines = _lines(results, columns, METRICS[name], base) if base else []
    if base is None or not lines:
        return None
    beyond = {distance for distance, (kind, _) in members[name].items() if kind == "beyond"}
    return ByDistance(task, METRICS[name], lines, beyond, base, _is_paired(results, [*columns.values()]))


def _baseline(results: Results, columns: Sequence[str]) -> Row | None:
    rows = results.compared_rows()
    scored = [row for row in rows if any(row.get(column) is not None for column in columns)]
    return next((row for kind in _BASELINES for row in scored if row["baseline"] == kind), None)


def _lines(results: Results, columns: dict[int, str], metric: Metric, base: Row) -> list[Line]:
    """Without those that have no damage, from the largest cache to the smallest."""
    lines = []
    for row in results.rows():
        if row["variant"] == base["variant"]:
            continue
        own = _base_of(row, base, results)
        damage = {number: found for number, column in columns.items() if (found := _damage(results, row, own, column))}
        if damage:
            lines.append(Line(row["variant"], row["family"], row["kv_bytes_per_token"], damage))
    return sorted(lines, key=lambda line: -(line.bytes or 0.0))


def _base_of(row: Row, base: Row, results: Results) -> Row:
    """A row's own baseline of the same kind, where results have several."""
    name = row.get(base["baseline"])
    return next((each for each in results.compared_rows() if each["variant"] == name), base)


def _damage(results: Results, row: Row, base: Row, column: str) -> Damage | None:
    ours, theirs = results.estimates.of(row, column), results.estimates.of(base, column)
    metric = METRICS[column.rpartition(".")[2]]
    if ours is None or theirs is None:
        return None
    found: Difference = difference(theirs, ours) if metric.higher_is_better else difference(ours, theirs)
    low, high = found.interval or (None, None)
    scaled = (None if each is None else each * metric.scale for each in (low, high))
    return Damage(found.value * metric.scale, *scaled)


def _is_paired(results: Results, columns: Sequence[str]) -> bool:
    return any(results.estimates.is_paired(results.compared_rows(), column) for column in columns)
