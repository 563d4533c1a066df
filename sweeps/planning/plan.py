"""Resolved configurations → variants → the graph of steps. Reads conf/ and outside facts; runs nothing.

`mlkv plan` prints it, `mlkv sweep` freezes it in the store and runs what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from mlkv.convert.tables import converted_shape
from mlkv.evaluate.task_names import BITS_PER_BYTE
from mlkv.files import Json
from mlkv.layout import KVLayout
from mlkv.shape import DecoderShape
from sweeps.planning.compose import Composer, Values
from sweeps.planning.config import Config, parse
from sweeps.planning.grammar import keeps, points
from sweeps.planning.labels import labelled
from sweeps.planning.resolve import Model, Resolver, few_shot, package_version, task_pins, uses_corpus
from sweeps.planning.tokens import Tokens
from sweeps.steps.base import loaded_base_step, trained_base_step
from sweeps.steps.convert import convert_step, scratch_step
from sweeps.steps.corpus import corpus_step
from sweeps.steps.evaluate import evaluate_step
from sweeps.steps.measure import measure_step
from sweeps.steps.step import Step, with_work
from sweeps.steps.uptrain import uptrain_step
from sweeps.store.errors import UserError

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Variant:
    """One row of a paper's table: a base with a layout, its training, and the steps that make and score it."""

    config: Config
    values: Values
    layout: KVLayout
    model: Model
    baseline: str | None
    varying: tuple[str, ...]
    corpus: Step | None
    base: Step | None
    convert: Step | None
    uptrain: Step | None
    evaluate: dict[str, Step]
    measure: Step | None
    label: str = ""

    @property
    def steps(self) -> list[Step]:
        """Parents before children."""
        chain = [self.corpus, self.base, self.convert, self.uptrain, *self.evaluate.values(), self.measure]
        return [step for step in chain if step]

    @property
    def shape(self) -> DecoderShape:
        return final_shape(self.config, self.model, self.layout)

    @property
    def family(self) -> str:
        return self.layout.family_by(self.config.layout.pattern)

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.config.measure.dtype]

    @property
    def few_shot(self) -> dict[str, int | dict[str, int]]:
        """Examples before each question of a task; bits per byte has no questions."""
        return {task: step.slice["few_shot"] for task, step in self.evaluate.items() if task != BITS_PER_BYTE}

    def work(self, step: Step) -> float:
        """How much a step has to do: parameters (millions) times what passes through them."""
        millions = self.shape.parameters(self.layout) / 1e6
        config = self.config
        if step.kind in ("base", "uptrain") and not step.how.get("source"):
            recipe = config.base if step.kind == "base" else config.uptrain
            tokens = recipe.tokens_of(config.corpus.sequence_length) or 1e6 * (recipe.epochs or 1)
            return max(millions * tokens, 1.0)
        if step.kind == "evaluate":
            return millions * (config.evaluate.limit or 1000)
        if step.kind == "measure":
            measure = config.measure
            cells = sum(measure.batch_sizes) * sum(measure.contexts)
            return millions * cells * measure.repeats
        return millions

    def row(self) -> Json:
        """What the store keeps of it, for tables."""
        layout, shape = self.layout, self.shape
        return {
            "variant": self.label,
            "baseline": self.baseline,
            "overrides": dict(line.split("=", 1) for line in self.varying),
            "pattern": self.config.layout.pattern,
            "family": self.family,
            "kv_layers": layout.kv_layers,
            "kv_heads": list(layout.kv_heads),
            "budget": layout.budget,
            "layout": layout.as_dict(),
            "head_dim": shape.head_dim,
            "kv_element_bytes": self.element_bytes,
            "kv_bytes_per_token": layout.kv_bytes_per_token(shape.head_dim, self.element_bytes),
            "parameters": shape.parameters(layout),
            "few_shot": self.few_shot,
            "config": {key: value for key, value in self.values.items() if key not in ("sweep", "reports")},
            "steps": {
                **{role: step.id if (step := getattr(self, role)) else None for role in _SINGLE},
                "evaluate": {task: step.id for task, step in self.evaluate.items()},
            },
        }


_SINGLE = ("corpus", "base", "convert", "uptrain", "measure")


@dataclass(frozen=True)
class Plan:
    """Every variant of a sweep, labelled, and the steps they share."""

    config: Config
    variants: list[Variant]

    @property
    def name(self) -> str:
        return self.config.name

    @cached_property
    def steps(self) -> dict[str, Step]:
        """Distinct steps by id, parents before children."""
        return {step.id: with_work(step, v.work(step)) for v in self.variants for step in v.steps}

    def checkpoint_bytes(self, steps: set[str]) -> int:
        """What the checkpoints among these steps will take, in float32."""
        parameters: dict[str, int] = {}
        for variant in self.variants:
            if variant.base:
                parameters[variant.base.id] = variant.model.shape.parameters(variant.model.layout)
            for step in filter(None, (variant.convert, variant.uptrain)):
                parameters[step.id] = variant.shape.parameters(variant.layout)
        return sum(4 * count for id, count in parameters.items() if id in steps)

    def saved(self) -> Json:
        """The sweep-wide part of the frozen plan."""
        users: dict[str, list[str]] = {}
        for variant in self.variants:
            for step in variant.steps:
                users.setdefault(step.id, []).append(variant.label)
        evaluate = self.config.evaluate
        return {
            "accuracy": [list(pair) for pair in evaluate.accuracy],
            "axis": list(evaluate.axis) if evaluate.axis else None,
            "cluster": asdict(self.config.cluster),
            "tracking": asdict(self.config.tracking),
            "steps": {
                id: {"kind": step.kind, "label": step.label, "parents": step.parents, "variants": users[id]}
                for id, step in self.steps.items()
            },
        }


def make_plan(composer: Composer, resolver: Resolver, arguments: Sequence[str]) -> Plan:
    """The plan of a sweep's command line. Raises UserError for everything that could be known to fail."""
    found: dict[tuple[str, ...], Variant] = {}
    config: Config | None = None
    tokens = Tokens(resolver)
    for lines, varying in points(composer, arguments):
        values = composer(lines)
        config = tokens.settled(parse(values))
        for variant in _variants(resolver, config, values, varying):
            steps_of = tuple(step.id for step in variant.steps)
            found[steps_of] = _merged(found.get(steps_of, variant), variant)
    if config is None or not found:
        raise UserError("no variant is left: sweep.filter or a glob matches nothing")
    resolver.save()
    ordered = sorted(found.values(), key=lambda v: v.baseline is None)
    return Plan(config, list(labelled(ordered)))


def _merged(first: Variant, again: Variant) -> Variant:
    """One variant that two points of the sweep make: only what both say of it says anything about it."""
    return replace(first, varying=tuple(line for line in first.varying if line in again.varying))


def _variants(resolver: Resolver, config: Config, values: Values, varying: list[str]) -> Iterator[Variant]:
    """The baselines of one point of the sweep, then its own layouts."""
    model = resolver.model(config.model)
    if "untouched" in config.sweep.baselines and config.convert.start == "convert":
        yield _variant(resolver, config, values, varying, model.layout, "untouched")
    if "mha" in config.sweep.baselines:
        yield _variant(resolver, config, values, varying, model.layout, "mha")
    for layout in _layouts(config, model):
        if keeps(config.sweep.filter, _filter_names(config, values, layout, model)):
            yield _variant(resolver, config, values, varying, layout, None)


def _layouts(config: Config, model: Model) -> list[KVLayout]:
    try:
        layouts = config.layout.layouts(model.shape.layers, model.shape.heads)
    except ValueError as error:
        raise UserError(f"model {config.model.name}: {error}") from None
    for layout in layouts:
        _check_fits(config, layout, model)
    return layouts


def _check_fits(config: Config, layout: KVLayout, model: Model) -> None:
    name, shape = config.model.name, model.shape
    if layout.layers != shape.layers:
        raise UserError(f"layout.kv_source_layers has {layout.layers} entries: model {name} has {shape.layers} layers")
    if config.convert.start == "convert":
        for layer in layout.owners:
            have, want = model.layout.heads_of(layer), layout.heads_of(layer)
            if have % want:
                raise UserError(f"layout.kv_heads = {want} at layer {layer}: must divide the base's {have} KV heads")
    if config.corpus.sequence_length > shape.context:
        raise UserError(
            f"corpus.sequence_length = {config.corpus.sequence_length}: model {name} takes at most {shape.context}"
        )
    if config.corpus.tokenizer == "train" and config.corpus.vocab_size > shape.vocab_size:
        raise UserError(
            f"corpus.vocab_size = {config.corpus.vocab_size}: model {name} has only {shape.vocab_size} embeddings"
        )


def _filter_names(config: Config, values: Values, layout: KVLayout, model: Model) -> Values:
    shape, family = final_shape(config, model, layout), layout.family_by(config.layout.pattern)
    return {
        **values,
        "name": f"{family}-{layout.budget}",
        "family": family,
        "pattern": config.layout.pattern,
        "kv_layers": layout.kv_layers,
        "kv_heads": layout.kv_heads[0] if len(set(layout.kv_heads)) == 1 else list(layout.kv_heads),
        "budget": layout.budget,
        "layers": layout.layers,
        "heads": layout.heads,
        "head_dim": shape.head_dim,
        "kv_bytes_per_token": layout.kv_bytes_per_token(shape.head_dim),
        "parameters": shape.parameters(layout),
    }


def final_shape(config: Config, model: Model, layout: KVLayout) -> DecoderShape:
    """The decoder's shape, converted or from scratch: MLPs as wide as the recipe's widening makes them."""
    return converted_shape(model.shape, layout, config.convert.widening, model.layout)


def _variant(
    resolver: Resolver, config: Config, values: Values, varying: list[str], layout: KVLayout, baseline: str | None
) -> Variant:
    model = resolver.model(config.model)
    untouched = baseline == "untouched"
    if baseline is None and layout == model.layout:
        baseline = "mha"
    label = "untouched" if untouched else layout.name
    chain = _Chain() if config.convert.start == "none" else _chain(resolver, config, model, layout, untouched)
    return Variant(
        config,
        values,
        layout,
        model,
        baseline,
        tuple(varying),
        chain.corpus,
        chain.base,
        chain.convert,
        chain.uptrain,
        _evaluates(config, chain, label),
        _measure(config, model, layout),
    )


@dataclass(frozen=True)
class _Chain:
    """The steps that lead to a variant's checkpoint; none where there is no checkpoint to make."""

    corpus: Step | None = None
    base: Step | None = None
    convert: Step | None = None
    uptrain: Step | None = None


def _chain(resolver: Resolver, config: Config, model: Model, layout: KVLayout, untouched: bool) -> _Chain:
    corpus = corpus_step(config.corpus, *resolver.corpus(config.corpus, config.model))
    base = None if config.convert.start == "scratch" else _base(config, model, corpus)
    if untouched:
        return _Chain(corpus, base)
    shape = final_shape(config, model, layout)
    if base:
        convert = convert_step(config.convert, layout, model.layout, base, layout.name)
    else:
        convert = scratch_step(config.convert, layout, shape, corpus, layout.name)
    trained = config.uptrain.steps != 0
    uptrain = uptrain_step(config.uptrain, convert, corpus, layout.name) if trained else None
    return _Chain(corpus, base, convert, uptrain)


def _base(config: Config, model: Model, corpus: Step) -> Step:
    if model.source:
        return loaded_base_step(model.pins, model.source, config.model.name)
    return trained_base_step(config.base, model.shape, corpus, config.model.name)


def _evaluates(config: Config, chain: _Chain, label: str) -> dict[str, Step]:
    checkpoint = chain.uptrain or chain.convert or chain.base
    if checkpoint is None:
        if config.evaluate.tasks:
            raise UserError("convert = none: makes no checkpoint that evaluate.tasks could score; add evaluate=none")
        return {}
    return {task: _evaluate(config, task, checkpoint, chain.corpus, label) for task in config.evaluate.tasks}


def _evaluate(config: Config, task: str, checkpoint: Step, corpus: Step | None, label: str) -> Step:
    held_out = corpus if uses_corpus(task) else None
    pins = task_pins(task)  # first: an unknown task has no count of its own
    recipe = config.evaluate.recipe(task, few_shot(config.evaluate, task))
    return evaluate_step(recipe, checkpoint, held_out, pins, f"{label} {task}")


def _measure(config: Config, model: Model, layout: KVLayout) -> Step | None:
    if not config.measure.batch_sizes:
        return None
    pins = {name: package_version(name) for name in ("torch", "transformers")}
    return measure_step(config.measure, layout, final_shape(config, model, layout), pins, layout.name)
