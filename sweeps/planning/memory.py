"""What the trainings of a plan take of each device's memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlkv.layout import KVLayout, mha
from mlkv.shape import DecoderShape
from mlkv.train.memory import TrainingMemory, training_memory
from mlkv.training_recipes import TrainRecipe
from sweeps.planning.variant import Variant, parameters_of


@dataclass(frozen=True)
class NeededMemory:
    """Of the training of one variant. kind: of the step."""

    kind: str
    label: str
    recipe: TrainRecipe
    processes: int
    memory: TrainingMemory


def needed_memory(variants: Iterable[Variant]) -> list[NeededMemory]:
    """Every distinct training of these variants, by the name of a variant that has it."""
    found: dict[tuple[str, TrainingMemory], NeededMemory] = {}
    for variant in variants:
        config, model = variant.config, variant.model
        own = mha(model.shape.layers, model.shape.heads)
        if variant.base and variant.base.parents:
            _add(found, variant, "base", config.base, model.shape, own)
        if variant.elastic:
            _add(found, variant, "elastic", config.elastic, model.shape, model.layout)
        if variant.uptrain:
            _add(found, variant, "uptrain", config.uptrain, variant.shape, variant.layout)
    return list(found.values())


def _add(
    found: dict[tuple[str, TrainingMemory], NeededMemory],
    variant: Variant,
    kind: str,
    recipe: TrainRecipe,
    shape: DecoderShape,
    layout: KVLayout,
) -> None:
    cluster, model = variant.config.cluster, variant.model
    resources, gpu = cluster.resources_of(kind), cluster.device == "cuda"
    processes = resources.nodes * resources.tasks
    memory = training_memory(
        recipe,
        shape,
        layout,
        variant.config.corpus.sequence_length,
        # On a CPU, `auto` may be bf16, which takes less.
        bf16=recipe.precision == "bf16" or (recipe.precision == "auto" and gpu),
        processes=processes,
        gpu=gpu,
        base_parameters=parameters_of(model.shape, model.layout),
    )
    found.setdefault((kind, memory), NeededMemory(kind, variant.label, recipe, processes, memory))
