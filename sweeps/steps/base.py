"""The base step: a model trained from nothing (mlkv/train), or one that is loaded (mlkv/families)."""

from __future__ import annotations

from pathlib import Path

from mlkv.context import Context, Outcome
from mlkv.files import Json
from mlkv.recipes import TrainRecipe
from mlkv.shape import DecoderShape
from sweeps.steps.step import Inputs, Step, recipe_of, what, where


def trained_base_step(recipe: TrainRecipe, shape: DecoderShape, corpus: Step, label: str) -> Step:
    return Step("base", {"train": what(recipe), "shape": what(shape)}, {"corpus": corpus.id}, {}, where(recipe), label)


def loaded_base_step(pins: dict[str, str], source: dict[str, str], label: str) -> Step:
    return Step("base", {}, {}, pins, {"source": source}, label)


def run(values: Json, how: Json, inputs: Inputs, out: Path, ctx: Context) -> Outcome:
    if source := how.get("source"):
        from mlkv.families.load import import_pretrained
        from sweeps.steps.model_files import local_copy

        return import_pretrained(local_copy(source), out, ctx)
    from mlkv.train.step import run as train

    recipe = recipe_of(TrainRecipe, values["train"], how)
    shape = recipe_of(DecoderShape, values["shape"], {})
    return train(recipe, out, ctx, corpus=inputs["corpus"], start=None, shape=shape)
