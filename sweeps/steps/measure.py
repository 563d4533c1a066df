"""The measure step: memory and speed of decoding with a layout (mlkv/measure)."""

from __future__ import annotations

from pathlib import Path

from mlkv.context import Context, Outcome
from mlkv.files import Json
from mlkv.layout import KVLayout
from mlkv.recipes import MeasureRecipe
from mlkv.shape import DecoderShape
from sweeps.steps.step import Inputs, Step, recipe_of, what, where


def measure_step(
    recipe: MeasureRecipe, layout: KVLayout, shape: DecoderShape, pins: dict[str, str], label: str
) -> Step:
    kept = {"measure": what(recipe), "layout": layout.as_dict(), "shape": what(shape)}
    return Step("measure", kept, {}, pins, where(recipe), label)


def run(values: Json, how: Json, inputs: Inputs, out: Path, ctx: Context) -> Outcome:
    from mlkv.measure.step import run as measure

    recipe = recipe_of(MeasureRecipe, values["measure"], how)
    shape = recipe_of(DecoderShape, values["shape"], {})
    return measure(recipe, out, ctx, shape=shape, layout=KVLayout.from_dict(values["layout"]))


def numbers(out: Path, rows: list[Json]) -> list[Json]:
    """As records without a seal have them."""
    return [
        {"metric": name, "value": value, "batch": row["batch"], "context": row["context"]}
        for row in rows
        for name, value in row.items()
        if name not in ("time", "step", "steps", "batch", "context")
    ]
