"""The convert step: a base with fewer KV heads, or a fresh model of that layout (mlkv/convert)."""

from __future__ import annotations

from pathlib import Path

from mlkv.context import Context, Outcome
from mlkv.files import Json
from mlkv.layout import KVLayout
from mlkv.recipes import ConvertRecipe
from mlkv.shape import DecoderShape
from sweeps.steps.step import Inputs, Step, recipe_of, what


def convert_step(recipe: ConvertRecipe, layout: KVLayout, source: KVLayout, base: Step, label: str) -> Step:
    """From a base. Merging and widening say nothing where the layout stays as it is, so they are left out there."""
    kept: Json = {"layout": layout.as_dict()}
    if layout != source:
        kept |= {"merge": recipe.merge, "widening": recipe.widening}
        kept |= {"seed": recipe.seed} if recipe.merge == "random" else {}
    return Step("convert", kept, {"base": base.id}, {}, {}, label)


def scratch_step(recipe: ConvertRecipe, layout: KVLayout, shape: DecoderShape, corpus: Step, label: str) -> Step:
    kept = {"layout": layout.as_dict(), "shape": what(shape), "seed": recipe.seed}
    return Step("convert", kept, {"corpus": corpus.id}, {}, {}, label)


def run(values: Json, how: Json, inputs: Inputs, out: Path, ctx: Context) -> Outcome:
    from mlkv.convert.step import run as convert

    layout = KVLayout.from_dict(values["layout"])
    if "base" in inputs:
        recipe = recipe_of(ConvertRecipe, values, {"start": "convert"})
        return convert(recipe, out, ctx, layout=layout, base=inputs["base"])
    recipe = recipe_of(ConvertRecipe, values, {"start": "scratch"})
    shape = recipe_of(DecoderShape, values["shape"], {})
    tokenizer = inputs["corpus"] / "tokenizer"
    return convert(recipe, out, ctx, layout=layout, base=None, shape=shape, tokenizer=tokenizer)
