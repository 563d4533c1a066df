"""A variant: one row of a paper's table; and how a point of the sweep becomes variants."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

from mlkv.cache.formats import AS_COMPUTED, CACHES
from mlkv.evaluate.task_files import TaskFiles
from mlkv.layout import KVLayout, mha
from mlkv.merges import converted_shape, counted_grouping, merge_named
from mlkv.patterns import family_of, name_of
from mlkv.shape import DecoderShape
from mlkv.train.sampling import layouts_of
from sweeps.planning.checks import (
    check_corpus,
    check_elastic,
    check_layout,
    check_measure,
    check_read_fields,
    check_similarity,
    check_size,
    check_tasks,
    check_teacher,
)
from sweeps.planning.config import Baseline, Config
from sweeps.planning.grammar import keeps
from sweeps.planning.plain_config import Values
from sweeps.planning.resolve import (
    LM_EVAL,
    Model,
    Resolver,
    answer_pins,
    check_room,
    few_shot,
    package_version,
    uses_base,
    uses_corpus,
)
from sweeps.steps.base import loaded_base_step, trained_base_step
from sweeps.steps.calibrate import calibrate_step
from sweeps.steps.convert import convert_step, scratch_step
from sweeps.steps.corpus import corpus_step
from sweeps.steps.elastic import elastic_step
from sweeps.steps.evaluate import evaluate_step
from sweeps.steps.kind import Planned
from sweeps.steps.measure import measure_step
from sweeps.steps.registry import KINDS, kind_of
from sweeps.steps.similarity import similarity_step
from sweeps.steps.step import Step, canonical
from sweeps.steps.teacher import teacher_step
from sweeps.steps.uptrain import uptrain_steps
from sweeps.store.errors import UserError
from sweeps.store.schema import VariantRow, VariantSteps

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
STEPS = "uptrain.steps"
"""The key under which the rungs of a chain are swept values."""
_ROLES = ("corpus", "base", "calibrate", "teacher", "elastic", "convert", "uptrain", "measure", "similarity")
"""Roles of which a variant has one step at most; of `evaluate` it has one for each task."""


@cache
def parameters_of(shape: DecoderShape, layout: KVLayout) -> int:
    """Of a sweep's variants, many have the same."""
    return shape.parameters(layout)


@dataclass(frozen=True)
class Variant:
    """A base with a layout, its training, and the steps that make and score it. `varying`: the override lines in which
    the points of the sweep differ."""

    config: Config
    values: Values
    model: Model
    layout: KVLayout
    baseline: Baseline | None
    varying: tuple[str, ...]
    label: str = ""
    corpus: Step | None = None
    corpus_note: str = ""
    """What the plan found out about the corpus's text."""
    base: Step | None = None
    calibrate: Step | None = None
    teacher: Step | None = None
    elastic: Step | None = None
    convert: Step | None = None
    earlier: tuple[Step, ...] = ()
    """The trainings that its own continues, the shortest first."""
    uptrain: Step | None = None
    evaluate: dict[str, Step] = field(default_factory=dict)
    """By task."""
    converted: dict[str, Step] = field(default_factory=dict)
    """By task, those that score the conversion before uptraining; without uptraining they are those of `evaluate`."""
    task_files: dict[str, TaskFiles] = field(default_factory=dict)
    """Of the tasks that files of the user's define."""
    measure: Step | None = None
    similarity: Step | None = None
    """Of the base. The untouched one alone has it, where there is one."""
    added: dict[str, Step] = field(default_factory=dict)
    """By kind, those of extensions."""

    @property
    def checkpoint(self) -> Step | None:
        """The step that makes what is scored; None where only a shape is measured."""
        return self.uptrain or self.convert or self.base

    @property
    def steps(self) -> list[Step]:
        """Parents before children."""
        chain = [
            self.corpus,
            self.base,
            self.calibrate,
            self.teacher,
            self.elastic,
            self.convert,
            *self.earlier,
            self.uptrain,
        ]
        chain += [*self.converted.values(), *self.evaluate.values(), self.measure, self.similarity]
        chain += self.added.values()
        return list({step.id: step for step in chain if step}.values())

    @cached_property
    def shape(self) -> DecoderShape:
        """The decoder's, converted or from scratch: MLPs as wide as the recipe's widening makes them."""
        return converted_shape(self.model.shape, self.model.layout, self.layout, self.config.convert.widening)

    @property
    def family(self) -> str:
        return family_of(self.layout, self.config.layout.pattern)

    @property
    def name(self) -> str:
        return name_of(self.layout, self.config.layout.pattern)

    @property
    def parameters(self) -> int:
        return parameters_of(self.shape, self.layout)

    @property
    def element_bytes(self) -> int:
        """Bytes of a number as the model computes it."""
        return ELEMENT_BYTES[self.config.measure.dtype]

    @property
    def kv_bytes_per_token(self) -> int:
        """Of the cache that it is scored and measured with."""
        return self.kv_bytes_of(self.element_bytes)

    def kv_bytes_of(self, element_bytes: int) -> int:
        """The same for a model that computes in numbers of so many bytes."""
        return CACHES[self.config.cache].kv_bytes_per_token(self.layout, self.shape.head_dim, element_bytes)

    @property
    def few_shot(self) -> dict[str, int | dict[str, int]]:
        """Examples before each question of a task of lm-eval; what a function scores has no questions."""
        return {task: step.slice["few_shot"] for task, step in self.evaluate.items() if LM_EVAL in step.pinned}

    def work(self, step: Step) -> float:
        """The amount of work in a step: parameters (millions) times what passes through them."""
        work = kind_of(step.kind).work(step, self.parameters / 1e6, self.config.corpus.sequence_length)
        # Layers that wait for each other run several times over a text.
        return work * {"uptrain": self.layout.training_cost, "evaluate": self.layout.prefill_cost}.get(step.kind, 1.0)

    def row(self) -> VariantRow:
        """What the store holds of it, for tables."""
        layout = self.layout
        added = {kind: step.id for kind, step in self.added.items()} or None
        earlier = [step.id for step in self.earlier] or None
        ids = {role: step.id if (step := getattr(self, role)) else None for role in _ROLES}
        return VariantRow(
            variant=self.label,
            baseline=self.baseline,
            overrides=dict(line.split("=", 1) for line in self.varying),
            pattern=self.config.layout.pattern,
            family=self.family,
            kv_layers=layout.kv_layers,
            kv_heads=list(layout.kv_heads),
            budget=layout.budget,
            layout=layout,
            head_dim=self.shape.head_dim,
            kv_element_bytes=self.element_bytes if CACHES[self.config.cache].bits is None else None,
            kv_bytes_per_token=self.kv_bytes_per_token,
            cache=None if self.config.cache == AS_COMPUTED else self.config.cache,
            parameters=self.parameters,
            few_shot=self.few_shot,
            config={key: value for key, value in self.values.items() if key not in ("sweep", "reports")},
            steps=VariantSteps(
                **ids,
                evaluate={task: step.id for task, step in self.evaluate.items()},
                added=added,
                earlier=earlier,
                converted={task: step.id for task, step in self.converted.items()} or None,
            ),
        )


def variants_of_point(resolver: Resolver, config: Config, values: Values, varying: Sequence[str]) -> Iterator[Variant]:
    """The baselines of one point of the sweep, then those of its own layouts that pass the sweep's filter.

    Raises UserError for what could be known to fail.
    """
    model = resolver.model(config.model)
    check_size(config, model)

    def variant(layout: KVLayout, baseline: Baseline | None) -> Variant:
        return Variant(config, values, model, layout, baseline, tuple(varying))

    chosen = []
    if "untouched" in config.sweep.baselines and config.convert.start == "convert":
        chosen.append(variant(model.layout, "untouched"))
    if "mha" in config.sweep.baselines:
        chosen += _of_rungs(variant(model.layout, "mha"))
    for layout in _layouts(config, values, model):
        for own in _of_rungs(variant(layout, "mha" if layout == model.layout else None)):
            if keeps(config.sweep.filter, _filter_names(own)):
                check_layout(config, model, layout)
                chosen.append(own)
    if chosen and config.convert.start == "convert":
        resolver.check_base(config.model)
    if chosen:
        check_elastic(config, model, [each.layout for each in chosen if each.baseline != "untouched"])
        check_read_fields(config)
        check_tasks(config)
        check_teacher(config)
        check_measure(config, model)
        check_similarity(config, model)
    for each in chosen:
        yield _with_steps(each, resolver)


def _of_rungs(variant: Variant) -> list[Variant]:
    """One for each rung of its training, which is then a swept value: its length. The configuration of each ends with
    its own rung."""
    recipe = variant.config.uptrain
    if not recipe.rungs or variant.config.convert.start == "none":
        return [variant]
    return [
        replace(
            variant,
            config=replace(variant.config, uptrain=replace(recipe, rungs=rungs)),
            values={**variant.values, "uptrain": {**variant.values["uptrain"], "rungs": list(rungs)}},
            varying=(*variant.varying, f"{STEPS}={rungs[-1]}"),
        )
        for rungs in (recipe.rungs[: i + 1] for i in range(len(recipe.rungs)))
    ]


def _layouts(config: Config, values: Values, model: Model) -> list[KVLayout]:
    """The layouts of a point; none where none can be made and the sweep's filter removes the point anyway."""
    own = model.layout
    start = own if config.convert.start == "convert" else mha(own.layers, own.heads)
    try:
        layouts = config.layout.layouts(own, start)
        return [config.layout.with_latent(layout, start, model.shape) for layout in layouts]
    except ValueError as error:
        if _removed(config, values, model):
            return []
        raise UserError(f"model {config.model.name}: {error}") from None


def _removed(config: Config, values: Values, model: Model) -> bool:
    """Whether the filter removes a point, by what is known without a layout."""
    sizes = {
        key: value
        for key in ("kv_layers", "kv_heads", "value_heads", "budget")
        if (value := getattr(config.layout, key))
    }
    shape = {"layers": model.shape.layers, "heads": model.shape.heads, "head_dim": model.shape.head_dim}
    try:
        return not keeps(config.sweep.filter, {**values, "pattern": config.layout.pattern, **shape, **sizes})
    except UserError:  # it asks for what only a layout has
        return False


def _filter_names(variant: Variant) -> Values:
    """The names that `sweep.filter` can use: the configuration, and the properties of the layout that it gives."""
    layout, shape, rungs = variant.layout, variant.shape, variant.config.uptrain.rungs
    length = {"uptrain": {**variant.values["uptrain"], "steps": rungs[-1]}} if rungs else {}
    return {
        **variant.values,
        **length,
        "name": variant.name,
        "family": variant.family,
        "pattern": variant.config.layout.pattern,
        "kv_layers": layout.kv_layers,
        "kv_heads": _one_or_each(layout.kv_heads),
        "value_heads": _one_or_each(layout.values.kv_heads),
        "budget": layout.budget,
        "layers": layout.layers,
        "heads": layout.heads,
        "head_dim": shape.head_dim,
        "kv_bytes_per_token": variant.kv_bytes_of(2),
        "parameters": variant.parameters,
    }


def _one_or_each(heads: Sequence[int]) -> int | list[int]:
    return heads[0] if len(set(heads)) == 1 else list(heads)


def _with_steps(variant: Variant, resolver: Resolver) -> Variant:
    """The variant with the steps that make and score it."""
    label = "untouched" if variant.baseline == "untouched" else name_of(variant.layout)
    if rungs := variant.config.uptrain.rungs if variant.baseline != "untouched" else ():
        label += f" {rungs[-1]} steps"
    if variant.config.convert.start != "none":
        variant = _with_checkpoint(variant, resolver)
    variant = _with_scores(variant, resolver, label)
    variant = replace(variant, measure=_measure_step(variant), similarity=_similarity_step(variant))
    variant = replace(variant, added=dict(_added_steps(variant, label)))
    return _with_checked_corpus(variant, resolver)


def _with_checked_corpus(variant: Variant, resolver: Resolver) -> Variant:
    """A variant that no step trains on, or scores on, a corpus has none: a checkpoint of one's own, on tasks alone."""
    if variant.corpus is None:
        return variant
    if not any(variant.corpus.id in step.parents.values() for step in variant.steps):
        return replace(variant, corpus=None)
    check_corpus(variant.config, variant.model)
    return replace(variant, corpus_note=resolver.corpus_note(variant.config.corpus, variant.config.model))


def _with_checkpoint(variant: Variant, resolver: Resolver) -> Variant:
    config, model, layout = variant.config, variant.model, variant.layout
    corpus = corpus_step(config.corpus, *resolver.corpus(config.corpus, config.model))
    base = None if config.convert.start == "scratch" else _base_step(config, model, corpus)
    if variant.baseline == "untouched":
        return replace(variant, corpus=corpus, base=base)
    calibrate = elastic = None
    if base:
        if _needs_calibration(variant):
            calibrate = calibrate_step(config.calibrate, base, corpus, config.model.name)
        if config.elastic.steps != 0:
            elastic = _elastic_step(config, model, base, corpus, calibrate)
        source, calibration = (elastic, None) if elastic else (base, calibrate)
        convert = convert_step(config.convert, layout, model.layout, source, calibration, name_of(layout))
    else:
        convert = scratch_step(config.convert, layout, variant.shape, corpus, name_of(layout))
    variant = replace(variant, corpus=corpus, base=base, calibrate=calibrate)
    variant = replace(variant, elastic=elastic, convert=convert)
    return variant if config.uptrain.steps == 0 else _with_training(variant, convert, corpus)


def _with_training(variant: Variant, start: Step, corpus: Step) -> Variant:
    config, base = variant.config, variant.base
    recipe, stored = config.uptrain, None
    if base and recipe.teacher_stored:
        length = config.corpus.sequence_length
        stored = teacher_step(config.teacher, recipe, base, corpus, variant.model.shape, length, config.model.name)
    teacher = base if recipe.teacher_online else stored
    *earlier, uptrain = uptrain_steps(recipe, start, corpus, name_of(variant.layout), teacher)
    return replace(variant, teacher=stored, earlier=tuple(earlier), uptrain=uptrain)


def check_teacher_line(arguments: Iterable[str], variants: Collection[Variant]) -> None:
    """Raises UserError where the line sets what only stored predictions read, and no run learns from such."""
    given = next((line for line in arguments if line.startswith("teacher.")), None)
    if given and not any(variant.teacher for variant in variants):
        raise UserError(
            f"{given}: no run of this sweep reads it; set uptrain.teacher_logits=stored (with uptrain.teacher=base)"
        )


def _needs_calibration(variant: Variant) -> bool:
    config = variant.config
    if config.elastic.steps != 0:
        return config.elastic.align
    own, layout = variant.model.layout, variant.layout
    grouping = counted_grouping(config.convert.grouping, config.convert.merge, own, layout)
    needed = merge_named(config.convert.merge).calibrated or grouping == "similar"
    return layout != own and (bool(layout.latent) or (needed and layout.without_latent != own))


def _elastic_step(config: Config, model: Model, base: Step, corpus: Step, calibrate: Step | None) -> Step:
    layouts = layouts_of(config.elastic, model.layout)
    label = f"{config.model.name} as {len(layouts)} layouts"
    return elastic_step(config.elastic, layouts, config.convert.merge, base, corpus, calibrate, label)


def _base_step(config: Config, model: Model, corpus: Step) -> Step:
    if model.source:
        return loaded_base_step(model.pins, model.source, config.model.name)
    return trained_base_step(config.base, model.shape, corpus, config.model.name)


def _with_scores(variant: Variant, resolver: Resolver, label: str) -> Variant:
    """The variant with the steps that score its checkpoint, if there is one, and its conversion."""
    if variant.checkpoint is None:
        return variant
    steps, converted, found, config = {}, {}, {}, variant.config.evaluate
    for task in config.tasks:
        if uses_base(task) and (variant.base is None or variant.baseline == "untouched"):
            continue  # there is no other checkpoint to compare with
        files = resolver.own_tasks.files(task, config.include_path)
        given = resolver.own_tasks.definitions(task, config.include_path) if files else {}
        held_out = variant.corpus if uses_corpus(task) else None
        pins = resolver.task_pins(task, config.include_path)  # first: an unknown task has no count of its own
        pins |= answer_pins(config, task, variant.shape.context, given)
        counts = few_shot(config, task, given)
        check_room(task, counts, variant.shape.context)
        recipe = config.recipe(task, counts, variant.config.cache)
        if files:
            resolver.own_tasks.try_out(files, recipe)
            found[task] = files
        base = variant.base if uses_base(task) else None
        steps[task] = evaluate_step(recipe, variant.checkpoint, held_out, pins, f"{label} {task}", base)
        if task in config.converted and variant.base and variant.convert:
            name = f"{label} {task}" if variant.uptrain is None else f"{label} converted {task}"
            converted[task] = evaluate_step(recipe, variant.convert, held_out, pins, name, base)
    return replace(variant, evaluate=steps, converted=converted, task_files=found)


def _measure_step(variant: Variant) -> Step | None:
    measure = variant.config.measure
    if not measure.batch_sizes:
        return None
    pins = {name: package_version(name) for name in ("torch", "transformers")}
    label, cache = name_of(variant.layout), variant.config.cache
    return measure_step(measure, variant.layout, variant.shape, cache, pins, label)


def _similarity_step(variant: Variant) -> Step | None:
    config, base, corpus = variant.config, variant.base, variant.corpus
    elsewhere = variant.baseline != "untouched" and "untouched" in config.sweep.baselines
    if not config.similarity.windows or base is None or corpus is None or elsewhere:
        return None
    return similarity_step(config.similarity, base, corpus, config.model.name)


def _added_steps(variant: Variant, label: str) -> Iterator[tuple[str, Step]]:
    """Steps of kinds that extensions add. A step is pinned to the file of its kind."""
    planned = Planned(variant.layout, variant.shape, variant.corpus, variant.checkpoint, label)
    for name, recipe in variant.config.added.items():
        kind = KINDS[name]
        with KINDS.running(name):
            step = kind.plan(recipe, planned) if kind.plan else None
            if step:
                step = replace(step, kind=name, pinned={**step.pinned, **KINDS.pins(name)})
                canonical(step.spec)  # raises where its slice is no JSON
        if step:
            yield name, step
