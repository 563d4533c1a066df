"""Patterns: the rules that place owners, and the names that the literature has for the layouts they make.

A new pattern is one row of PATTERNS. `L` layers, `M` KV layers (owners), `H` query heads. Needs no torch: plans use it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import gcd

from .layout import KVLayout, Sources, divisors, from_owners
from .registry import Registry


@dataclass(frozen=True)
class Pattern:
    """A rule that places owners.

    label: the name that papers have for its layouts.
    rule: from `L` and `M` to the source of each layer. Raises ValueError that names the `M` it has a layout for.
    by_factor: from `L` and the number of layers in a group, where the pattern is defined by that.
    """

    label: str
    rule: Callable[[int, int], Sources]
    by_factor: Callable[[int, int], Sources] | None = None

    def makes(self, layout: KVLayout) -> bool:
        layers, sources = layout.layers, layout.kv_source_layers
        if self.by_factor:
            # Two factors can give equally many owners in different places, so `M` alone does not decide.
            return any(self.by_factor(layers, factor) == sources for factor in range(2, layers + 1))
        try:
            return self.rule(layers, layout.kv_layers) == sources
        except ValueError:
            return False


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


_BUILT_IN = {
    "even": Pattern("MLKV", even),
    "cla": Pattern("CLA", cla_of_layers, by_factor=cla),
    "keep_ends": Pattern("KeepEnds", keep_ends),
    "dense_front": Pattern("DenseFront", dense_front),
    "dense_back": Pattern("DenseBack", dense_back),
    "pizza": Pattern("Pizza", pizza),
    "sandwich": Pattern("Sandwich", sandwich),
}
PATTERNS = Registry("pattern", _BUILT_IN)
EXPLICIT = "explicit"
"""No rule: every layer's source is written out."""


def family_of(layout: KVLayout, pattern: str = EXPLICIT) -> str:
    """The literature's name for a layout: MHA, MQA, GQA, MLKV, CLA, ….

    Where several rules make it (MLKV's rule makes CLA2 too): the label of `pattern` if that is one of them, else of the
    first of the built-in ones. `Custom` where none does.
    """
    if layout.kv_layers == layout.layers:
        uniform = {1: "MQA", layout.heads: "MHA"}.get(layout.kv_heads[0], "GQA")
        return uniform if len(set(layout.kv_heads)) == 1 else "Custom"
    rows = [PATTERNS[pattern]] if pattern != EXPLICIT else []
    return next((row.label for row in (*rows, *_BUILT_IN.values()) if row.makes(layout)), "Custom")


def name_of(layout: KVLayout, pattern: str = EXPLICIT) -> str:
    """Family and total KV heads, as papers print it: `MLKV-6`; with a latent, its rank too: `MLKV-6 r=32`."""
    rank = f" r={'/'.join(map(str, dict.fromkeys(layout.latent.ranks)))}" if layout.latent else ""
    return f"{family_of(layout, pattern)}-{layout.budget}{rank}"


def sources_of(pattern: str, layers: int, kv_layers: int, factor: int | None = None) -> Sources:
    """The source of each layer, by the factor where the pattern has one and it is given. Raises ValueError."""
    row = PATTERNS.choose(pattern)
    with PATTERNS.running(pattern, ValueError):
        return tuple(row.by_factor(layers, factor) if factor and row.by_factor else row.rule(layers, kv_layers))


def make(pattern: str, layers: int, heads: int, kv_layers: int, kv_heads: int) -> KVLayout:
    """A layout of `kv_layers` owners placed by `pattern`, each with `kv_heads` KV heads. Raises ValueError."""
    return KVLayout(sources_of(pattern, layers, kv_layers), (kv_heads,) * kv_layers, heads)


def of_budget(pattern: str, budget: int, base: KVLayout) -> list[KVLayout]:
    """The layouts of `pattern` with `budget` KV heads in all that the heads of `base` can be merged into, equally many
    in each KV layer; most KV layers first. None where there is no such layout."""
    PATTERNS.choose(pattern)
    if not 1 <= budget <= base.budget:
        return []
    layouts = []
    for kv_heads in divisors(gcd(*base.kv_heads)):
        if budget % kv_heads == 0:
            with suppress(ValueError):  # the pattern has no layout of so many KV layers
                layouts.append(make(pattern, base.layers, base.heads, budget // kv_heads, kv_heads))
    return layouts


def budgets(pattern: str, base: KVLayout) -> list[int]:
    """The budgets for which `of_budget` has layouts, smallest first."""
    kv_layers = [m for m in range(1, base.layers + 1) if _has(pattern, base.layers, m)]
    found = {m * kv_heads for m in kv_layers for kv_heads in divisors(gcd(*base.kv_heads))}
    return sorted(budget for budget in found if budget <= base.budget)


def _has(pattern: str, layers: int, kv_layers: int) -> bool:
    with suppress(ValueError):
        return bool(sources_of(pattern, layers, kv_layers))
    return False
