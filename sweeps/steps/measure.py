"""The measure step: memory and speed of decoding with a layout (mlkv/measure)."""

from __future__ import annotations

from pathlib import Path

from mlkv.cache.formats import AS_COMPUTED, CACHES
from mlkv.context import MetricRow, Outcome
from mlkv.files import Json
from mlkv.layout import KVLayout
from mlkv.recipes import MeasureRecipe
from mlkv.shape import DecoderShape
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.step import Step, identity_fields, recipe_of, runtime_fields
from sweeps.store.schema import LoggedRow


def measure_step(
    recipe: MeasureRecipe, layout: KVLayout, shape: DecoderShape, cache: str, pins: dict[str, str], label: str
) -> Step:
    """The cache is left out where it is the model's own, as before there were others."""
    identity: Json = {"measure": identity_fields(recipe), "layout": layout.as_dict(), "shape": identity_fields(shape)}
    identity |= {"cache": cache} if cache != AS_COMPUTED else {}
    return Step("measure", identity, {}, pins | CACHES.pins(cache), runtime_fields(recipe), label)


def run(execution: Execution) -> Outcome:
    from mlkv.measure.step import run as measure

    recipe, shape = execution.recipe(MeasureRecipe, "measure"), execution.recipe(DecoderShape, "shape")
    layout = KVLayout.from_dict(execution.step.slice["layout"])
    cache = execution.step.slice.get("cache", AS_COMPUTED)
    return measure(recipe, execution.out, execution.ctx, shape=shape, layout=layout, cache=cache)


def numbers(out: Path, rows: list[LoggedRow]) -> list[MetricRow]:
    """As records without a seal have them."""
    return [
        MetricRow(name, value, batch=row.fields["batch"], context=row.fields["context"])
        for row in rows
        for name, value in row.fields.items()
        if name not in ("time", "step", "steps", "batch", "context")
    ]


def work(step: Step, millions: float, sequence_length: int) -> float:
    """Millions of parameters times what is decoded."""
    recipe = recipe_of(MeasureRecipe, step.slice["measure"], step.how)
    return millions * (sum(recipe.batch_sizes) * sum(recipe.contexts)) * recipe.repeats


KIND = StepKind(run, MeasureRecipe, job="together", work=work, numbers=numbers, fresh_process=True)
