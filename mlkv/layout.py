"""KV layouts: which layers compute keys and values, with how many heads, and which layer attends to whose.

`L` layers, `M` KV layers (owners), `H` query heads, `G` KV heads of an owner. MHA, GQA (arXiv 2305.13245), MQA
(1911.02150), MLKV (2406.09297), CLA (2405.12981) and the bottom-target patterns of the systematic study (2410.14442)
are all values of one type. This module needs the standard library alone, so plans and tables never load torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

Sources = tuple[int, ...]


class LayoutFields(TypedDict):
    """A layout as JSON holds it."""

    kv_source_layers: list[int]
    kv_heads: list[int]
    heads: int


@dataclass(frozen=True)
class KVLayout:
    """A KV layout, checked when it is made.

    kv_source_layers: `L` entries: the layer whose keys and values layer `i` attends to; an owner names itself.
    kv_heads: one entry per owner, lowest layer first.
    heads: `H`.
    Raises ValueError that names the layer and the rule it breaks.
    """

    kv_source_layers: Sources
    kv_heads: tuple[int, ...]
    heads: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv_source_layers", tuple(self.kv_source_layers))
        object.__setattr__(self, "kv_heads", tuple(self.kv_heads))
        _check_sources(self.kv_source_layers)
        _check_heads(self.owners, self.kv_heads, self.heads)

    def as_dict(self) -> LayoutFields:
        return {
            "kv_source_layers": list(self.kv_source_layers),
            "kv_heads": list(self.kv_heads),
            "heads": self.heads,
        }

    @classmethod
    def from_dict(cls, values: LayoutFields) -> KVLayout:
        """`as_dict` backwards. Raises KeyError for a key that is missing, and ValueError as the class does."""
        return cls(tuple(values["kv_source_layers"]), tuple(values["kv_heads"]), values["heads"])

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

    def readers(self, owner: int) -> tuple[int, ...]:
        """Layers that attend to `owner`'s keys and values, without the owner itself."""
        return tuple(i for i, source in enumerate(self.kv_source_layers) if source == owner and i != owner)

    def kv_bytes_per_token(self, head_dim: int, element_bytes: int = 2) -> int:
        """Bytes of keys and values that one token leaves in the cache: 2 · head_dim · budget · element_bytes."""
        return 2 * head_dim * self.budget * element_bytes

    @cached_property
    def family(self) -> str:
        """The literature's name for this layout: MHA, MQA, GQA, MLKV, CLA, …. Where several rules make it, the first in
        _FAMILIES; where none does, `Custom`."""
        if self.kv_layers == self.layers:
            uniform = {1: "MQA", self.heads: "MHA"}.get(self.kv_heads[0], "GQA")
            return uniform if len(set(self.kv_heads)) == 1 else "Custom"
        return next((label for label, pattern in _FAMILIES.items() if self._is_of(pattern)), "Custom")

    def _is_of(self, pattern: str) -> bool:
        if pattern == "cla":
            # Two factors can give the same number of owners in different places, so the number alone does not decide.
            return any(cla(self.layers, factor) == self.kv_source_layers for factor in range(2, self.layers + 1))
        try:
            return PATTERNS[pattern](self.layers, self.kv_layers) == self.kv_source_layers
        except ValueError:
            return False

    def family_by(self, pattern: str) -> str:
        """As `family`, but with the name of `pattern` where it is one of several rules that make this layout: MLKV's
        rule makes CLA2 too."""
        label = next((label for label, named in _FAMILIES.items() if named == pattern), None)
        return label if label and self.kv_layers < self.layers and self._is_of(pattern) else self.family

    @property
    def name(self) -> str:
        """Family and budget, as papers print it: `MLKV-6`."""
        return f"{self.family}-{self.budget}"

    def draw(self) -> str:
        """One line for terminals: an owner's head count, `─` for a reader of the owner below it, `←i` for any other."""
        cells, below = [], 0
        for i, source in enumerate(self.kv_source_layers):
            below = i if source == i else below
            cells.append(str(self.heads_of(i)) if source == i else "─" if source == below else f"←{source}")
        return " ".join(cells)


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
    owned, owner = set(owners), 0
    sources = []
    for i in range(layers):
        owner = i if i in owned else owner
        sources.append(owner)
    return tuple(sources)


def even(layers: int, kv_layers: int) -> Sources:
    """`M` groups as even as integers allow: owners at `i·L // M` (MLKV; lasagna with the target at the bottom).

    In exact integers: the rule of MLKV's published code, `int((i+1)*(L/M))`, is rounded wrongly for some pairs (37 up
    to L = 96; first L = 30, M = 22).
    """
    _require(1 <= kv_layers <= layers, "even", layers, kv_layers, f"1 to {layers}")
    return from_owners(layers, (i * layers // kv_layers for i in range(kv_layers)))


def cla(layers: int, factor: int) -> Sources:
    """Cross-layer attention: groups of `factor` layers, a short group first where `factor` does not divide `L`."""
    if not 1 <= factor <= layers:
        raise ValueError(f"layout.factor = {factor}: cla on {layers} layers takes 1 to {layers}")
    short = layers % factor
    return from_owners(layers, [0, *range(short or factor, layers, factor)])


def cla_of_layers(layers: int, kv_layers: int) -> Sources:
    """The smallest CLA factor that leaves `M` owners."""
    possible = sorted({-(-layers // factor) for factor in range(1, layers + 1)})
    _require(kv_layers in possible, "cla", layers, kv_layers, ", ".join(map(str, possible)))
    return cla(layers, -(-layers // kv_layers))


def keep_ends(layers: int, kv_layers: int) -> Sources:
    """First and last layer alone, the middle in `M − 2` even groups (CLA's KeepEnds)."""
    _require(3 <= kv_layers <= layers, "keep_ends", layers, kv_layers, f"3 to {layers}")
    middle = kv_layers - 2
    return from_owners(layers, [0, *(1 + i * (layers - 2) // middle for i in range(middle)), layers - 1])


def dense_front(layers: int, kv_layers: int) -> Sources:
    """`M − 1` ordinary layers, the next `L − M` read the last of them, the top layer ordinary (CLA's DenseFront)."""
    _require(2 <= kv_layers <= layers, "dense_front", layers, kv_layers, f"2 to {layers}")
    return from_owners(layers, [*range(kv_layers - 1), layers - 1])


def dense_back(layers: int, kv_layers: int) -> Sources:
    """Layers 0 and 1 ordinary, the next `L − M` read layer 1, the rest ordinary (CLA's DenseBack)."""
    _require(2 <= kv_layers <= layers, "dense_back", layers, kv_layers, f"2 to {layers}")
    return from_owners(layers, [0, 1, *range(layers - kv_layers + 2, layers)])


def pizza(layers: int, kv_layers: int) -> Sources:
    """The first `M − 1` layers ordinary, all others one group read from its bottom (YOCO's layout)."""
    _require(1 <= kv_layers <= layers, "pizza", layers, kv_layers, f"1 to {layers}")
    return from_owners(layers, range(kv_layers))


def sandwich(layers: int, kv_layers: int) -> Sources:
    """Ordinary layers at both ends, the middle one group read from its bottom."""
    _require(1 <= kv_layers <= layers, "sandwich", layers, kv_layers, f"1 to {layers}")
    front, back = kv_layers // 2, (kv_layers - 1) // 2
    return from_owners(layers, [*range(front + 1), *range(layers - back, layers)])


def _require(holds: bool, pattern: str, layers: int, kv_layers: int, valid: str) -> None:
    if not holds:
        raise ValueError(f"layout.kv_layers = {kv_layers}: pattern {pattern} on {layers} layers takes {valid}")


PATTERNS: dict[str, Callable[[int, int], Sources]] = {
    "even": even,
    "cla": cla_of_layers,
    "keep_ends": keep_ends,
    "dense_front": dense_front,
    "dense_back": dense_back,
    "pizza": pizza,
    "sandwich": sandwich,
}

_FAMILIES = {
    "MLKV": "even",
    "CLA": "cla",
    "KeepEnds": "keep_ends",
    "DenseFront": "dense_front",
    "DenseBack": "dense_back",
    "Pizza": "pizza",
    "Sandwich": "sandwich",
}


def make(pattern: str, layers: int, heads: int, kv_layers: int, kv_heads: int) -> KVLayout:
    """A layout of `kv_layers` owners placed by `pattern`, each with `kv_heads` KV heads. Raises ValueError."""
    if pattern not in PATTERNS:
        raise ValueError(f"layout.pattern = {pattern}: choose from {', '.join([*PATTERNS, 'explicit'])}")
    sources = PATTERNS[pattern](layers, kv_layers)
    return KVLayout(sources, (kv_heads,) * kv_layers, heads)


def mha(layers: int, heads: int) -> KVLayout:
    return make("even", layers, heads, layers, heads)


def of_budget(pattern: str, budget: int, layers: int, heads: int) -> list[KVLayout]:
    """Every layout of `pattern` with `budget` KV heads in all, most KV layers first. Raises ValueError if none has."""
    layouts = _of_budget(pattern, budget, layers, heads)
    if not layouts:
        valid = sorted(b for b in range(1, layers * heads + 1) if _of_budget(pattern, b, layers, heads))
        choices = ", ".join(map(str, valid))
        raise ValueError(
            f"layout.budget = {budget}: pattern {pattern} on {layers} layers of {heads} heads takes {choices}"
        )
    return layouts


def _of_budget(pattern: str, budget: int, layers: int, heads: int) -> list[KVLayout]:
    layouts = []
    for kv_heads in divisors(heads):
        if budget % kv_heads == 0:
            try:
                layouts.append(make(pattern, layers, heads, budget // kv_heads, kv_heads))
            except ValueError:
                if pattern not in PATTERNS:
                    raise
    return layouts
