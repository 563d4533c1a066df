"""The variants of an import with their cells: which run, measurement and line of layouts.csv belongs to which."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from analysis.data.frame import Row
from analysis.data.identity import Variant, ends_with, labels, short_names, variants
from analysis.data.layout_lines import LAYOUTS, Layout
from analysis.data.lm_eval_files import plain_path
from analysis.data.runs import Run

Pair = tuple[str, str]
"""(task, metric)."""
Measured = tuple[str, str, Row]
"""(model, file, cell)."""
Key = tuple[str, str | None, str, int | None, int | None]
"""A cell of a variant: kind, task, metric, batch, context."""
_MAX_LISTED = 40
"""The most names in a message."""


@dataclass
class Content:
    """A variant of the import, and its cells."""

    variant: Variant
    label: str = ""
    layout: Layout | None = None
    cells: dict[Key, Row] = field(default_factory=dict)

    def add(self, row: Row, file: str) -> None:
        """Raises ValueError, naming both files, for another value of a cell that is known."""
        key = row["kind"], row.get("task"), row["metric"], row.get("batch"), row.get("context")
        if (there := self.cells.get(key)) is None:
            self.cells[key] = {**row, "reason": row.get("reason") or _not_finite(row) or file, "file": file}
        elif not _same(there["value"], row["value"]):
            _, task, metric, batch, _ = key
            score = f"{task}.{metric}" if task else f"{metric} at batch {batch}"
            both = f"{_value(there)} in {there['file']} and {_value(row)} in {file}"
            raise ValueError(f"{self.label}: {score} is {both}, and nothing distinguishes the two; leave one out")
        else:
            for column in ("stderr", "n_shot"):
                if there.get(column) is None:
                    there[column] = row.get(column)

    def score(self, pair: Pair) -> Row | None:
        return self.cells.get(("evaluate", *pair, None, None))

    @property
    def scores(self) -> list[Pair]:
        return [(task, metric) for kind, task, metric, _, _ in self.cells if kind == "evaluate" and task]


def _not_finite(row: Row) -> str | None:
    return None if row["value"] is None or math.isfinite(row["value"]) else "not finite"


def _value(row: Row) -> str:
    return str(row["reason"] if row["value"] is None else row["value"])


def _same(ours: float | None, theirs: float | None) -> bool:
    return ours == theirs or (ours is not None and theirs is not None and math.isnan(ours) and math.isnan(theirs))


def contents_of(runs: Sequence[Run], measured: Sequence[Measured], layouts: Sequence[Layout]) -> list[Content]:
    """The variants in the order of the layouts, the others behind them. Raises ValueError for two values of one cell,
    and for a name that may mean several variants."""
    contents = [Content(variant) for variant in variants(runs)]
    _name(contents, layouts)
    of_model: dict[str, list[Content]] = {}
    for model, file, _ in measured:
        if model not in of_model:
            of_model[model] = _matching(model, contents, file)
    for model, meant in of_model.items():
        if not meant:
            meant.append(Content(Variant(plain_path(model), {"path": model}, [])))
            contents.append(meant[0])
    _name(contents, layouts)
    for content in contents:
        for run in content.variant.runs:
            for score in run.scores:
                content.add({"kind": "evaluate", **dataclasses.asdict(score)}, run.file)
    for model, file, cell in measured:
        of_model[model][0].add({"stderr": None, **cell}, file)
    order = {id(layout): i for i, layout in enumerate(layouts)}
    return sorted(contents, key=lambda content: order.get(id(content.layout), len(order)))


def _name(contents: Sequence[Content], layouts: Sequence[Layout]) -> None:
    """Find each variant's line of the layouts, by its label or its path, and give each a label that no other has."""
    short = short_names(content.variant.model for content in contents)
    facts = [content.variant.facts for content in contents]
    plain = labels([short[content.variant.model] for content in contents], facts)
    for content, label in zip(contents, plain, strict=True):
        content.label, content.layout = label, None
    for layout in layouts:
        for content in _of_layout(layout, contents):
            content.layout = layout
    for layout in layouts:
        for content in contents:
            if content.label == layout.model:
                content.layout = layout
    names = [c.layout.row["variant"] if c.layout else short[c.variant.model] for c in contents]
    for content, label in zip(contents, labels(names, facts), strict=True):
        content.label = label


def _of_layout(layout: Layout, contents: Sequence[Content]) -> list[Content]:
    """The variants of a line's model. Raises ValueError where several models fit."""
    meant = _by_path(layout.model, contents)
    if len(models := sorted({content.variant.model for content in meant})) > 1:
        raise ValueError(f"{LAYOUTS}, line {layout.line}: model = {layout.model}: may be {listed(models, ' or ')}")
    return meant


def _by_path(model: str, contents: Sequence[Content]) -> list[Content]:
    path = plain_path(model)
    return [c for c in contents if c.variant.model == path] or [c for c in contents if ends_with(c.variant.model, path)]


def _matching(model: str, contents: Sequence[Content], file: str) -> list[Content]:
    """The variant of a measurement. Raises ValueError where several fit."""
    meant = [content for content in contents if content.label == model]
    meant = meant or [content for content in contents if content.layout and content.layout.row["variant"] == model]
    meant = meant or _by_path(model, contents)
    if len(meant) > 1:
        raise ValueError(f"{file}: variant = {model}: may be {listed([c.label for c in meant], ' or ')}")
    return meant


def listed(words: Sequence[str], between: str = ", ") -> str:
    more = [f"and {len(words) - _MAX_LISTED} more"] if len(words) > _MAX_LISTED else []
    return between.join([*words[:_MAX_LISTED], *more])


def baselines_of(contents: Sequence[Content]) -> dict[str, dict[str, str]]:
    """Variant → role → label of its baseline: of several, the one with the same settings."""
    roles: dict[str, list[Content]] = defaultdict(list)
    for content in contents:
        if content.layout and content.layout.row.get("baseline"):
            roles[content.layout.row["baseline"]].append(content)
    return {
        content.label: {role: label for role, there in roles.items() if (label := _baseline_of(content, there))}
        for content in contents
    }


def _baseline_of(content: Content, candidates: Sequence[Content]) -> str | None:
    """The one that shares the most facts with it; none where several share as many."""
    shared = [len(content.variant.facts.items() & other.variant.facts.items()) for other in candidates]
    best = [other.label for other, count in zip(candidates, shared, strict=True) if count == max(shared)]
    return best[0] if len(best) == 1 else None
