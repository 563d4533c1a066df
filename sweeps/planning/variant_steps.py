"""The steps that make, score, measure and compare a variant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mlkv.merges import counted_grouping, merge_named
from mlkv.patterns import name_of
from mlkv.train.sampling import layouts_of
from sweeps.planning.checks import (
    check_corpus,
)
from sweeps.planning.config import Config
from sweeps.planning.resolve import (
    Model,
    Resolver,
    answer_pins,
    check_room,
    few_shot,
    package_version,
    question_lengths,
    uses_base,
    uses_corpus,
)
from sweeps.planning.variant import Variant
from sweeps.steps.base import loaded_base_step, trained_base_step
from sweeps.steps.calibrate import calibrate_step
from sweeps.steps.convert import convert_step, scratch_step
from sweeps.steps.corpus import corpus_step
from sweeps.steps.elastic import elastic_step
from sweeps.steps.evaluate import evaluate_step
from sweeps.steps.kind import Planned
from sweeps.steps.measure import measure_step
from sweeps.steps.registry import KINDS
from sweeps.steps.similarity import similarity_step
from sweeps.steps.step import Step, canonical
from sweeps.steps.teacher import teacher_step
from sweeps.steps.uptrain import uptrain_steps


def with_steps(variant: Variant, resolver: Resolver) -> Variant:
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
    return variant if config.uptrain.last_step == 0 else _with_training(variant, convert, corpus)


def _with_training(variant: Variant, start: Step, corpus: Step) -> Variant:
    config, base = variant.config, variant.base
    recipe, stored = config.uptrain, None
    if base and recipe.teacher_stored:
        length = config.corpus.sequence_length
        stored = teacher_step(config.teacher, recipe, base, corpus, variant.model.shape, length, config.model.name)
    teacher = base if recipe.teacher_online else stored
    *earlier, uptrain = uptrain_steps(recipe, start, corpus, name_of(variant.layout), teacher)
    return replace(variant, teacher=stored, earlier=tuple(earlier), uptrain=uptrain)


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
        lengths = () if files else question_lengths(config, task, variant.shape.context)
        recipe = config.recipe(task, counts, variant.config.cache, lengths)
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
