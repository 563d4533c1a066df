"""The convert step: a base with fewer KV heads, or a fresh model of that layout (mlkv/convert)."""

from __future__ import annotations

from mlkv.context import Outcome
from mlkv.files import Json
from mlkv.layout import KVLayout
from mlkv.merges import MERGES, WIDENINGS, counted_grouping
from mlkv.recipes import ConvertRecipe
from mlkv.shape import DecoderShape
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.step import Step, identity_fields, recipe_of


def convert_step(
    recipe: ConvertRecipe, layout: KVLayout, source: KVLayout, base: Step, calibration: Step | None, label: str
) -> Step:
    """From a base. Merge and widening are left out where the layout stays the same, as they then change nothing; and so
    is the calibration where neither the merge nor a latent needs it. The merge is left out too where no heads become
    fewer. The seed counts where the merge may use newly initialised heads: `random` does, and an extension's may.
    So does the grouping where there are heads to choose."""
    identity: Json = {"layout": layout.as_dict()}
    pins: dict[str, str] = {}
    if layout != source:
        identity |= {"widening": recipe.widening}
        pins = WIDENINGS.pins(recipe.widening)
    if layout.without_latent != source.without_latent:
        identity |= {"merge": recipe.merge}
        seeded = recipe.merge == "random" or MERGES.extension(recipe.merge)
        identity |= {"seed": recipe.seed} if seeded else {}
        grouping = counted_grouping(recipe.grouping, recipe.merge, source, layout)
        identity |= {"grouping": grouping} if grouping != "adjacent" else {}
        pins = MERGES.pins(recipe.merge) | pins
    parents = {"base": base.id} | ({"calibration": calibration.id} if calibration else {})
    return Step("convert", identity, parents, pins, {}, label)


def scratch_step(recipe: ConvertRecipe, layout: KVLayout, shape: DecoderShape, corpus: Step, label: str) -> Step:
    identity = {"layout": layout.as_dict(), "shape": identity_fields(shape), "seed": recipe.seed}
    return Step("convert", identity, {"corpus": corpus.id}, {}, {}, label)


def run(execution: Execution) -> Outcome:
    from mlkv.convert.step import run as convert

    values, inputs, out, ctx = execution.step.slice, execution.inputs, execution.out, execution.ctx
    layout = KVLayout.from_dict(values["layout"])
    if "base" in inputs:
        recipe = recipe_of(ConvertRecipe, values, {"start": "convert"})
        return convert(recipe, out, ctx, layout=layout, base=inputs["base"], calibration=inputs.get("calibration"))
    recipe = recipe_of(ConvertRecipe, values, {"start": "scratch"})
    shape = execution.recipe(DecoderShape, "shape")
    tokenizer = inputs["corpus"] / "tokenizer"
    return convert(recipe, out, ctx, layout=layout, base=None, shape=shape, tokenizer=tokenizer)


KIND = StepKind(run, ConvertRecipe, job="with_child", modules=("mlkv.convert.step",))
