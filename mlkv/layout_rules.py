"""Rules by which a searched layout places owners, from what is measured of a base. Each is a row of LAYOUT_RULES.

`L` layers, `M` owners. Needs the standard library alone: plans use it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from . import rules
from .groupings import SEED, groupings, of_sizes
from .layout import KVLayout, Sources, from_owners
from .patterns import sources_of, with_heads
from .registry import Registry
from .rules import Cost

SEARCHED = "searched"
"""The pattern of a layout whose owners a rule places."""
PLACED = ("even", "cla", "keep_ends", "dense_front", "dense_back", "pizza", "sandwich")
"""Patterns that are rules too: they place owners and need nothing measured."""
DAMAGE = "damage"
UNLIKE = (
    "cka_keys",
    "cka_values",
    "attention_divergence",
    "cosine_keys",
    "cosine_values",
    "distance",
    "cka_unrotated_keys",
)
"""The measures of a similarity step (mlkv/similarity), as costs: the more unlike, the more."""

Matrices = Mapping[str, Cost]
"""By measure; `cost[i][j]` is of layer `j` that reads layer `i`."""
Place = Callable[[int, int, Matrices], Sources]
"""From `L`, `M` and the matrices to the layer that each layer reads. Raises ValueError for an `M` that it has no layout
for."""
Candidates = Callable[[int, int, int], list[Sources]]
"""From `L`, `M` and how many to take at most to the sources of candidates, the most likely first."""
Size = tuple[int, int]
"""`M`, and the heads of each owner."""


@dataclass(frozen=True)
class LayoutRule:
    """How owners are placed: by a function, or as the best of some candidates, each converted and scored untrained.

    measures: the matrices that `place` reads, of a similarity step.
    values: places the owners of values, where they are other layers than those of keys.
    """

    place: Place | None = None
    measures: tuple[str, ...] = ()
    values: Place | None = None
    candidates: Candidates | None = None

    def __post_init__(self) -> None:
        if (self.place is None) == (self.candidates is None):
            raise ValueError("a layout rule has either a function that places owners, or candidates")


def _first(measure: str, sign: int, layers: int, owners: int, matrices: Matrices) -> Sources:
    return of_sizes(rules.greedy(_signed(matrices[measure], sign), owners))


def _in_all(measure: str, sign: int, layers: int, owners: int, matrices: Matrices) -> Sources:
    return of_sizes(rules.cheapest(_signed(matrices[measure], sign), owners))


def _below(measure: str, sign: int, layers: int, owners: int, matrices: Matrices) -> Sources:
    return rules.any_below(_signed(matrices[measure], sign), owners)


def _signed(cost: Cost, sign: int) -> Cost:
    return cost if sign > 0 else rules.negative(cost)


_WAYS = {"first": _first, "in_all": _in_all, "below": _below}


def _of_measures(words: Mapping[str, int], measures: Iterable[str]) -> Iterator[tuple[str, LayoutRule]]:
    for measure in measures:
        for word, sign in words.items():
            for way, function in _WAYS.items():
                place = partial(function, measure, sign)
                yield f"{word}_{way}_{measure}", LayoutRule(place, (measure,))


def _apart(words: Mapping[str, int], measures: Iterable[str]) -> Iterator[tuple[str, LayoutRule]]:
    """Owners of keys by the measure of keys, those of values by that of values."""
    for measure in measures:
        keys, values = f"{measure}_keys", f"{measure}_values"
        for word, sign in words.items():
            for way, function in _WAYS.items():
                place = partial(function, keys, sign), partial(function, values, sign)
                yield f"{word}_{way}_{measure}_apart", LayoutRule(place[0], (keys, values), place[1])


def _patterned(pattern: str, layers: int, owners: int, matrices: Matrices) -> Sources:
    return sources_of(pattern, layers, owners)


def grouped(layers: int, owners: int, most: int) -> list[Sources]:
    """All ways to cut the layers into groups of neighbours that read their lowest layer; where there are more than
    `most`, those that patterns make, and then groups drawn at random, always the same."""
    if math.comb(layers - 1, owners - 1) <= most:
        return [of_sizes(sizes) for sizes in groupings(layers, owners)]
    found: dict[Sources, None] = {}
    for pattern in PLACED:
        with suppress(ValueError):  # it has none of so many owners
            found[sources_of(pattern, layers, owners)] = None
    generator = random.Random(SEED)
    while len(found) < most:
        others = list(range(1, layers))
        chosen = [0, *(others.pop(generator.randrange(len(others))) for _ in range(owners - 1))]
        found[from_owners(layers, chosen)] = None
    return list(islice(found, most))


_LIKE, _COST = {"similar": 1, "dissimilar": -1}, {"cheapest": 1}
LAYOUT_RULES = Registry(
    "layout rule",
    {
        "untrained": LayoutRule(candidates=grouped),
        **dict(_of_measures(_LIKE, UNLIKE)),
        **dict(_of_measures(_COST, (DAMAGE,))),
        **dict(_apart(_LIKE, ("cka", "cosine"))),
        **{pattern: LayoutRule(partial(_patterned, pattern)) for pattern in PLACED},
    },
)
"""`untrained`: the candidate whose conversion scores best before any training. `first`: joins the two neighbouring
groups that cost least, again and again. `in_all`: the groups of neighbours that cost least together. `below`: a layer
reads any owner below it. `dissimilar_first_distance` is KVSharer's measure and order (arXiv 2410.18517) among
neighbours, `dissimilar_below_distance` among all layers."""


def placed(name: str, sizes: Iterable[Size], base: KVLayout, matrices: Matrices) -> KVLayout:
    """The layout of a rule that needs no candidates, of the first of these sizes that it has one for. Raises
    ValueError."""
    rule, fault = LAYOUT_RULES.choose(name), ""
    assert rule.place, "it has candidates"
    for measure in rule.measures:
        if measure not in matrices:
            raise ValueError(
                f"layout.rule = {name}: reads {measure}, and the base's similarity step has {', '.join(matrices)}"
            )
    for owners, heads in sizes:
        with LAYOUT_RULES.running(name, ValueError):
            try:
                sources = tuple(rule.place(base.layers, owners, matrices))
                values = tuple(rule.values(base.layers, owners, matrices)) if rule.values else None
            except ValueError as error:
                fault = fault or f"layout.rule = {name}: {str(error).removeprefix('layout.')}"
                continue
        return _checked(name, sources, values, (owners, heads), base)
    raise ValueError(fault)


def candidates(name: str, sizes: Iterable[Size], base: KVLayout, most: int) -> list[KVLayout]:
    """At most so many layouts of these sizes, each size with an equal share. Raises ValueError."""
    rule, every = LAYOUT_RULES.choose(name), list(sizes)
    assert rule.candidates, "it places owners by itself"
    found: dict[KVLayout, None] = {}
    # The sizes with the fewest layouts first: what they leave of their share is the others'.
    for done, (owners, heads) in enumerate(sorted(every, key=lambda size: math.comb(base.layers - 1, size[0] - 1))):
        share = (most - len(found)) // (len(every) - done)
        with LAYOUT_RULES.running(name, ValueError):
            taken = rule.candidates(base.layers, owners, max(share, 1))
        found |= dict.fromkeys(_checked(name, tuple(each), None, (owners, heads), base) for each in taken)
    return list(found)[:most]


def variations(layout: KVLayout, choices: Sequence[int]) -> list[KVLayout]:
    """A layout, and those in which one owner has another number of heads with which the others can make up the same
    total. Raises ValueError where keys and values are apart."""
    if layout.apart:
        raise ValueError("layout.spread: keys and values apart have equally many heads in each owner; choose equal")
    total, of_others = sum(layout.kv_heads), {0}
    for _ in layout.kv_heads[1:]:
        of_others = {some + heads for some in of_others for heads in choices if some + heads < total}
    changed = [
        (*layout.kv_heads[:owner], heads, *layout.kv_heads[owner + 1 :])
        for owner, own in enumerate(layout.kv_heads)
        for heads in choices
        if heads != own and total - heads in of_others
    ]
    return [layout, *(replace(layout, kv_heads=heads) for heads in changed)]


def spread(scores: Mapping[KVLayout, float], layout: KVLayout) -> KVLayout:
    """The layout with as many heads in all, whose owners have those numbers of them that lose least in sum, by what
    each change alone loses (`variations`). By dynamic programming over owners; of equals, the nearest to `layout`."""
    total = sum(layout.kv_heads)
    # By the heads that the owners so far have in all: what that loses, how many of them changed, and their heads.
    best: dict[int, tuple[float, int, tuple[int, ...]]] = {0: (0.0, 0, ())}
    for owner, own in enumerate(layout.kv_heads):
        changed = [each for each in scores if _differs(each, layout, owner)]
        losses = {own: 0.0} | {each.kv_heads[owner]: scores[each] - scores[layout] for each in changed}
        found: dict[int, tuple[float, int, tuple[int, ...]]] = {}
        for used, (loss, changes, before) in best.items():
            for heads, more in losses.items():
                way = loss + more, changes + (heads != own), (*before, heads)
                if used + heads <= total and way < found.get(used + heads, (math.inf, 0, ())):
                    found[used + heads] = way
        best = found
    return replace(layout, kv_heads=best[total][2])


def _differs(layout: KVLayout, other: KVLayout, owner: int) -> bool:
    """In the heads of this owner, and no others'."""
    pairs = zip(layout.kv_heads, other.kv_heads, strict=True)
    return [i for i, (one, another) in enumerate(pairs) if one != another] == [owner]


def _checked(name: str, sources: Sources, values: Sources | None, size: Size, base: KVLayout) -> KVLayout:
    """Raises ValueError where a rule, which may be an extension's, makes no layout of this size."""
    owners, heads = size
    for each in (sources, *([values] if values else [])):
        if len(each) != base.layers or sum(source == layer for layer, source in enumerate(each)) != owners:
            raise ValueError(f"layout.rule = {name}: gave {[*each]}, not {owners} owners on {base.layers} layers")
    return with_heads(sources, None if values == sources else values, base.heads, heads)
