"""Several sources as one: a long table in which every row has its own name, its own baselines and the same main axis.

A difference is from a baseline of the variant's own source, as another sweep's may have had another base, text or
training. Where all of the sources share their base, a source without a baseline of some kind has that of another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from analysis.data import frame
from analysis.data.frame import Row
from analysis.data.states import UNPLANNED
from analysis.statistics.columns import BASELINES
from analysis.statistics.sources import Part, Source
from analysis.statistics.variant_rows import ACCURACY, NOT_PLANNED
from sweeps.store.schema import CONVERTED, VariantRow
from sweeps.store.store import SavedSweep

BETWEEN = " + "
"""Between the names of sources that share a row; no name has a space in it."""
_CELL = ("kind", "task", "metric", "batch", "context")
_SCORES = ("evaluate", CONVERTED, "measure")
"""Kinds of steps that a checkpoint does not depend on."""

_MOST_NAMES = 4
"""Baselines of a source that a remark names."""

Score = tuple[str, str | None, str | None]
"""Kind, task and metric."""


@dataclass
class _Group:
    """The variants behind one row of the results, with their cells. `weights`: variant → what its weights are made of;
    empty where that is not known."""

    name: str
    sources: list[str]
    rows: list[Row]
    weights: Mapping[str, object]

    @property
    def labels(self) -> set[str]:
        return {self.name, *(row["variant"] for row in self.rows)}

    @property
    def made_of(self) -> frozenset[object]:
        """Equal for groups of the same weights; empty where some are not known, or two variants have the same."""
        found = frozenset(self.weights.values())
        return found if len(found) == len({row["variant"] for row in self.rows}) else frozenset()

    def cells(self) -> dict[object, Row]:
        """By what they are a number of."""
        return {(self.weights[row["variant"]], *(row[key] for key in _CELL)): row for row in self.rows}

    def own_names(self, other: _Group) -> dict[str, str]:
        """The names of another group of the same weights, or of this one → the names here."""
        here = {weights: label for label, weights in self.weights.items()}
        labels = {row["variant"]: row["variant"] for row in other.rows}
        return {label: here.get(other.weights.get(label), label) for label in labels} | {other.name: self.name}


def combine(sources: Sequence[Source]) -> Source:
    """One source of several; a single one is itself. Raises ValueError where one is named twice."""
    if len(sources) == 1:
        return sources[0]
    if repeated := [name for name, times in Counter(each.name for each in sources).items() if times > 1]:
        raise ValueError(f"{repeated[0]}: is named twice")
    combined = _Combined(sources)
    return Source(
        name="+".join(source.name for source in sources),
        table=frame.make(combined.rows()),
        samples=next((source.samples for source in sources if source.samples), None),
        parts=tuple(Part(source, combined.names[source.name]) for source in sources),
        remarks=tuple(combined.remarks()),
    )


@dataclass
class _Combined:
    sources: Sequence[Source]
    groups: list[_Group] = field(default_factory=list)
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    """Source → old → new names of its rows and variants."""
    _alike: dict[frozenset[object], list[_Group]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        places = [(source.name, group, self._place(group)) for source in self.sources for group in self._groups(source)]
        taken = Counter(label for group in self.groups for label in group.labels)
        for source, group, shown in places:
            before = f"{shown.sources[0]}/" if any(taken[label] > 1 for label in shown.labels) else ""
            new = {old: f"{before}{name}" for old, name in shown.own_names(group).items()}
            self.names.setdefault(source, {}).update(new)

    def _place(self, group: _Group) -> _Group:
        """The group itself, or the one of the same weights that it has joined."""
        alike = self._alike.setdefault(group.made_of, [])
        others = (each for each in alike if not {*each.sources} & {*group.sources} and _agree(each, group))
        if group.made_of and (same := next(others, None)):
            _join(same, group)
            return same
        alike.append(group)
        self.groups.append(group)
        return group

    def _groups(self, source: Source) -> list[_Group]:
        found: dict[str, list[Row]] = {}
        for row in self._marked(source):
            found.setdefault(row["replicate_of"] or row["variant"], []).append(row)
        weights = _weights(source.sweep) if source.sweep else {}
        return [
            _Group(name, [source.name], own, {row["variant"]: weights[row["variant"]] for row in own if weights})
            for name, own in found.items()
        ]

    @cached_property
    def lead(self) -> tuple[list[Score], list[Score]]:
        """The main axis and the parts of the accuracy: those of the first source that has any."""
        for source in self.sources:
            axis, parts = (_scores(source, mark) for mark in ("in_axis", "in_accuracy"))
            if axis or parts:
                return axis, parts
        return [], []

    def _marked(self, source: Source) -> list[Row]:
        """The rows of a source with the marks of the lead. A mean of other parts is another score and left out."""
        axis, parts = self.lead
        other_mean = {*_scores(source, "in_accuracy")} != {*parts}
        rows = []
        for row in frame.records(source.table):
            if other_mean and _is_mean(row):
                continue
            score = _score(row)
            rows.append({**row, "sweep": source.name, "in_axis": score in axis, "in_accuracy": score in parts})
        return [*rows, *self._lacking(rows)]

    def _lacking(self, rows: Sequence[Row]) -> list[Row]:
        """A cell for each score of the lead that a variant has no cell of, which says why."""
        axis, parts = self.lead
        found: dict[str, dict[Score, Row]] = {}
        for row in rows:
            found.setdefault(row["variant"], {}).setdefault(_score(row), row)
        lacking = []
        for cells in found.values():
            first = next(iter(cells.values()))
            for score in dict.fromkeys([*axis, *parts]):
                if score not in cells:
                    unfinished = cells.get((*score[:2], None))  # a step has recorded nothing yet
                    marks = {"metric": score[2], "in_axis": score in axis, "in_accuracy": score in parts}
                    lacking.append({**(unfinished or _empty(first, score)), **marks})
        return lacking

    @property
    def shares_base(self) -> bool:
        """Whether all are sweeps on one base and its text."""
        bases = {(variant.steps.corpus, variant.steps.base) for variant in self._variants()}
        return len(bases) == 1 and all(source.sweep for source in self.sources)

    def rows(self) -> list[Row]:
        common = self._common_baselines() if self.shares_base else {}
        rows = []
        for group in self.groups:
            names, source = self.names[group.sources[0]], BETWEEN.join(group.sources)
            for row in group.rows:
                own = {name: names[row[name]] for name in ("variant", "replicate_of") if row[name] is not None}
                baselines = {name: names.get(row[name] or "") or common.get(name) for name in BASELINES}
                rows.append({**row, **own, **baselines, "sweep": source})
        return rows

    def _common_baselines(self) -> dict[str, str]:
        """The first baseline of each kind."""
        found: dict[str, str] = {}
        for group in self.groups:
            row = group.rows[0]
            if row["baseline"]:
                found.setdefault(row["baseline"], self.names[group.sources[0]][row["variant"]])
        return found

    def remarks(self) -> list[str]:
        """From which baselines differences are; and what is not comparable."""
        lacking = [source.name for source in self.sources if not self._has_scores(source.name)]
        named = {source: names for source, names in self._baselines().items() if source not in lacking}
        known = {source: names for source, names in named.items() if names}
        if known and len(set(named.values())) == 1:
            shared = ": all sources share the base" if len(named) > 1 else ""
            remarks = [f"differences are from {_list(next(iter(named.values())))}{shared}"]
        else:
            remarks = [f"differences of {source} are from {_list(names)}" for source, names in known.items()]
            remarks += [f"{source} has no baseline, and no difference" for source in named if source not in known]
        if len({variant.steps.corpus for variant in self._variants()}) > 1:
            remarks.append("scores on the held-out text of a corpus (bits per byte) compare within one corpus only")
        if named and lacking:
            remarks.append(f"without a score that {next(iter(named))} plans: {', '.join(lacking)}")
        return remarks

    def _has_scores(self, source: str) -> bool:
        """Whether it has any number of what the lead plans."""
        rows = (row for group in self.groups if source in group.sources for row in group.rows)
        return any(row["value"] is not None and (row["in_axis"] or row["in_accuracy"]) for row in rows)

    def _baselines(self) -> dict[str, tuple[str, ...]]:
        """Source → the baselines of its variants."""
        found: dict[str, dict[str, None]] = {source.name: {} for source in self.sources}
        for row in self.rows():
            for source in row["sweep"].split(BETWEEN):
                found[source] |= {row[name]: None for name in BASELINES if row[name] is not None}
        return {source: tuple(names) for source, names in found.items()}

    def _variants(self) -> list[VariantRow]:
        return [variant for source in self.sources if source.sweep for variant in source.sweep.variants]


def _list(names: Sequence[str]) -> str:
    return ", ".join([*names[:_MOST_NAMES], *(["…"] if len(names) > _MOST_NAMES else [])])


def _weights(sweep: SavedSweep) -> dict[str, object]:
    """Variant → the steps that make its weights, its role and the cache that it is used with."""
    return {
        variant.variant: (
            tuple(id for kind, _, id in variant.steps.each() if kind not in _SCORES),
            variant.baseline,
            variant.cache,
        )
        for variant in sweep.variants
    }


def _agree(one: _Group, other: _Group) -> bool:
    """Whether no number is there twice: a score under other settings is another number."""
    ours, theirs = one.cells(), other.cells()
    both = [(ours[key], theirs[key]) for key in ours.keys() & theirs.keys()]
    return all(a["step"] == b["step"] or a["value"] is None or b["value"] is None for a, b in both)


def _join(group: _Group, other: _Group) -> None:
    """Add the cells that only the other one has."""
    names, cells, replicate = group.own_names(other), group.cells(), group.rows[0]["replicate_of"]
    for key, row in other.cells().items():
        moved = {**row, "variant": names[row["variant"]], "replicate_of": replicate}
        if key not in cells:
            group.rows.append(moved)
        elif cells[key]["value"] is None and row["value"] is not None:
            group.rows[group.rows.index(cells[key])] = moved
    group.sources += other.sources


def _score(row: Row) -> Score:
    return row["kind"], row["task"], row["metric"]


def _scores(source: Source, mark: str) -> list[Score]:
    marked = source.table[source.table[mark].fillna(False)]
    return [_score(row) for row in frame.records(marked[["kind", "task", "metric"]].drop_duplicates())]


def _is_mean(row: Row) -> bool:
    return row["kind"] == "evaluate" and row["task"] is None and row["metric"] == ACCURACY


def _empty(row: Row, score: Score) -> Row:
    """A cell without a number. Of results from elsewhere no more will come; of a sweep it is not planned."""
    from_elsewhere = row["state"] in ("PUBLISHED", "IMPORTED")
    return {
        **{name: row[name] for name in frame.IDENTITY},
        **{name: row[name] for name in ("sweep", "model", "sources", "latent", "overrides", "approximate", "passes")},
        **{"kind": score[0], "task": score[1], "batch": None, "context": None, "value": None, "step": None},
        "state": row["state"] if from_elsewhere else UNPLANNED,
        "reason": NOT_PLANNED if from_elsewhere else f"{row['sweep']} does not plan it",
    }
