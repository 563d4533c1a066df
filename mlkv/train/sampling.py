"""Which layouts an elastic training is made of, and which of them each of its sequences is computed as.

Needs no torch, and no numpy before it draws: plans list the layouts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd
from typing import TYPE_CHECKING

from ..layout import KVLayout, divisors
from ..merges import check_conversion
from ..patterns import PATTERNS, make, name_of, sources_of
from ..training_recipes import ElasticRecipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_STREAM = 1
"""Tells the random numbers of the sampling from those of the data order, which have the same seed."""


def layouts_of(recipe: ElasticRecipe, base: KVLayout) -> tuple[KVLayout, ...]:
    """The base's own layout, then every other one of the recipe, most KV heads first. Raises ValueError naming the
    field for a number that the pattern or the base's heads do not allow, and where there is no other layout."""
    found = {_layout(recipe, base, *sizes) for sizes in _sizes(recipe, base)}
    found.discard(base)
    if not found:
        raise ValueError(f"kv_layers and kv_heads: give no layout but the base's own, {name_of(base)}")
    ordered = sorted(found, key=lambda layout: (-layout.budget, -layout.kv_layers, layout.kv_source_layers))
    return (base, *ordered)


def _sizes(recipe: ElasticRecipe, base: KVLayout) -> Iterator[tuple[int, int]]:
    """The KV layers, and the KV heads of each, of every layout."""
    if recipe.kv_layers and recipe.kv_heads:
        return zip(recipe.kv_layers, recipe.kv_heads, strict=True)
    kv_layers = recipe.kv_layers or [m for m in divisors(base.layers) if _has_a_layout(recipe, base, m)]
    return product(kv_layers, recipe.kv_heads or divisors(gcd(*base.kv_heads)))


def _has_a_layout(recipe: ElasticRecipe, base: KVLayout, kv_layers: int) -> bool:
    """Whether the pattern has a layout of so many KV layers whose owners have keys and values in the base."""
    with suppress(ValueError):
        return set(sources_of(recipe.pattern, base.layers, kv_layers)) <= set(base.owners)
    return False


def _layout(recipe: ElasticRecipe, base: KVLayout, kv_layers: int, kv_heads: int) -> KVLayout:
    if PATTERNS.choose(recipe.pattern).values:
        valid = ", ".join(name for name, row in PATTERNS.items() if not row.values)
        raise ValueError(f"pattern = {recipe.pattern}: has other sources for values than for keys; valid: {valid}")
    if base.apart:
        raise ValueError(f"layout {name_of(base)}: elastic training takes bases that share keys and values together")
    if base.reads_above:
        raise ValueError(f"layout {name_of(base)}: elastic training takes bases whose layers read none above them")
    layout = make(recipe.pattern, base.layers, base.heads, kv_layers, kv_heads)
    check_conversion(base, layout)
    if missing := set(layout.owners) - set(base.owners):
        raise ValueError(
            f"kv_layers = {kv_layers}: layer {min(missing)} would own keys and values, and has none in the base"
        )
    return layout


@dataclass(frozen=True)
class Sampling:
    """Which of `layouts` layouts each sequence of a training is computed as: it depends on the seed and the number of
    the sequence alone, so that a resumed run, and any number of processes, sample the same.

    Each optimizer step has `per_step` layouts, for equal parts of its batch. They are drawn without replacement until
    all have had their turn: with independent draws some would be trained much less than others in a short run.
    """

    layouts: int
    seed: int
    per_step: int
    batch_size: int

    def number_of(self, sequence: int) -> int:
        """The number of the layout of a sequence, both counted from 0."""
        step, place = divmod(sequence, self.batch_size)
        turn, rank = divmod(step * self.per_step + place * self.per_step // self.batch_size, self.layouts)
        return int(_order(self.layouts, self.seed, turn)[rank])


@lru_cache(maxsize=8)
def _order(layouts: int, seed: int, turn: int) -> NDArray[np.int64]:
    import numpy as np

    return np.random.Generator(np.random.PCG64([seed, turn, _STREAM])).permutation(layouts)
