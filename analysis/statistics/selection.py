"""Some rows of results: all that is compared is compared among them anew, and what is drawn is drawn of them alone."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import replace

from analysis.data.frame import Row
from analysis.statistics.results import Results
from analysis.statistics.sources import Part, Source, row_names
from sweeps.store.errors import choices
from sweeps.store.store import SavedSweep

NAMES = (
    "variant",
    "label",
    "source",
    "baseline",
    "family",
    "pattern",
    "kv_layers",
    "kv_heads",
    "budget",
    "kv_bytes_per_token",
    "cache",
    "parameters",
    "quality",
    "accuracy",
    "tokens_per_second",
    "seeds",
    "state",
)
"""What an expression may ask of a row: columns of the results; `label` is the variant's name too."""


def select(source: Source, rows: Collection[str], remark: str) -> Source:
    """These rows of the source's results, in their order. `remark` says what was selected."""
    wanted = set(rows)
    names = source.table["replicate_of"].fillna(source.table["variant"])
    return replace(
        source,
        table=source.table[names.isin(wanted)].reset_index(drop=True),
        sweep=_narrowed(source.sweep, {each.variant.variant for each in source.planned if each.row in wanted}),
        parts=tuple(_of_part(part, wanted) for part in source.parts),
        whole=source,
        remarks=(*source.remarks, remark),
    )


def _of_part(part: Part, wanted: Collection[str]) -> Part:
    own = [name for name in row_names(part.source.table) if part.name(name) in wanted]
    return replace(part, source=replace(select(part.source, own, ""), remarks=part.source.remarks))


def _narrowed(sweep: SavedSweep | None, labels: Collection[str]) -> SavedSweep | None:
    """The plan of these variants alone."""
    if sweep is None:
        return None
    variants = [variant for variant in sweep.variants if variant.variant in labels]
    needed = {id for variant in variants for id in variant.steps.ids}
    steps = {id: step for id, step in sweep.plan.steps.items() if id in needed}
    return replace(sweep, variants=variants, plan=replace(sweep.plan, steps=steps))


def matching(source: Source, globs: Sequence[str]) -> list[str]:
    """The rows whose label matches any of the globs. Where several sources were put together, a label may be given as
    its own source has it, and with the source before it. Raises ValueError for a glob that matches none."""
    labels = _labels(source)
    found: dict[str, None] = {}
    for glob in globs:
        matches = [
            row for row, names in labels.items() if glob in names or any(fnmatch.fnmatchcase(n, glob) for n in names)
        ]
        if not matches:
            raise ValueError(f"variants = {glob}: matches no variant of {source.name}; {choices(glob, labels)}")
        found |= dict.fromkeys(matches)
    return [row for row in labels if row in found]


def _labels(source: Source) -> dict[str, set[str]]:
    """Row → all that it is called."""
    labels = {name: {name, f"{source.name}/{name}"} for name in row_names(source.table)}
    for part in source.parts:
        for name in row_names(part.source.table):
            labels[part.name(name)] |= {name, f"{part.source.name}/{name}"}
    return labels


def facts(source: Source) -> list[Row]:
    """What an expression can ask of each row, by the names in NAMES."""
    return [_facts(row, source.name) for row in source.results.rows()]


def _facts(row: Row, source: str) -> Row:
    found = {name: row.get(name) for name in NAMES}
    heads = str(row["kv_heads"] or "").split()
    if heads and all(each.isdigit() for each in heads):
        found["kv_heads"] = int(heads[0]) if len(heads) == 1 else [int(each) for each in heads]
    return found | {"label": row["variant"], "source": row.get("source") or source, "baseline": row["baseline"] or ""}


def hidden_references(results: Results) -> str | None:
    """A line on the baselines that rows differ from and that are not among them."""
    if not results.references:
        return None
    names = ", ".join(str(row["variant"]) for row in results.references)
    return f"differences are from {names}, not shown here"
