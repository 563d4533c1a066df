"""KV layouts: which layers compute keys and values, with how many heads, and which layer attends to whose.

`L` layers, `M` KV layers (owners), `H` query heads, `G` KV heads of an owner. MHA, GQA (arXiv 2305.13245), MQA
(1911.02150), MLKV (2406.09297), CLA (2405.12981), LCKV (2405.10637) and the other patterns of the systematic study
(2410.14442) are all values of one type; mlkv/patterns.py has the rules that make them. K and V are apart where values
have other sources or head counts than keys (FusedKV-Lite, arXiv 2512.03870; SVFormer, 2410.17897). This module needs
the standard library alone, so plans and tables never load torch, and checkpoints carry a copy of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NotRequired, TypedDict

Sources = tuple[int, ...]
Kind = Literal["k", "v"]
KINDS: tuple[Kind, Kind] = ("k", "v")
"""Keys and values, by the names of their projections."""
FORWARD_PASSES, BACKWARD_PASSES = 7, 2
"""LCKV's `m` and `b`."""


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
    value_source_layers: NotRequired[list[int]]
    """Left out where values have the sources that keys have."""
    value_heads: NotRequired[list[int]]
    """Left out where it equals `kv_heads`."""
    forward_passes: NotRequired[int]
    """Left out, like `backward_passes`, where no layer reads from above."""
    backward_passes: NotRequired[int]


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
    value_source_layers, value_heads: the same of the values alone; the two fields above are then those of the keys.
        None: as the keys', and what equals them becomes None, so that a layout is written in one way only.
    forward_passes, backward_passes: how often layers that wait for each other run on a text whose tokens come together,
        without gradients and with them (mlkv/above.py). None where no layer reads from above; where one does, None
        means LCKV's numbers.
    Raises ValueError that names the layer and the rule it breaks.
    """

    kv_source_layers: Sources
    kv_heads: tuple[int, ...]
    heads: int
    latent: Latent | None = field(default=None, metadata={"later": True})
    """Left out of JSON where there is none."""
    value_source_layers: Sources | None = field(default=None, metadata={"later": True})
    value_heads: tuple[int, ...] | None = field(default=None, metadata={"later": True})
    forward_passes: int | None = field(default=None, metadata={"later": True})
    backward_passes: int | None = field(default=None, metadata={"later": True})

    def __post_init__(self) -> None:
        sources, heads = tuple(self.kv_source_layers), tuple(self.kv_heads)
        value_sources = sources if self.value_source_layers is None else tuple(self.value_source_layers)
        value_heads = heads if self.value_heads is None else tuple(self.value_heads)
        object.__setattr__(self, "kv_source_layers", sources)
        object.__setattr__(self, "kv_heads", heads)
        object.__setattr__(self, "value_source_layers", None if value_sources == sources else value_sources)
        object.__setattr__(self, "value_heads", None if value_heads == heads else value_heads)
        _check_sources("kv_source_layers", sources)
        _check_heads("kv_heads", sources, heads, self.heads)
        if self.apart:
            self._check_values(value_sources, value_heads)
        if self.latent and len(self.latent.ranks) != len(self.owners):
            raise ValueError(f"latent.ranks has {len(self.latent.ranks)} entries for {len(self.owners)} owners")
        self._set_passes()

    def _set_passes(self) -> None:
        for name, usual, least in (("forward_passes", FORWARD_PASSES, 0), ("backward_passes", BACKWARD_PASSES, 1)):
            given = getattr(self, name)
            if given is not None and not self.reads_above:
                raise ValueError(f"{name} = {given}: no layer reads the keys and values of a layer above it")
            if given is not None and given < least:
                raise ValueError(f"{name} = {given}: must be at least {least}")
            object.__setattr__(self, name, (usual if given is None else given) if self.reads_above else None)
        if not self.reads_above:
            return
        if self.latent:
            raise ValueError("latent: layers that read from above take keys and values, not a latent; unset it")
        if self.apart:
            name = "value_heads" if self.value_source_layers is None else "value_source_layers"
            raise ValueError(
                f"{name} = {[*(getattr(self, name))]}: a layer that reads from above takes keys and values together"
            )

    def _check_values(self, sources: Sources, heads: tuple[int, ...]) -> None:
        if self.latent:
            name = "value_heads" if self.value_source_layers is None else "value_source_layers"
            raise ValueError(f"{name} = {[*getattr(self, name)]}: a latent holds keys and values together; unset one")
        if len(sources) != self.layers:
            raise ValueError(f"value_source_layers has {len(sources)} entries, kv_source_layers {self.layers}")
        _check_sources("value_source_layers", sources)
        if self.value_heads is None and len(heads) != len(owners := _owners(sources)):
            raise ValueError(
                f"value_heads is unset, and kv_heads has {len(heads)} entries for {len(owners)} owners of values "
                f"(layers {', '.join(map(str, owners))}): set value_heads"
            )
        _check_heads("value_heads", sources, heads, self.heads)

    def as_dict(self) -> LayoutFields:
        fields: LayoutFields = {
            "kv_source_layers": list(self.kv_source_layers),
            "kv_heads": list(self.kv_heads),
            "heads": self.heads,
        }
        if self.latent:
            fields["latent"] = self.latent.as_dict()
        if self.value_source_layers:
            fields["value_source_layers"] = list(self.value_source_layers)
        if self.value_heads:
            fields["value_heads"] = list(self.value_heads)
        if self.forward_passes is not None and self.backward_passes is not None:
            fields["forward_passes"], fields["backward_passes"] = self.forward_passes, self.backward_passes
        return fields

    @classmethod
    def from_dict(cls, fields: LayoutFields) -> KVLayout:
        """`as_dict` backwards. Raises KeyError for a key that is missing, and ValueError as the class does."""
        latent = Latent.from_dict(fields["latent"]) if fields.get("latent") else None
        value_sources, value_heads = fields.get("value_source_layers"), fields.get("value_heads")
        return cls(
            tuple(fields["kv_source_layers"]),
            tuple(fields["kv_heads"]),
            fields["heads"],
            latent,
            None if value_sources is None else tuple(value_sources),
            None if value_heads is None else tuple(value_heads),
            fields.get("forward_passes"),
            fields.get("backward_passes"),
        )

    @property
    def without_latent(self) -> KVLayout:
        """The same owners, heads and readers, with keys and values in the cache."""
        return replace(self, latent=None)

    @property
    def apart(self) -> bool:
        """Whether values have other sources or head counts than keys."""
        return self.value_source_layers is not None or self.value_heads is not None

    @cached_property
    def keys(self) -> KVLayout:
        """The layout in which values are shared as this one's keys are."""
        return KVLayout(self.kv_source_layers, self.kv_heads, self.heads) if self.apart else self

    @cached_property
    def values(self) -> KVLayout:
        """The layout in which keys are shared as this one's values are."""
        if not self.apart:
            return self
        return KVLayout(
            self.value_source_layers or self.kv_source_layers, self.value_heads or self.kv_heads, self.heads
        )

    @cached_property
    def reads_above(self) -> bool:
        """Whether a layer reads the keys and values of a layer above it, which is computed later."""
        given = (self.kv_source_layers, self.value_source_layers or ())
        return any(source > layer for sources in given for layer, source in enumerate(sources))

    @cached_property
    def segments(self) -> tuple[range, ...]:
        """All layers, lowest first, in runs: of layers that wait for each other, which run several times over a text,
        or of one layer that waits for none."""
        found, first = [], 0
        while first < self.layers:
            last = first
            while (highest := max(self.kv_source_layers[first : last + 1])) > last:
                last = highest
            found.append(range(first, last + 1))
            first = last + 1
        return tuple(found)

    def passes(self, tokens: int | None = None) -> int:
        """How often layers that wait for each other run over so many tokens that come together: as often as there are
        tokens gives what one token at a time gives, so never more often. None: over a long text. 1 where none wait."""
        if self.forward_passes is None or self.backward_passes is None:
            return 1
        passes = self.forward_passes + self.backward_passes
        return passes if tokens is None else min(passes, tokens)

    @property
    def prefill_cost(self) -> float:
        """What a pass over a long text costs, relative to one in which every layer runs once."""
        return sum(len(each) * (self.passes() if len(each) > 1 else 1) for each in self.segments) / self.layers

    @property
    def training_cost(self) -> float:
        """The same of a training step, in which a pass with gradients costs three times one without."""
        again = (self.forward_passes or 0) + 3 * (self.backward_passes or 0)
        return sum(len(each) * (again if len(each) > 1 else 3) for each in self.segments) / (3 * self.layers)

    @property
    def cost_of_passes(self) -> str | None:
        """In words; None where no layer reads from above."""
        if not self.reads_above:
            return None
        return (
            f"{self.forward_passes} + {self.backward_passes} passes over a text: a training step costs "
            f"{self.training_cost:.1f} times, a prompt {self.prefill_cost:.1f} times as much"
        )

    def part(self, kind: Kind) -> KVLayout:
        """`keys` or `values`."""
        return self.keys if kind == "k" else self.values

    @property
    def layers(self) -> int:
        return len(self.kv_source_layers)

    @cached_property
    def owners(self) -> tuple[int, ...]:
        """Layers that compute and cache keys and values, or one of them, lowest first."""
        own = set(_owners(self.kv_source_layers))
        return tuple(sorted(own.union(_owners(self.value_source_layers or ()))))

    @property
    def kv_layers(self) -> int:
        """`M`, the number of owners."""
        return len(self.owners)

    @property
    def budget(self) -> int | float:
        """Total KV heads: the number in a paper's name for the layout (MLKV-6 has 6). A head of keys and one of values
        make one; a float only where a half is left."""
        total = sum(self.kv_heads) + sum(self.kv_heads if self.value_heads is None else self.value_heads)
        return total / 2 if total % 2 else total // 2

    def heads_of(self, layer: int) -> int:
        """`G` of the owner that `layer` attends to. Raises ValueError where K and V are apart: `keys` and `values` have
        their own."""
        self._check_together()
        return self.kv_heads[self.owners.index(self.kv_source_layers[layer])]

    def rank_of(self, layer: int) -> int:
        """The width of the latent vector that `layer` attends to. Raises ValueError for a layout without any."""
        if self.latent is None:
            raise ValueError("the layout has no latent")
        return self.latent.ranks[self.owners.index(self.kv_source_layers[layer])]

    def readers(self, owner: int) -> tuple[int, ...]:
        """Layers that attend to `owner`'s keys and values, without the owner itself. Raises like `heads_of`."""
        self._check_together()
        return tuple(i for i, source in enumerate(self.kv_source_layers) if source == owner and i != owner)

    def cache_layer(self, owner: int) -> int:
        """The layer of a cache that holds an owner's keys and values: its own. transformers counts tokens at layer 0,
        so where that is no owner it holds those of the lowest one."""
        return 0 if owner == self.owners[0] else owner

    def _check_together(self) -> None:
        # The answer for the keys would be a wrong one for the values, which nobody might notice.
        if self.apart:
            raise ValueError("keys and values have different sources or head counts; ask layout.keys or layout.values")

    def kv_bytes_per_token(self, head_dim: int, element_bytes: int = 2) -> int:
        """Bytes that one token leaves in the cache: 2 · head_dim · budget · element_bytes; of a latent, the sum over
        owners of (rank + rotary width) · element_bytes."""
        sizes = (size for owner in self.owners for size in self.cached_sizes(owner, head_dim))
        return sum(heads * width for heads, width in sizes) * element_bytes

    def cached_sizes(self, owner: int, head_dim: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Heads and their width, of the keys and of the values that a cache has of an owner; 0 heads of what it does
        not own. A latent is all in keys."""
        if self.latent is None:
            keys, values = (self._own_heads(kind, owner) for kind in KINDS)
            return (keys, head_dim), (values, head_dim)
        return (1, self.latent.rotary_width(self.heads_of(owner)) + self.rank_of(owner)), (1, 0)

    def _own_heads(self, kind: Kind, layer: int) -> int:
        part = self.part(kind)
        return part.heads_of(layer) if layer in part.owners else 0

    def draw(self) -> str:
        """One line for terminals: an owner's head count, `─` for a reader of the owner below it, `←i` for a reader of
        another layer below, `↑i` of a layer above. Of a latent, the rank stands behind the head count: `6r48`. Keys and
        values one after the other where they are apart: `K 6 6 ─ ─  V 6 6 ←0 ←0`."""
        if self.apart:
            return f"K {self.keys.draw()}  V {self.values.draw()}"
        cells, below = [], 0
        for i, source in enumerate(self.kv_source_layers):
            below = i if source == i else below
            other = f"↑{source}" if source > i else f"←{source}"
            cells.append(self._draw_owner(i) if source == i else "─" if source == below else other)
        return " ".join(cells)

    def _draw_owner(self, layer: int) -> str:
        return f"{self.heads_of(layer)}{f'r{self.rank_of(layer)}' if self.latent else ''}"


_KEPT = {"kv_source_layers": "keys and values", "value_source_layers": "values"}


def _owners(sources: Sources) -> tuple[int, ...]:
    return tuple(i for i, source in enumerate(sources) if source == i)


def _check_sources(name: str, sources: Sources) -> None:
    if not sources:
        raise ValueError(f"{name} is empty: a layout has at least one layer")
    for i, source in enumerate(sources):
        if not 0 <= source < len(sources):
            raise ValueError(f"{name}[{i}] = {source}: a layer reads itself or another layer (0 to {len(sources) - 1})")
        if sources[source] != source:
            raise ValueError(
                f"{name}[{i}] = {source}: layer {source} keeps no {_KEPT[name]}, it reads {sources[source]}"
            )


def _check_heads(name: str, sources: Sources, kv_heads: tuple[int, ...], heads: int) -> None:
    owners = _owners(sources)
    if len(kv_heads) != len(owners):
        raise ValueError(
            f"{name} has {len(kv_heads)} entries for {len(owners)} owners (layers {', '.join(map(str, owners))})"
        )
    for owner, count in zip(owners, kv_heads, strict=True):
        if count < 1 or heads % count:
            choices = ", ".join(map(str, divisors(heads)))
            raise ValueError(f"{name} = {count} at layer {owner}: must divide {heads} query heads ({choices})")


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
