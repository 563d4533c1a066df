"""Layouts by rule: what a rule reads of a base is computed by steps, which run before the layouts are known.

A sweep with such layouts is planned twice. As long as something that a rule reads is not done, the plan holds the steps
that make it, its inputs. Then it holds the layouts alone, written out, as if a person had known them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from mlkv.layout import KVLayout
from mlkv.layout_rules import DAMAGE, LAYOUT_RULES, SEARCHED, Matrices, candidates, placed, spread, variations
from mlkv.patterns import EXPLICIT, sources_of, value_sources_of, with_heads
from mlkv.recipes import SimilarityRecipe
from mlkv.training_recipes import TrainRecipe
from sweeps.planning.config import Config, EvaluateConfig
from sweeps.planning.labels import RULE, SPREAD
from sweeps.planning.layout_config import LayoutConfig, head_choices
from sweeps.planning.plain_config import Values
from sweeps.planning.resolve import Model, Resolver
from sweeps.planning.variant import Variant
from sweeps.planning.variant_steps import with_steps
from sweeps.store.errors import UserError
from sweeps.store.store import Store

BITS = "bits_per_byte"
"""The task by whose metric of the same name conversions are compared."""
WINDOWS = 64
"""Of a similarity step that the configuration does not ask for, and a rule reads: as conf/similarity/held_out.yaml."""


@dataclass
class SearchedLayouts:
    """What the rules of a sweep's points read. `inputs`: the variants that stand for steps that are not done, by their
    steps. `following`: what decides the layouts that are not known before."""

    store: Store
    inputs: dict[tuple[str, ...], Variant] = field(default_factory=dict)
    following: set[Any] = field(default_factory=set)
    _unread: str | None = None
    _has_searched: bool = False
    _found: dict[Any, KVLayout | None] = field(default_factory=dict)
    _matrices: dict[str, Matrices] = field(default_factory=dict)

    def see(self, layout: LayoutConfig) -> None:
        """Every point's `layout` group once."""
        if layout.pattern == SEARCHED:
            self._has_searched = True
        elif layout.rule:
            self._unread = f"{RULE} = {layout.rule}"
        elif layout.spread != "equal":
            self._unread = f"{SPREAD} = {layout.spread}"

    def check_read(self) -> None:
        """Raises UserError where a rule is given and none of the sweep's layouts is made by one."""
        if self._unread and not self._has_searched:
            raise UserError(f"{self._unread}: no layout of this sweep is by a rule; add layout=searched")

    def settled(self, point: Variant, resolver: Resolver) -> Variant:
        """A point with a searched layout as the one that has this layout written out; with another of its size, by
        which all else of the point can be checked, where it is not known yet. Raises ValueError and UserError."""
        _check(point.config, point.model)
        key = _what_decides(point.config)
        if key not in self._found:
            self._found[key] = self._layout(point, resolver)
        found = self._found[key]
        if found is None:
            self.following.add(key)
        return _with_layout(point, found or _stand_in(point))

    def _layout(self, point: Variant, resolver: Resolver) -> KVLayout | None:
        config, base = point.config, point.model.layout
        name = str(config.layout.rule)
        sizes = config.layout.sizes(base)
        if LAYOUT_RULES[name].candidates:
            scores = self._scores(point, resolver, candidates(name, sizes, base, config.layout.candidates))
            layout = min(scores, key=scores.__getitem__) if scores else None
        else:
            matrices = self._compared(point, resolver) if LAYOUT_RULES[name].measures else {}
            layout = None if matrices is None else placed(name, sizes, base, matrices)
        if layout is None or config.layout.spread == "equal":
            return layout
        if len(every := variations(layout, head_choices(base))) == 1:
            return layout
        scores = self._scores(point, resolver, every)
        return spread(scores, layout) if scores else None

    def _compared(self, point: Variant, resolver: Resolver) -> Matrices | None:
        """The matrices of the point's base; None where no step has compared its layers yet."""
        from mlkv.similarity.results import Similarity

        config = replace(point.config, evaluate=EvaluateConfig(), added={})
        config = replace(config, measure=replace(config.measure, batch_sizes=()))
        compared_base = with_steps(of_base(replace(point, config=config, baseline="untouched", varying=())), resolver)
        assert compared_base.similarity, "the layers of a base that is converted can be compared"
        id = compared_base.similarity.id
        if self.store.step(id).record() is None:
            self._ask(compared_base)
            return None
        if id not in self._matrices:
            try:
                self._matrices[id] = Similarity.load(self.store.step(id).out).costs()
            except (ValueError, OSError) as error:
                raise UserError(f"{RULE} = {point.config.layout.rule}: step {id} cannot be read ({error})") from None
        return self._matrices[id]

    def _scores(self, point: Variant, resolver: Resolver, layouts: list[KVLayout]) -> dict[KVLayout, float] | None:
        """Bits per byte of each layout's conversion; None where one is not scored yet."""
        found: dict[KVLayout, float] = {}
        for layout in layouts:
            candidate = with_steps(_candidate(point, layout), resolver)
            if record := self.store.step(candidate.evaluate[BITS].id).record():
                bits = (row.value for row in record.metrics if row.metric == BITS and row.value is not None)
                found[layout] = next(bits, math.inf)
            else:
                self._ask(candidate)
        return found if len(found) == len(layouts) else None

    def _ask(self, variant: Variant) -> None:
        self.inputs[tuple(step.id for step in variant.steps)] = variant


def compared(config: Config) -> Config:
    """With a similarity step where a rule reads one and the configuration has none."""
    layout = config.layout
    reads = layout.pattern == SEARCHED and layout.rule and LAYOUT_RULES[layout.rule].measures
    if not reads or config.similarity.windows:
        return config
    return replace(config, similarity=replace(config.similarity, windows=WINDOWS))


def of_base(point: Variant) -> Variant:
    """A point as one that has the base's own layout."""
    values = {**point.values, "layout": {"pattern": "even"}}
    return replace(point, config=replace(point.config, layout=LayoutConfig()), values=values, layout=point.model.layout)


def _check(config: Config, model: Model) -> None:
    """A rule reads what a base computes. Raises UserError."""
    name, start = str(config.layout.rule), config.convert.start
    if start != "convert":
        raise UserError(f"layout.pattern = {SEARCHED}: convert.start = {start} has no base that a rule could read")
    rule, own = LAYOUT_RULES[name], model.layout
    spread_by = config.layout.spread
    if config.elastic.steps != 0 and (rule.candidates or spread_by != "equal"):
        what = f"{RULE} = {name}" if rule.candidates else f"{SPREAD} = {spread_by}"
        raise UserError(f"{what}: scores conversions of the base, and elastic training cuts; add elastic=none")
    if rule.values and spread_by != "equal":
        raise UserError(f"{SPREAD} = {spread_by}: {name} places keys and values apart, with equally many heads each")
    what = "caches latents" if own.latent else "has layers that read from above" if own.reads_above else ""
    if rule.measures and what:
        raise UserError(
            f"{RULE} = {name}: model {config.model.name} {what}, and its layers cannot be compared; choose a rule that "
            "reads no similarity"
        )
    if DAMAGE in rule.measures and not config.similarity.damage:
        raise UserError(f"{RULE} = {name}: reads the damage, and similarity.damage = false leaves it out")


def _stand_in(point: Variant) -> KVLayout:
    """Of the size that is searched first."""
    base, config = point.model.layout, point.config.layout
    owners, heads = config.sizes(base)[0]
    apart = bool(LAYOUT_RULES[str(config.rule)].values) and 1 < owners < base.layers
    values = value_sources_of("fusedkv_lite", base.layers, owners) if apart else None
    return with_heads(sources_of("pizza", base.layers, owners), values, base.heads, heads)


def _with_layout(point: Variant, layout: KVLayout) -> Variant:
    own, values = point.config.layout, point.values
    named = [f"{RULE}={own.rule}", *([] if own.spread == "equal" else [f"{SPREAD}={own.spread}"])]
    written: Values = {"pattern": EXPLICIT, "kv_source_layers": [*layout.kv_source_layers]}
    written["kv_heads"] = [*layout.kv_heads]
    if layout.value_source_layers:
        written["value_source_layers"] = [*layout.value_source_layers]
    latent = ("latent", "rotary_dims", "shared_rotary")
    written |= {key: values["layout"][key] for key in latent if key in values["layout"]}
    return replace(
        point,
        config=replace(point.config, layout=own.written_out(layout)),
        values={**values, "layout": written},
        layout=own.with_latent(layout, point.model.layout, point.model.shape),
        varying=(*point.varying, *named),
    )


def _candidate(point: Variant, layout: KVLayout) -> Variant:
    """A conversion that is scored as the sweep's own are before uptraining, and not trained."""
    own = point.config
    scores = replace(own.evaluate, tasks=(BITS,), accuracy=(), axis=None, few_shot=None, lengths=(), converted=())
    measure, untrained = replace(own.measure, batch_sizes=()), TrainRecipe(steps=0)
    config = replace(own, uptrain=untrained, evaluate=scores, measure=measure, similarity=SimilarityRecipe(), added={})
    made = _with_layout(replace(point, config=config), layout)
    written = ("kv_source_layers", layout.kv_source_layers), ("kv_heads", layout.kv_heads)
    return replace(made, varying=tuple(f"layout.{key}=[{','.join(map(str, each))}]" for key, each in written))


def _what_decides(config: Config) -> Any:
    """All that a searched layout follows from."""
    own = config.evaluate
    scored = LAYOUT_RULES[str(config.layout.rule)].candidates or config.layout.spread != "equal"
    scores = (own.limit, own.precision, config.cache) if scored else ()
    recipes = (config.base, config.convert, config.calibrate, config.similarity)
    return (config.model, config.layout, config.corpus, *recipes, scores)
