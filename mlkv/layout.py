"""KV layouts: which layers compute keys and values, with how many heads, and which layer attends to whose.

`L` layers, `M` KV layers (owners), `H` query heads, `G` KV heads of an owner. MHA, GQA (arXiv 2305.13245), MQA
(1911.02150), MLKV (2406.09297), CLA (2405.12981) and the bottom-target patterns of the systematic study (2410.14442)
are all values of one type; mlkv/patterns.py has the rules that make them. This module needs the standard library alone,
so plans and tables never load torch, and checkpoints carry a copy of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NotRequired, TypedDict

Sources = tuple[int, ...]


class LatentFields(TypedDict):
    """A latent as JSON holds it."""

    ranks: list[int]
    rotary_dims: int
    shared: bool


class LayoutFields(TypedDict):
    """A layout as JSON holds it."""

    kv_source_layers: list[int]
    kv_heads: list[int]
    heads: int
    latent: NotRequired[LatentFields]
    """Left out by a layout whose owners cache keys and values."""


@dataclass(frozen=True)
class Latent:
    """What owners cache in place of keys and values (multi-head latent attention, arXiv 2405.04434): one vector, from
    which the values and the part of the keys that is not rotated are computed, and the rotated part of the keys.

    ranks: the width of that vector, one entry per owner, lowest layer first.
    rotary_dims: how many dimensions of a head its position rotates.
    shared: the KV heads of an owner have one rotated part together; else each has its own.
    Raises ValueError for numbers that no head has.
    """

    ranks: tuple[int, ...]
    rotary_dims: int
    shared: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", tuple(self.ranks))
        if any(rank < 1 for rank in self.ranks):
            raise ValueError(f"latent.ranks = {[*self.ranks]}: each is at least 1")
        if self.rotary_dims < 0 or self.rotary_dims % 2:
            raise ValueError(f"latent.rotary_dims = {self.rotary_dims}: must be even, and not negative")

    def as_dict(self) -> LatentFields:
        return {"ranks": list(self.ranks), "rotary_dims": self.rotary_dims, "shared": self.shared}

    @classmethod
    def from_dict(cls, values: LatentFields) -> Latent:
        return cls(tuple(values["ranks"]), values["rotary_dims"], values["shared"])

    def planes_size(self, kv_heads: int) -> tuple[int, int]:
        """Rotated parts of an owner of so many KV heads, and rotary planes in each."""
        return 1 if self.shared else kv_heads, self.rotary_dims // 2

    def rotary_width(self, kv_heads: int) -> int:
        """Numbers that an owner of so many KV heads caches for the rotated part of the keys."""
        return self.rotary_dims * (1 if self.shared else kv_heads)


@dataclass(frozen=True)
class KVLayout:
    """A KV layout, checked when it is made.

    kv_source_layers: `L` entries: the layer whose keys and values layer `i` attends to; an owner names itself.
    kv_heads: one entry per owner, lowest layer first.
    heads: `H`.
    latent: what owners cache in place of keys and values, if they do.
    Raises ValueError that names the layer and the rule it breaks.
    """

    kv_source_layers: Sources
    kv_heads: tuple[int, ...]
    heads: int
    latent: Latent | None = field(default=None, metadata={"later": True})
    """Left out of JSON where there is none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv_source_layers", tuple(self.kv_source_layers))
        object.__setattr__(self, "kv_heads", tuple(self.kv_heads))
        _check_sources(self.kv_source_layers)
        _check_heads(self.owners, self.kv_heads, self.heads)
        if self.latent and len(self.latent.ranks) != len(self.owners):
            raise ValueError(f"latent.ranks has {len(self.latent.ranks)} entries for {len(self.owners)} owners")

    def as_dict(self) -> LayoutFields:
        values: LayoutFields = {
            "kv_source_layers": list(self.kv_source_layers),
            "kv_heads": list(self.kv_heads),
            "heads": self.heads,
        }
        if self.latent:
            values["latent"] = self.latent.as_dict()
        return values

    @classmethod
    def from_dict(cls, values: LayoutFields) -> KVLayout:
        """`as_dict` backwards. Raises KeyError for a key that is missing, and ValueError as the class does."""
        latent = Latent.from_dict(values["latent"]) if values.get("latent") else None
        return cls(tuple(values["kv_source_layers"]), tuple(values["kv_heads"]), values["heads"], latent)

    @property
    def without_latent(self) -> KVLayout:
        """The same owners, heads and readers, with keys and values in the cache."""
        return replace(self, latent=None)

    @property
    def layers(self) -> int:
        return len(self.kv_source_layers)

    @cached_property
    def owners(self) -> tuple[int, ...]:
        """Layers that compute and cache keys and values, lowest first."""
        return tuple(i for i, source in enumerate(self.kv_source_layers) if source == i)

    @property
    def kv_layers(self) -> int:
        """`M`, the number of owners."""
        return len(self.owners)

    @property
    def budget(self) -> int:
        """Total KV heads: the number in a paper's name for the layout (MLKV-6 has 6)."""
        return sum(self.kv_heads)

    def heads_of(self, layer: int) -> int:
        """`G` of the owner that `layer` attends to."""
        return self.kv_heads[self.owners.index(self.kv_source_layers[layer])]

    def rank_of(self, layer: int) -> int:
        """The width of the latent vector that `layer` attends to. Raises ValueError for a layout without any."""
        if self.latent is None:
            raise ValueError("the layout has no latent")
        return self.latent.ranks[self.owners.index(self.kv_source_layers[layer])]

    def readers(self, owner: int) -> tuple[int, ...]:
        """Layers that attend to `owner`'s keys and values, without the owner itself."""
        return tuple(i for i, source in enumerate(self.kv_source_layers) if source == owner and i != owner)

    def kv_bytes_per_token(self, head_dim: int, element_bytes: int = 2) -> int:
        """Bytes that one token leaves in the cache: 2 · head_dim · budget · element_bytes; of a latent, the sum over
        owners of (rank + rotary width) · element_bytes."""
        sizes = (self.cached_sizes(owner, head_dim) for owner in self.owners)
        return sum(heads * (keys + values) for heads, keys, values in sizes) * element_bytes

    def cached_sizes(self, owner: int, head_dim: int) -> tuple[int, int, int]:
        """Heads that a cache has of an owner, and the widths of its keys and values there; a latent is all in keys."""
        heads = self.heads_of(owner)
        if self.latent is None:
            return heads, head_dim, head_dim
        return 1, self.latent.rotary_width(heads) + self.rank_of(owner), 0

    def draw(self) -> str:
        """One line for terminals: an owner's head count, `─` for a reader of the owner below it, `←i` for any other.
        Of a latent, the rank stands behind the head count: `6r48`."""
        cells, below = [], 0
        for i, source in enumerate(self.kv_source_layers):
            below = i if source == i else below
            cells.append(self._draw_owner(i) if source == i else "─" if source == below else f"←{source}")
        return " ".join(cells)

    def _draw_owner(self, layer: int) -> str:
        return f"{self.heads_of(layer)}{f'r{self.rank_of(layer)}' if self.latent else ''}"


def _check_sources(sources: Sources) -> None:
    if not sources:
        raise ValueError("kv_source_layers is empty: a layout has at least one layer")
    for i, source in enumerate(sources):
        if not 0 <= source <= i:
            raise ValueError(f"kv_source_layers[{i}] = {source}: a layer reads itself or a layer below it (0 to {i})")
        if sources[source] != source:
            raise ValueError(
                f"kv_source_layers[{i}] = {source}: layer {source} keeps no keys and values, it reads {sources[source]}"
            )


def _check_heads(owners: tuple[int, ...], kv_heads: tuple[int, ...], heads: int) -> None:
    if len(kv_heads) != len(owners):
        raise ValueError(
            f"kv_heads has {len(kv_heads)} entries for {len(owners)} owners (layers {', '.join(map(str, owners))})"
        )
    for owner, count in zip(owners, kv_heads, strict=True):
        if count < 1 or heads % count:
            choices = ", ".join(map(str, divisors(heads)))
            raise ValueError(f"kv_heads = {count} at layer {owner}: must divide {heads} query heads ({choices})")


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def from_owners(layers: int, owners: Iterable[int]) -> Sources:
    """Sources where every layer reads the nearest owner at or below it."""
    own, owner = set(owners), 0
    sources = []
    for i in range(layers):
        owner = i if i in own else owner
        sources.append(owner)
    return tuple(sources)


def mha(layers: int, heads: int) -> KVLayout:
    """Every layer an owner of all heads: a model without sharing."""
    return KVLayout(tuple(range(layers)), (heads,) * layers, heads)
