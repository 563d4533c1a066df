"""The evaluate step: one task on one checkpoint (mlkv/evaluate)."""

from __future__ import annotations

import json
from pathlib import Path

from mlkv.context import Context, Outcome
from mlkv.files import Json
from mlkv.recipes import EvaluateRecipe
from sweeps.steps.step import Inputs, Step, recipe_of, what, where


def evaluate_step(
    recipe: EvaluateRecipe, checkpoint: Step, corpus: Step | None, pins: dict[str, str], label: str
) -> Step:
    """`corpus` for tasks made of its held-out documents. The seed only picks few-shot examples."""
    kept = what(recipe)
    if not recipe.few_shot:
        kept.pop("seed")
    parents = {"checkpoint": checkpoint.id} | ({"corpus": corpus.id} if corpus else {})
    return Step("evaluate", kept, parents, pins, where(recipe), label)


def run(values: Json, how: Json, inputs: Inputs, out: Path, ctx: Context) -> Outcome:
    from mlkv.evaluate.step import run as evaluate

    recipe = recipe_of(EvaluateRecipe, values, how)
    return evaluate(recipe, out, ctx, checkpoint=inputs["checkpoint"], corpus=inputs.get("corpus"))


def numbers(out: Path, rows: list[Json]) -> list[Json]:
    """As records without a seal have them."""
    found: list[Json] = json.loads((out / "results.json").read_text(encoding="utf-8"))["metrics"]
    return found
