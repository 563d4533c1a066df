"""Patterns: the rules that place owners, and the names that the literature has for the layouts they make.

A new pattern is one row of PATTERNS. `L` layers, `M` KV layers (owners), `H` query heads. Needs no torch: plans use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import gcd
from typing import Literal, get_args

from .layout import KVLayout, Sources, divisors, from_owners
from .registry import Registry
from .shape import check_choice

Position = Literal["bottom", "middle", "top"]
"""Which layer of a group computes the keys and values that the whole group reads (arXiv 2410.14442); `middle` is the
lower of two."""


@dataclass(frozen=True)
class Pattern:
    """A rule that places owners.

    label: the name that papers have for its layouts.
    rule: from `L` and `M` to the source of each layer. Raises ValueError that names the `M` it has a layout for.
    by_factor: from `L` and the number of layers in a group, where the pattern is defined by that.
    values: the rule for the values, where they have other sources than the keys: `rule` is then that for the keys.
    above: the rule for the groups whose owner may be in the middle or at the top, each group read from its bottom; None
        where owners are at the bottom only.
    label_above: the name that papers have for these.
    """

    label: str
    rule: Callable[[int, int], Sources]
    by_factor: Callable[[int, int], Sources] | None = None
    values: Callable[[int, int], Sources] | None = None
    above: Callable[[int, int], Sources] | None = None
    label_above: str = ""

    def name_above(self, layout: KVLayout) -> str | None:
        """`Sandwich-top` for such a layout of this pattern; None for another."""
        for position in ("middle", "top"):
            try:
                made = _moved(self.above(layout.layers, layout.kv_layers), position) if self.above else ()
            except ValueError:
                made = ()
            if made == layout.kv_source_layers:
                return f"{self.label_above}-{position}"
        return None

    def makes(self, layout: KVLayout) -> bool:
        layers, sources = layout.layers, layout.kv_source_layers
        if bool(self.values) != bool(layout.value_source_layers):
            return False
        if self.by_factor:
            # Two factors can give equally many owners in different places, so `M` alone does not decide.
            return any(self.by_factor(layers, factor) == sources for factor in range(2, layers + 1))
        try:
            values = self.values(layers, layout.kv_layers) if self.values else None
            return (self.rule(layers, layout.kv_layers), values) == (sources, layout.value_source_layers)
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


def _first_alone(layers: int, kv_layers: int) -> Sources:
    """Layer 0 ordinary, as the study keeps it whatever the target: sharing it loses much (arXiv 2410.14442). The others
    in `M − 1` even groups."""
    _require(1 <= kv_layers <= layers, "even", layers, kv_layers, f"1 to {layers}")
    groups = kv_layers - 1
    return from_owners(layers, [0, *(1 + i * (layers - 1) // groups for i in range(groups))])


def _moved(bottom: Sources, position: Position) -> Sources:
    """The same groups with their owner in the middle or at the top, from groups that are read from their bottom."""
    groups: dict[int, list[int]] = {}
    for layer, source in enumerate(bottom):
        groups.setdefault(source, []).append(layer)
    owners = {
        source: {"bottom": layers[0], "middle": layers[(len(layers) - 1) // 2], "top": layers[-1]}[position]
        for source, layers in groups.items()
    }
    return tuple(owners[source] for source in bottom)


def fusedkv_lite(layers: int, kv_layers: int) -> Sources:
    """Keys: the first `M` layers ordinary, all others read the last of them (arXiv 2512.03870: `M = L / 2`)."""
    _require(2 <= kv_layers <= layers, "fusedkv_lite", layers, kv_layers, f"2 to {layers}")
    return pizza(layers, kv_layers)


def fusedkv_lite_reverse(layers: int, kv_layers: int) -> Sources:
    """Keys: the first `M` layers ordinary, all others read layer 0."""
    _require(2 <= kv_layers <= layers, "fusedkv_lite_reverse", layers, kv_layers, f"2 to {layers}")
    return _first_above(layers, kv_layers)


def svformer(layers: int, kv_layers: int) -> Sources:
    """Keys: every layer ordinary (arXiv 2410.17897)."""
    _require(kv_layers == layers, "svformer", layers, kv_layers, f"{layers} (every layer has its own keys)")
    return tuple(range(layers))


def _first_above(layers: int, kv_layers: int) -> Sources:
    return (*range(kv_layers), *[0] * (layers - kv_layers))


def _first_in_all(layers: int, kv_layers: int) -> Sources:
    return (0,) * layers


def _require(holds: bool, pattern: str, layers: int, kv_layers: int, valid: str) -> None:
    if not holds:
        raise ValueError(f"layout.kv_layers = {kv_layers}: pattern {pattern} on {layers} layers takes {valid}")


_BUILT_IN = {
    "even": Pattern("MLKV", even, above=_first_alone, label_above="Lasagna"),
    "cla": Pattern("CLA", cla_of_layers, by_factor=cla),
    "keep_ends": Pattern("KeepEnds", keep_ends),
    "dense_front": Pattern("DenseFront", dense_front),
    "dense_back": Pattern("DenseBack", dense_back),
    "pizza": Pattern("Pizza", pizza, above=pizza, label_above="Pizza"),
    "sandwich": Pattern("Sandwich", sandwich, above=sandwich, label_above="Sandwich"),
    "fusedkv_lite": Pattern("FusedKV-Lite", fusedkv_lite, values=_first_above),
    "fusedkv_lite_reverse": Pattern("FusedKV-Lite-reverse", fusedkv_lite_reverse, values=pizza),
    "svformer": Pattern("SVFormer", svformer, values=_first_in_all),
}
PATTERNS = Registry("pattern", _BUILT_IN)
EXPLICIT = "explicit"
"""No rule: every layer's source is written out."""


def family_of(layout: KVLayout, pattern: str = EXPLICIT) -> str:
    """The literature's name for a layout: MHA, MQA, GQA, MLKV, CLA, ….

    Where several rules make it (MLKV's rule makes CLA2 too): the label of `pattern` if that is one of them, else of the
    first of the built-in ones. `Custom` where none does.
    """
    if layout.kv_layers == layout.layers and layout.value_source_layers is None:
        counts = [set(part.kv_heads) for part in (layout.keys, layout.values)]
        if any(len(each) > 1 for each in counts):
            return "Custom"
        return {1: "MQA", layout.heads: "MHA"}.get(layout.kv_heads[0], "GQA") if counts[0] == counts[1] else "GQA"
    rows = [PATTERNS[pattern]] if pattern != EXPLICIT else []
    if layout.reads_above:
        return next(filter(None, (row.name_above(layout) for row in (*rows, *_BUILT_IN.values()))), "Custom")
    return next((row.label for row in (*rows, *_BUILT_IN.values()) if row.makes(layout)), "Custom")


def name_of(layout: KVLayout, pattern: str = EXPLICIT) -> str:
    """Family and total KV heads, as papers print it: `MLKV-6`; with a latent, its rank too: `MLKV-6 r=32`; with other
    head counts for values than for keys, both: `GQA-18 k=4 v=2`."""
    rank = f" r={_each(layout.latent.ranks)}" if layout.latent else ""
    heads = ""
    if {*layout.keys.kv_heads} != {*layout.values.kv_heads}:
        heads = f" k={_each(layout.keys.kv_heads)} v={_each(layout.values.kv_heads)}"
    return f"{family_of(layout, pattern)}-{layout.budget}{heads}{rank}"


def _each(numbers: Iterable[int]) -> str:
    return "/".join(map(str, dict.fromkeys(numbers)))


def sources_of(
    pattern: str, layers: int, kv_layers: int, factor: int | None = None, position: Position = "bottom"
) -> Sources:
    """The source of each layer, of the keys where values have others; by the factor where the pattern has one and it is
    given. position: of the owner in its group. Raises ValueError."""
    check_choice("layout.position", position, get_args(Position))
    row = PATTERNS.choose(pattern)
    if position != "bottom" and row.above is None:
        having = ", ".join(name for name, each in PATTERNS.items() if each.above)
        raise ValueError(f"layout.position = {position}: pattern {pattern} has none but bottom; of {having} it is read")
    with PATTERNS.running(pattern, ValueError):
        if position != "bottom" and row.above:
            return _moved(tuple(row.above(layers, kv_layers)), position)
        return tuple(row.by_factor(layers, factor) if factor and row.by_factor else row.rule(layers, kv_layers))


def value_sources_of(pattern: str, layers: int, kv_layers: int) -> Sources | None:
    """The source of each layer's values; None where they are those of the keys. Raises ValueError."""
    rule = PATTERNS.choose(pattern).values
    with PATTERNS.running(pattern, ValueError):
        return tuple(rule(layers, kv_layers)) if rule else None


def make(
    pattern: str,
    layers: int,
    heads: int,
    kv_layers: int,
    kv_heads: int,
    value_heads: int | None = None,
    position: Position = "bottom",
) -> KVLayout:
    """A layout of `kv_layers` owners placed by `pattern`, each with `kv_heads` KV heads, or with `value_heads` of them
    for values. Raises ValueError."""
    sources = sources_of(pattern, layers, kv_layers, position=position)
    value_sources = value_sources_of(pattern, layers, kv_layers)
    return with_heads(sources, value_sources, heads, kv_heads, value_heads)


def with_heads(
    sources: Sources, value_sources: Sources | None, heads: int, kv_heads: int, value_heads: int | None = None
) -> KVLayout:
    """A layout with these sources whose owners have equally many heads. Raises ValueError."""
    owners, value_owners = (sum(i == s for i, s in enumerate(each)) for each in (sources, value_sources or sources))
    return KVLayout(
        sources,
        (kv_heads,) * owners,
        heads,
        value_source_layers=value_sources,
        value_heads=(value_heads or kv_heads,) * value_owners,
    )


def of_budget(
    pattern: str, budget: int, base: KVLayout, value_heads: int | None = None, position: Position = "bottom"
) -> list[KVLayout]:
    """The layouts of `pattern` with `budget` KV heads in all that the heads of `base` can be merged into, equally many
    in each KV layer; most KV layers first. None where there is no such layout.

    value_heads: of each owner's values, where it is not that of the keys.
    """
    row = PATTERNS.choose(pattern)
    if not 1 <= budget <= base.budget:
        return []
    layouts = []
    for kv_heads in divisors(gcd(*base.keys.kv_heads)):
        if row.values or value_heads:  # the number of owners does not follow from the budget
            counts: Iterable[int] = range(base.layers, 0, -1)
        else:
            counts = [budget // kv_heads] if budget % kv_heads == 0 else []
        for kv_layers in counts:
            with suppress(ValueError):  # the pattern has no layout of so many KV layers
                layouts.append(make(pattern, base.layers, base.heads, kv_layers, kv_heads, value_heads, position))
    return [layout for layout in layouts if layout.budget == budget]


def budgets(pattern: str, base: KVLayout, value_heads: int | None = None) -> list[int]:
    """The budgets for which `of_budget` has layouts, smallest first."""
    kv_layers = [m for m in range(1, base.layers + 1) if _has(pattern, base.layers, m)]
    choices = divisors(gcd(*base.keys.kv_heads))
    if PATTERNS[pattern].values or value_heads:
        made = (make(pattern, base.layers, base.heads, m, g, value_heads).budget for m in kv_layers for g in choices)
        found = {int(budget) for budget in made if budget == int(budget)}
    else:
        found = {m * kv_heads for m in kv_layers for kv_heads in choices}
    return sorted(budget for budget in found if budget <= base.budget)


def _has(pattern: str, layers: int, kv_layers: int) -> bool:
    with suppress(ValueError):
        return bool(sources_of(pattern, layers, kv_layers))
    return False
