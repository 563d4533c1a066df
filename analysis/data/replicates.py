"""Several seeds of one layout: which variants they are, and the one row that replaces them."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from analysis.data import signatures
from analysis.data.states import severity
from sweeps.store.schema import VariantRow

if TYPE_CHECKING:
    from analysis.data.frame import Row  # with pandas, which `mlkv plan` does without

SEEDS = ("base.seed", "calibrate.seed", "teacher.seed", "elastic.seed", "convert.seed", "uptrain.seed")
"""Variants that differ only in these are repetitions of one another."""
_IN_LABEL = re.compile(rf" (?:{'|'.join(map(re.escape, SEEDS))})=\S+")

Members: TypeAlias = "Mapping[str, Sequence[Row]]"


def groups(variants: Sequence[VariantRow]) -> dict[str, str]:
    """Variants of a plan that are repetitions → the name of the row that stands for them: their label without the seed.

    Repetitions have the same role, layout and swept values, apart from the seeds. A layout may be swept under several
    keys (`layout.budget`, `layout.pattern`) that give the same one, so that the layout itself is compared. Variants
    whose seeds are the same too are not repetitions: they differ in something that the plan does not record.
    """
    members: dict[str, list[str]] = defaultdict(list)
    seeds: dict[str, set[str]] = defaultdict(set)
    for variant in variants:
        swept = {k: v for k, v in variant.overrides.items() if k not in SEEDS and not k.startswith("layout")}
        key = repr((variant.baseline, variant.layout, sorted(swept.items())))
        members[key].append(variant.variant)
        seeds[key].add(repr([variant.overrides.get(name) for name in SEEDS]))
    repeated = [labels for key, labels in members.items() if len(labels) == len(seeds[key]) > 1]
    names = [_IN_LABEL.sub("", labels[0]) for labels in repeated]
    taken = Counter(names) + Counter(variant.variant for variant in variants)
    return {
        label: name if taken[name] == 1 else labels[0]
        for labels, name in zip(repeated, names, strict=True)
        for label in labels
    }


def merge(rows: Iterable[Row], scores: Sequence[str]) -> tuple[list[Row], Members]:
    """A row for every layout, in the order of their first seeds, and the variants' rows behind each.

    Each of `scores` is the mean over the seeds that have it, with the standard error of that mean: s/√n, or the error
    of one seed where all agree to the last digit and have no spread. The costs of their steps are summed, each step
    once, and the state is the most severe one."""
    layouts: dict[str, list[Row]] = {}
    for row in rows:
        layouts.setdefault(row["replicate_of"] or row["variant"], []).append(row)
    merged = [_row(label, seeds, scores) for label, seeds in layouts.items()]
    members = {row["variant"]: seeds for row, seeds in zip(merged, layouts.values(), strict=True)}
    label_of = {seed["variant"]: label for label, seeds in members.items() for seed in seeds}
    for row in merged:
        row |= {baseline: label_of.get(row[baseline], row[baseline]) for baseline in ("untouched", "mha")}
    return merged, members


def _row(label: str, seeds: list[Row], scores: Sequence[str]) -> Row:
    own = [row["quality"] for row in seeds if row["quality"] is not None]
    counts = {"seeds": len(own), "seeds_planned": len(seeds)}
    if len(seeds) == 1:
        return {**seeds[0], **counts}
    row = {**seeds[0], "variant": label, **counts}
    for name in scores:
        row |= _score(name, seeds)
    row["signatures"] = signatures.joined(sign for seed in seeds for sign in signatures.split(seed["signatures"]))
    unfinished = [seed for seed in seeds if seed["reason"] is not None]
    if unfinished:
        worst = min(unfinished, key=lambda seed: severity(seed["state"]))
        row |= {"state": worst["state"], "reason": worst["reason"]}
    row |= next((_measured(seed) for seed in seeds if seed["tokens_per_second"] is not None), {})
    row |= spent({step: cost for seed in seeds for step, cost in seed["costs"].items()})
    return row | {"peak_memory_bytes": max((s["peak_memory_bytes"] or 0 for s in seeds), default=0) or None}


def spent(costs: Mapping[str, Row]) -> Row:
    """Seconds of steps, each counted once."""
    found: Row = {}
    for name in ("wall_seconds", "device_seconds"):
        known = [cost[name] for cost in costs.values() if cost[name] is not None]
        found[name] = math.fsum(known) if known else None
    return found


def _measured(seed: Row) -> Row:
    """Seeds of one layout share one measurement."""
    return {
        name: value for name, value in seed.items() if name.startswith(("measured_", "tokens_per_second", "machine"))
    }


def _score(name: str, seeds: list[Row]) -> Row:
    """Mean and standard error over the seeds; of a single one, its own."""
    found = [seed for seed in seeds if seed[name] is not None]
    if not found:
        return {}
    values = [seed[name] for seed in found]
    mean, error = mean_of(values) if len(found) > 1 else (values[0], None)
    if not differ(values):
        error = max((seed[f"{name}_stderr"] for seed in found if seed[f"{name}_stderr"] is not None), default=None)
    return {name: mean, f"{name}_stderr": error, f"{name}_missing": None, f"{name}_seeds": len(found)}


def differ(values: Sequence[float]) -> bool:
    """Whether seeds have a spread, larger than the rounding of their last digits."""
    return not math.isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-12)


def mean_of(values: Sequence[float]) -> tuple[float, float]:
    """The mean of two values or more, and its standard error s/√n."""
    n = len(values)
    mean = math.fsum(values) / n
    spread = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, math.sqrt(spread / n)
