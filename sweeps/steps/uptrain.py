"""The uptrain step: further training of a converted checkpoint (mlkv/train)."""

from __future__ import annotations

from pathlib import Path

from mlkv.context import Context, Outcome
from mlkv.files import Json
from mlkv.recipes import TrainRecipe
from sweeps.steps.step import Inputs, Step, recipe_of, what, where


def uptrain_step(recipe: TrainRecipe, start: Step, corpus: Step, label: str) -> Step:
    return Step("uptrain", what(recipe), {"start": start.id, "corpus": corpus.id}, {}, where(recipe), label)


def run(values: Json, how: Json, inputs: Inputs, out: Path, ctx: Context) -> Outcome:
    from mlkv.train.step import run as train

    recipe = recipe_of(TrainRecipe, values, how)
    return train(recipe, out, ctx, corpus=inputs["corpus"], start=inputs["start"])
