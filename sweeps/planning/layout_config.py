"""The `layout` group: a rule that makes layouts of a base, and the sizes that it can be given."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from math import gcd
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from mlkv.groupings import drawn, of_sizes
from mlkv.layout import KVLayout, Latent, Sources, divisors
from mlkv.layout_rules import LAYOUT_RULES, SEARCHED, Size
from mlkv.merges import most_heads
from mlkv.patterns import EXPLICIT, PATTERNS, Position, budgets, name_of, of_budget, sources_of, value_sources_of
from mlkv.registry import NameOf
from mlkv.shape import DecoderShape, Positive, added

PatternName = Annotated[str, NameOf(PATTERNS, besides=(EXPLICIT, SEARCHED))]
RuleName = Annotated[str, NameOf(LAYOUT_RULES)]
SIZES = ("kv_layers", "kv_heads", "value_heads", "factor", "budget", "cache")
"""The keys of `layout` that say how much a layout keeps."""
MOST_CANDIDATES = 36
"""Conversions that a rule compares, unless it is told otherwise: all 35 ways to cut eight layers into four groups."""


def _share(value: Any) -> Fraction:
    """What `1/2` or `0.5` says."""
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?(/0*[1-9]\d{0,8})?", str(value)) and 0 < (share := _fraction(str(value))) <= 1:
        return share
    raise PydanticCustomError("share", "a share above 0 and at most 1, such as 1/2 or 0.25")


Share = Annotated[
    Fraction,
    BeforeValidator(_share),
    WithJsonSchema(
        {
            "description": "a share above 0 and at most 1, such as 1/2 or 0.25",
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                {"type": "string", "pattern": r"^\d{1,9}(\.\d{1,9})?(/0*[1-9]\d{0,8})?$"},
            ],
        }
    ),
]


def _fraction(text: str) -> Fraction:
    above, _, below = text.partition("/")
    return Fraction(above) / Fraction(below or 1)


@dataclass(frozen=True)
class LayoutConfig:
    """A rule that makes layouts.

    Unset `kv_layers` means all layers, unset `kv_heads` all heads that the base has there; with neither, the layout is
    the base's own. A `budget` means every (M, G) with that many KV heads in all, a `cache` every one with that share of
    the base's; `kv_layers` and `kv_heads` beside them choose among those. `value_heads` is `kv_heads` for the values
    alone, and `value_source_layers` is `kv_source_layers` for them: unset, both are those of the keys.
    """

    pattern: PatternName = "even"
    kv_layers: Positive | None = None
    kv_heads: Positive | tuple[Positive, ...] | None = None
    budget: Positive | None = None
    cache: Share | None = None
    factor: Positive | None = None
    kv_source_layers: tuple[int, ...] | None = None
    value_heads: Positive | tuple[Positive, ...] | None = None
    value_source_layers: tuple[int, ...] | None = None
    latent: Positive | None = None
    """The rank of the latent vector that each owner caches in place of keys and values; an owner with less than that to
    hold has the rank of what it holds. Unset: keys and values."""
    rotary_dims: Annotated[int, Ge(0)] | None = None
    """With a latent: how many dimensions of a head stay rotated; unset: all that its position rotates."""
    shared_rotary: bool = False
    """With a latent: an owner's heads have one rotated part of a key together."""
    position: Position = added("bottom")
    """Of the owner in its group: at its bottom, in its middle or at its top, where the layers below wait for it."""
    forward_passes: Annotated[int, Ge(0)] | None = added(None)
    """How often layers that wait for each other run on a text, without gradients; unset: 7, as LCKV's authors do."""
    backward_passes: Positive | None = added(None)
    """The same with gradients; unset: 2."""
    groups: tuple[Positive, ...] | None = added(None)
    """How many layers each group of neighbours has, lowest group first; its lowest layer is the owner. Only pattern
    explicit reads it, in place of `kv_source_layers`."""
    draw: Annotated[int, Ge(0), Le(9999)] | None = added(None)
    """The number of a layout that was drawn at random: with sources that are no groups of neighbours, and other head
    counts for each owner (mlkv/groupings.py). Only pattern explicit reads it, in place of everything else."""

    rule: RuleName | None = added(None)
    """How a searched layout places its owners (mlkv/layout_rules.py). Only pattern searched reads it."""
    candidates: Annotated[int, Ge(1), Le(10_000)] = added(MOST_CANDIDATES)
    """How many layouts a rule that scores conversions compares at most. Only pattern searched reads it."""

    spread: Literal["equal", "untrained"] = added("equal")
    """The heads of a searched layout's owners: equally many, or those numbers that lose least by the scores of
    conversions before any training. Only pattern searched reads it."""

    def layouts(self, base: KVLayout, start: KVLayout | None = None) -> list[KVLayout]:
        """The layouts that this rule makes of a base: of the heads in `start`, which are the base's own unless the
        model is trained from random weights. Raises ValueError naming the field."""
        return [self._with_passes(layout) for layout in self._layouts(base, start or base)]

    def _with_passes(self, layout: KVLayout) -> KVLayout:
        for name in ("forward_passes", "backward_passes"):
            value = getattr(self, name)
            if value is not None and not layout.reads_above:
                named = name_of(layout, self.pattern)
                raise ValueError(f"layout.{name} = {value}: {named} has no layer that reads from above; unset it")
        if not layout.reads_above:
            return layout
        return replace(
            layout,
            forward_passes=layout.forward_passes if self.forward_passes is None else self.forward_passes,
            backward_passes=self.backward_passes or layout.backward_passes,
        )

    def _layouts(self, base: KVLayout, start: KVLayout) -> list[KVLayout]:
        if self.pattern == SEARCHED:
            raise ValueError(f"layout.pattern = {SEARCHED}: follows from what a sweep's steps measure of the base")
        if self.pattern != EXPLICIT and (self.budget is not None or self.cache is not None):
            return self._of_size(base, start)
        if self._is_bases_own:
            return [start]
        if self.draw is not None:
            return [self._drawn(start)]
        sources, value_sources = self._sources(start.layers)
        if self.groups and len(sources) != start.layers:
            raise ValueError(f"layout.groups = {[*self.groups]}: have {len(sources)} layers, not {start.layers}")
        for name, given in (("kv_source_layers", sources), ("value_source_layers", value_sources)):
            if given is not None and len(given) != start.layers:
                raise ValueError(f"layout.{name} has {len(given)} entries: it has {start.layers} layers")
        heads = _heads(self.kv_heads, start.keys, sources)
        value_heads: tuple[int, ...] | None = None
        if self.value_heads or not isinstance(self.kv_heads, tuple):
            value_heads = _heads(self.value_heads or self.kv_heads, start.values, value_sources or sources)
        return [
            KVLayout(sources, heads, start.heads, value_source_layers=value_sources, value_heads=value_heads),
        ]

    def _drawn(self, start: KVLayout) -> KVLayout:
        try:
            return drawn(start, self.draw or 0)
        except ValueError as error:
            raise ValueError(f"layout.{error}") from None

    @property
    def _is_bases_own(self) -> bool:
        """Whether it asks for nothing but the base's own layout."""
        if self.pattern == EXPLICIT or PATTERNS[self.pattern].values:
            return False
        return not (self.kv_layers or self.kv_heads or self.factor or self.value_heads) and self.position == "bottom"

    def with_latent(self, layout: KVLayout, start: KVLayout, shape: DecoderShape) -> KVLayout:
        """A layout with the latent that is asked for, if any. Raises ValueError naming the field."""
        if self.latent is None:
            return layout
        if layout.apart or start.apart:
            raise ValueError(
                f"layout.latent = {self.latent}: a latent holds keys and values together, and the layout "
                f"{name_of(layout if layout.apart else start)} has other sources or head counts for values; unset it"
            )
        rotary = shape.rotated_dims if self.rotary_dims is None else self.rotary_dims
        if rotary % 2 or rotary > shape.rotated_dims:
            most = shape.rotated_dims
            raise ValueError(
                f"layout.rotary_dims = {rotary}: must be even, and 0 to {most}: a head has {most} that rotate"
            )
        most = max(shape.full_rank(start, owner, rotary) for owner in start.owners)
        if self.latent > most:
            raise ValueError(f"layout.latent = {self.latent}: must be 1 to {most}, the rank of all keys and values")
        ranks = tuple(min(self.latent, shape.full_rank(layout, owner, rotary)) for owner in layout.owners)
        return replace(layout, latent=Latent(ranks, rotary, self.shared_rotary))

    def _of_size(self, base: KVLayout, start: KVLayout) -> list[KVLayout]:
        budget = self.cache * Fraction(base.budget) if self.cache else Fraction(self.budget or 0)
        layouts = self._of_budget(int(budget), start) if budget.denominator == 1 else []
        if layouts:
            return layouts
        possible = [b for b in budgets(self.pattern, start, self._uniform_value_heads) if self._of_budget(b, start)]
        raise ValueError(f"layout.{self._size_fault(base, start, budget, possible)}")

    def _of_budget(self, budget: int, start: KVLayout) -> list[KVLayout]:
        layouts = of_budget(self.pattern, budget, start, self._uniform_value_heads, self.position)
        if self.factor:  # two factors may leave equally many owners in different places
            sources, _ = self._sources(start.layers)
            layouts = [replace(each, kv_source_layers=sources) for each in layouts if each.kv_layers == len({*sources})]
        return [layout for layout in layouts if self._admits(layout)]

    @property
    def _uniform_value_heads(self) -> int | None:
        return self.value_heads if isinstance(self.value_heads, int) else None

    def sizes(self, base: KVLayout) -> list[Size]:
        """Owners, and heads of each, that a searched layout of this size can have; most owners first, as at equal bytes
        they lose least on a base that looks back (docs/placement.md). Raises ValueError naming the field."""
        choices = head_choices(base)
        whole = None if self.budget is None else Fraction(self.budget)
        wanted = self.cache * Fraction(base.budget) if self.cache else whole
        if wanted is None and self.kv_heads is None:
            choices = choices[-1:]
        possible = [
            (owners, heads)
            for owners in range(base.layers, 0, -1)
            for heads in choices
            if self.kv_layers in (None, owners) and self.kv_heads in (None, heads) and owners * heads <= base.budget
        ]
        found = [size for size in possible if wanted in (None, size[0] * size[1])]
        if not found:
            budgets_of = sorted({owners * heads for owners, heads in possible})
            raise ValueError(f"layout.{self._size_fault(base, base, wanted, budgets_of)}")
        return found

    def written_out(self, layout: KVLayout) -> LayoutConfig:
        """The same as what a person writes who knows the layout."""
        return replace(
            self,
            pattern=EXPLICIT,
            kv_layers=None,
            budget=None,
            cache=None,
            kv_source_layers=layout.kv_source_layers,
            kv_heads=layout.kv_heads,
            value_source_layers=layout.value_source_layers,
            value_heads=layout.value_heads,
            rule=None,
            candidates=MOST_CANDIDATES,
            spread="equal",
        )

    def _size_fault(self, base: KVLayout, start: KVLayout, budget: Fraction | None, possible: list[int]) -> str:
        """Why there is no layout of this size, and which there are."""
        keys = ("kv_layers", "kv_heads", "value_heads", "factor")
        limits = [f"{key} = {value}" for key in keys if (value := getattr(self, key))]
        rule = f"pattern {self.pattern}{' with ' + ' and '.join(limits) if limits else ''}"
        kv = "" if start.budget == start.layers * start.heads else "KV "
        where = f"{rule} on {start.layers} layers of {gcd(*start.keys.kv_heads, *start.values.kv_heads)} {kv}heads"
        free = f"; {' '.join(f'layout.{limit.split()[0]}=null' for limit in limits)} allows others" if limits else ""
        if budget is None:
            return f"{limits[0] if limits else 'kv_layers is unset'}: {where} has no such layout{free}"
        if self.cache is None:
            return f"budget = {self.budget}: {where} takes {', '.join(map(str, possible)) or 'none'}{free}"
        distance = min((abs(b - budget) for b in possible), default=None)
        near = [f"{b / Fraction(base.budget)} ({b} KV heads)" for b in possible if abs(b - budget) == distance]
        nearest = f"nearest: {' or '.join(near)}" if near else "it has none"
        return f"cache = {self.cache}: {where} cannot have that share of the base's {base.budget}; {nearest}{free}"

    def __post_init__(self) -> None:
        self._check_written_out()
        if self.pattern == SEARCHED:
            self._check_searched()
        if self.budget is not None and self.cache is not None:
            raise ValueError(f"budget = {self.budget} and cache = {self.cache}: both set; choose one")
        if self.pattern == EXPLICIT and self.cache is not None:
            raise ValueError(f"cache = {self.cache}: pattern explicit has its size written out; leave cache unset")
        if self.latent is None and (self.rotary_dims is not None or self.shared_rotary):
            name = "shared_rotary" if self.rotary_dims is None else "rotary_dims"
            raise ValueError(f"{name} = {getattr(self, name)}: is of a latent; set latent too")
        for name in ("kv_source_layers", "value_source_layers"):
            if (sources := getattr(self, name)) is not None and self.pattern != EXPLICIT:
                raise ValueError(f"{name} = {[*sources]}: only pattern explicit reads it (pattern = {self.pattern})")
        without_rule = self.pattern in (EXPLICIT, SEARCHED)
        if self.position != "bottom" and (without_rule or not PATTERNS[self.pattern].above):
            having = ", ".join(name for name, pattern in PATTERNS.items() if pattern.above)
            raise ValueError(
                f"position = {self.position}: only pattern {having} has another than bottom (pattern = {self.pattern})"
            )
        if self.factor is not None and (without_rule or not PATTERNS[self.pattern].by_factor):
            having = ", ".join(name for name, pattern in PATTERNS.items() if pattern.by_factor)
            raise ValueError(f"factor = {self.factor}: only pattern {having} has a factor (pattern = {self.pattern})")

    def _check_searched(self) -> None:
        """Which fields a searched layout needs, and which it has no use for."""
        if self.rule is None:
            raise ValueError("rule is unset: a searched layout is placed by one (layout=searched sets it)")
        if self.budget is None and self.cache is None and self.kv_layers is None:
            raise ValueError("budget, cache and kv_layers are unset: a searched layout needs one of them")
        if isinstance(self.kv_heads, tuple):
            raise ValueError(f"kv_heads = {[*self.kv_heads]}: the owners of a searched layout have equally many")
        if self.value_heads is not None:
            given = _text(self.value_heads)
            raise ValueError(f"value_heads = {given}: a searched layout has equally many for keys and values")

    def _check_written_out(self) -> None:
        """The keys that pattern explicit reads: one of three says which layer reads which."""
        values = {name: getattr(self, name) for name in ("kv_source_layers", "groups", "draw")}
        given = {name: value for name, value in values.items() if value not in (None, ())}
        if self.pattern == EXPLICIT and not given:
            raise ValueError("kv_source_layers is empty: pattern explicit needs one entry per layer")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: are both set; choose one (layout=groups and layout=drawn do)")
        for name in ("groups", "draw"):
            if name in given and self.pattern != EXPLICIT:
                raise ValueError(
                    f"{name} = {_text(given[name])}: only pattern explicit reads it (pattern = {self.pattern})"
                )
        others = ("kv_layers", "kv_heads", "value_heads", "value_source_layers", "budget")
        if "draw" in given and (other := next((name for name in others if getattr(self, name) is not None), None)):
            raise ValueError(f"{other} = {_text(getattr(self, other))}: is drawn too; unset it, or draw")

    def _sources(self, layers: int) -> tuple[Sources, Sources | None]:
        """Of the keys, and of the values where they have others."""
        if self.pattern == EXPLICIT:
            return of_sizes(self.groups) if self.groups else self.kv_source_layers or (), self.value_source_layers
        kv_layers = self.kv_layers or layers
        sources = sources_of(self.pattern, layers, kv_layers, self.factor, self.position)
        return sources, value_sources_of(self.pattern, layers, kv_layers)

    def _admits(self, layout: KVLayout) -> bool:
        heads = (None, layout.kv_heads[0], layout.kv_heads)
        value_heads = (None, layout.values.kv_heads[0], layout.values.kv_heads)
        fits = self.kv_heads in heads and self.value_heads in value_heads
        return fits and self.kv_layers in (None, layout.kv_layers)


def head_choices(base: KVLayout) -> list[int]:
    """How many heads any owner can have, whatever layers read it."""
    return divisors(gcd(*base.keys.kv_heads, *base.values.kv_heads))


def _text(value: Any) -> str:
    return str([*value] if isinstance(value, tuple) else value)


def _heads(given: int | tuple[int, ...] | None, start: KVLayout, sources: Sources) -> tuple[int, ...]:
    """Of each owner in `sources`; where none are given, the most that the heads of `start` can be merged into."""
    return given if isinstance(given, tuple) else tuple(given or most for most in most_heads(start, sources))
