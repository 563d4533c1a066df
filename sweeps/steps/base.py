"""The base step: a model trained from nothing (mlkv/train), or one that is loaded (mlkv/families)."""

from __future__ import annotations

from mlkv.context import Outcome
from mlkv.shape import DecoderShape
from mlkv.signature import of_training
from mlkv.training_recipes import TrainRecipe
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.step import Step, identity_fields, recipe_of, runtime_fields
from sweeps.steps.uptrain import saves_memory, training_work


def trained_base_step(recipe: TrainRecipe, shape: DecoderShape, corpus: Step, label: str) -> Step:
    return Step(
        "base",
        {"train": identity_fields(recipe.without_unread()), "shape": identity_fields(shape)},
        {"corpus": corpus.id},
        {},
        runtime_fields(recipe),
        label,
    )


def loaded_base_step(pins: dict[str, str], source: dict[str, str], label: str) -> Step:
    return Step("base", {}, {}, pins, {"source": source}, label)


def run(execution: Execution) -> Outcome:
    if source := execution.step.how.get("source"):
        from mlkv.families.load import import_pretrained
        from sweeps.steps.model_files import local_copy

        return import_pretrained(local_copy(source), execution.out, execution.ctx)
    from mlkv.train.step import run as train

    recipe = execution.recipe(TrainRecipe, "train")
    shape = execution.recipe(DecoderShape, "shape")
    return train(recipe, execution.out, execution.ctx, corpus=execution.inputs["corpus"], start=None, shape=shape)


def work(step: Step, millions: float, sequence_length: int) -> float:
    """That of training; of a base that is loaded, its parameters."""
    if step.how.get("source"):
        return millions
    return training_work(recipe_of(TrainRecipe, step.slice["train"], step.how), millions, sequence_length)


KIND = StepKind(
    run,
    TrainRecipe,
    trains=True,
    scores=True,
    shares_job=False,
    work=work,
    cost="training",
    modules=("mlkv.train.step",),
    signatures=of_training,
    saves_memory=saves_memory("base"),
)
"""Many jobs wait for a base, so its job holds nothing else."""
