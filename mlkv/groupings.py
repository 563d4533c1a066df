"""Layouts that no pattern makes: groups of neighbouring layers of any sizes, and layouts drawn at random.

`L` layers, `M` groups. Needs the standard library alone: plans use it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations
from math import gcd

from .layout import KVLayout, Sources, divisors, from_owners

SEED = 20261126
"""Of the draws. Another one would give every number another layout."""
MOST_TRIES = 2_000
"""Draws without a new layout, after which there is taken to be none."""


def of_sizes(sizes: tuple[int, ...]) -> Sources:
    """Groups of so many layers each, lowest first, that read the keys and values of their lowest layer."""
    return from_owners(sum(sizes), (sum(sizes[:group]) for group in range(len(sizes))))


def sizes_of(sources: Sources) -> tuple[int, ...] | None:
    """`of_sizes` backwards; None for other sources."""
    owners = [layer for layer, source in enumerate(sources) if layer == source]
    if not owners or sources != from_owners(len(sources), owners):
        return None
    return tuple(end - start for start, end in zip(owners, [*owners[1:], len(sources)], strict=True))


def groupings(layers: int, groups: int | None = None) -> Iterator[tuple[int, ...]]:
    """Sizes of all 2^(L-1) ways to cut the layers into groups of neighbours, or of those into `groups` groups; most
    groups first, and among them small groups first."""
    for number in range(layers, 0, -1) if groups is None else [groups]:
        for cuts in combinations(range(1, layers), number - 1):
            yield tuple(end - start for start, end in zip((0, *cuts), (*cuts, layers), strict=True))


def drawn(base: KVLayout, number: int) -> KVLayout:
    """The layout with this number (from 0) in one endless draw of layouts that are not groups of neighbours and whose
    owners do not all have equally many heads, each once.

    A layer above the first is an owner with probability 1/2, or else reads any owner below it; an owner's heads are any
    number that the base's can be merged into. Raises ValueError where there are no so many layouts.
    """
    choices, seen = divisors(gcd(*base.keys.kv_heads)), set[KVLayout]()
    generator, tries = random.Random(SEED), 0
    while tries < MOST_TRIES:
        tries += 1
        layout = _draw(generator, base, choices)
        if sizes_of(layout.kv_source_layers) or len(set(layout.kv_heads)) == 1 or layout in seen:
            continue
        if len(seen) == number:
            return layout
        seen.add(layout)
        tries = 0
    raise ValueError(
        f"draw = {number}: there are {len(seen)} layouts to draw on {base.layers} layers of {choices[-1]} KV heads"
        + (f"; 0 to {len(seen) - 1}" if seen else "")
    )


def _draw(generator: random.Random, base: KVLayout, choices: list[int]) -> KVLayout:
    owners, sources = [0], [0]
    for layer in range(1, base.layers):
        # randrange alone: what other functions make of the generator differs between versions of Python.
        if generator.randrange(2):
            owners.append(layer)
        sources.append(layer if owners[-1] == layer else owners[generator.randrange(len(owners))])
    return KVLayout(tuple(sources), tuple(choices[generator.randrange(len(choices))] for _ in owners), base.heads)
