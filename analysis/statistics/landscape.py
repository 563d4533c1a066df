"""Many layouts of one base, trained and scored in one way: what their heads and their places cost.

A layout's damage is how much worse it scores than the base's own layout, trained equally.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from analysis.data import frame
from analysis.data.frame import Row
from analysis.data.metrics import CONVERTED_PREFIX
from analysis.data.numbers import on_axis
from analysis.data.replicates import SEEDS
from analysis.statistics.columns import SOURCE
from analysis.statistics.estimate import Estimate, with_pooled_spread
from analysis.statistics.results import Results
from analysis.statistics.sources import Source
from mlkv.cache.formats import AS_COMPUTED
from mlkv.groupings import sizes_of
from mlkv.layout import Sources

Heads = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Point:
    """A layout and its scores, turned where needed so that more is worse; `converted` is the one before any training.
    `heads` has an entry for each owner, `groups` the layers of each group where its groups are of neighbours and read
    from their bottom."""

    name: str
    sources: Sources
    heads: Heads
    score: Estimate
    converted: Estimate | None

    @cached_property
    def groups(self) -> tuple[int, ...] | None:
        return sizes_of(self.sources)

    @property
    def owners(self) -> int:
        return len(self.heads)

    @property
    def budget(self) -> int:
        return sum(self.heads)

    @property
    def uniform(self) -> int | None:
        """Heads of every owner; None where they differ."""
        return self.heads[0] if len(set(self.heads)) == 1 else None


@dataclass(frozen=True, eq=False)
class Landscape:
    """Layouts of one base. `recipe` are the swept values that all share, in words; `reference` is the base's own layout
    trained equally, or the untouched base where there is none; `layers` is the number of layers, `heads` that of the
    base's KV heads in each."""

    base: str
    recipe: str
    reference: Point
    layers: int
    heads: int
    points: Sequence[Point]
    """In the order of the results, the reference among them where it is trained."""
    title: str = ""
    """What tells it from the others of the same results; empty where it is alone."""

    @property
    def grouped(self) -> Mapping[tuple[tuple[int, ...], int], Point]:
        """Those whose groups are of neighbours and whose owners have equally many heads, by both."""
        return {(p.groups, p.uniform): p for p in self.points if p.groups is not None and p.uniform is not None}


def landscapes(source: Source) -> list[Landscape]:
    """One for every base and recipe of training. Rows that save in other ways (latents, packed caches, keys and values
    apart, layers that read from above) are left out."""
    results, planned = source.results, plans(source)
    rows = [row | planned[row["variant"]] for row in results.rows() if row["variant"] in planned]
    metric = results.estimates.metric("quality")
    sign = -1.0 if metric and metric.higher_is_better else 1.0
    points = {row["variant"]: point for row in rows if _is_plain(row) and (point := _point(results, row, sign))}
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["variant"] in points and row["baseline"] != "untouched":
            groups[base_of(row), swept(row)].append(row)
    found = [
        landscape
        for (base, recipe), members in groups.items()
        if (landscape := _landscape(base, recipe, members, points))
    ]
    differing = [name for name in ("base", "recipe") if len({getattr(each, name) for each in found}) > 1]
    return [replace(each, title=" ".join(getattr(each, name) for name in differing).strip()) for each in found]


def _landscape(base: str, recipe: str, members: Sequence[Row], points: Mapping[str, Point]) -> Landscape | None:
    """None where no baseline is scored."""
    own = pooled([points[row["variant"]] for row in members])
    baselines = [row["variant"] for row in members if row["baseline"] == "mha"]
    names = [*baselines, *(row[role] for role in ("mha", "untouched") for row in members)]
    known = {**points, **{point.name: point for point in own}}
    reference = next((known[name] for name in names if name in known), None)
    if reference is None:
        return None
    return Landscape(base, recipe, reference, len(reference.sources), max(reference.heads), own)


def plans(source: Source) -> dict[str, Row]:
    """What the long table says of each row's layout and swept values, by the name that its seeds share."""
    found: dict[str, Row] = {}
    for row in frame.records(source.table.drop_duplicates("variant")):
        facts = {name: row[name] for name in ("sources", "kv_heads", "latent", "passes", "cache", "overrides")}
        found.setdefault(row["replicate_of"] or row["variant"], facts)
    return found


def swept(row: Row) -> str:
    """The swept values that are neither of the layout nor seeds."""
    words = shlex.split(row["overrides"] or "")
    return " ".join(word for word in words if not word.startswith(("layout", *SEEDS)))


def base_of(row: Row) -> str:
    """What tells bases apart: the untouched one's name, and the source where there are several."""
    return str(row["untouched"] or row.get(SOURCE) or "")


def _is_plain(row: Row) -> bool:
    saves = row["latent"] or row["passes"] or (row["cache"] or AS_COMPUTED) != AS_COMPUTED
    texts = row["sources"], row["kv_heads"]
    return not saves and all(text and "+" not in text for text in texts)


def _point(results: Results, row: Row, sign: float) -> Point | None:
    estimates = results.estimates
    score = estimates.of(row, "quality")
    if score is None or not on_axis(score.value):
        return None
    sources = tuple(map(int, row["sources"].split()))
    heads = tuple(map(int, row["kv_heads"].split()))
    owners = sum(layer == source for layer, source in enumerate(sources))
    column = f"{CONVERTED_PREFIX}{estimates.axis}"
    converted = estimates.of(row, column) if column in row else None
    return Point(
        name=row["variant"],
        sources=sources,
        heads=heads if len(heads) > 1 else heads * owners,
        score=_turned(score, sign),
        converted=_turned(converted, sign) if converted else None,
    )


def _turned(estimate: Estimate, sign: float) -> Estimate:
    influence = {name: sign * each for name, each in estimate.influence.items()}
    return replace(estimate, value=sign * estimate.value, influence=influence)


def pooled(points: Sequence[Point]) -> list[Point]:
    """The same points, whose seeds have one spread for all layouts: three seeds of one layout alone say little about
    theirs, and a single one nothing."""
    scores = with_pooled_spread([point.score for point in points])
    return [replace(point, score=score) for point, score in zip(points, scores, strict=True)]
