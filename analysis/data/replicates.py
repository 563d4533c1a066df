"""Several seeds of one layout: which variants they are, and the one row that stands for them."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis.data.frame import Row

SEEDS = ("base.seed", "convert.seed", "uptrain.seed")
"""Variants that differ in nothing but these are repetitions of one another."""
_IN_LABEL = re.compile(rf" (?:{'|'.join(map(re.escape, SEEDS))})=\S+")

Members = Mapping[str, Sequence[Row]]


def groups(variants: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Variants of a plan that are repetitions → what their row is called: the label they share without the seed."""
    alike: dict[str, list[str]] = defaultdict(list)
    for variant in variants:
        swept = {k: v for k, v in variant["overrides"].items() if k not in SEEDS and not k.startswith("layout")}
        alike[repr((variant["baseline"], variant["layout"], sorted(swept.items())))].append(variant["variant"])
    repeated = [members for members in alike.values() if len(members) > 1]
    names = [_IN_LABEL.sub("", members[0]) for members in repeated]
    taken = Counter(names) + Counter(variant["variant"] for variant in variants)
    return {
        member: name if taken[name] == 1 else members[0]
        for members, name in zip(repeated, names, strict=True)
        for member in members
    }


def merge(rows: Iterable[Row], scores: Sequence[str]) -> tuple[list[Row], Members]:
    """A row for every layout, in the order of their first seeds, and the variants' rows behind each.

    Of `scores` it has the mean over the seeds that have one, with the standard error of that mean (s/√n); costs are
    summed, and the state is that of the seed that is worst off.
    """
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(row["replicate_of"] or row["variant"], []).append(row)
    called = {row["variant"]: label for label, seeds in members.items() for row in seeds}
    merged = [_row(label, seeds, scores) for label, seeds in members.items()]
    for row in merged:
        row |= {baseline: called.get(row[baseline], row[baseline]) for baseline in ("untouched", "mha")}
    return merged, members


def _row(label: str, seeds: list[Row], scores: Sequence[str]) -> Row:
    own = [row["quality"] for row in seeds if row["quality"] is not None]
    counts = {"seeds": len(own), "seeds_planned": len(seeds)}
    if len(seeds) == 1:
        return {**seeds[0], **counts}
    row = {**seeds[0], "variant": label, **counts}
    for name in scores:
        row |= _score(name, seeds)
    unfinished = [seed for seed in seeds if seed["reason"] is not None]
    if unfinished:
        row |= {"state": unfinished[0]["state"], "reason": unfinished[0]["reason"]}
    for cost in ("wall_seconds", "device_seconds"):
        known = [seed[cost] for seed in seeds if seed[cost] is not None]
        row[cost] = math.fsum(known) if known else None
    return row | {"peak_memory_bytes": max((s["peak_memory_bytes"] or 0 for s in seeds), default=0) or None}


def _score(name: str, seeds: list[Row]) -> Row:
    """Mean and standard error over the seeds; of a single one, its own."""
    found = [seed for seed in seeds if seed[name] is not None]
    if not found:
        return {}
    if len(found) == 1:
        return {end: found[0][end] for end in (name, f"{name}_stderr", f"{name}_missing")}
    mean, error = _mean([seed[name] for seed in found])
    return {name: mean, f"{name}_stderr": error, f"{name}_missing": None}


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean of two values or more, and its standard error s/√n."""
    n = len(values)
    mean = math.fsum(values) / n
    spread = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, math.sqrt(spread / n)
