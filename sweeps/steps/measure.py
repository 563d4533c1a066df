"""The measure step: memory and speed of decoding with a layout (mlkv/measure)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlkv.cache.formats import AS_COMPUTED, CACHES
from mlkv.context import MetricRow, Outcome
from mlkv.files import Json
from mlkv.layout import KVLayout
from mlkv.recipes import MeasureRecipe
from mlkv.shape import DecoderShape
from sweeps.steps.kind import Execution, Ran, Session, StepKind
from sweeps.steps.step import Step, canonical, identity_fields, recipe_of, runtime_fields
from sweeps.store.schema import LoggedRow


def measure_step(
    recipe: MeasureRecipe, layout: KVLayout, shape: DecoderShape, cache: str, pins: dict[str, str], label: str
) -> Step:
    """The cache is left out where it is the model's own, as before there were others."""
    identity: Json = {"measure": identity_fields(recipe), "layout": layout.as_dict(), "shape": identity_fields(shape)}
    identity |= {"cache": cache} if cache != AS_COMPUTED else {}
    return Step("measure", identity, {}, pins | CACHES.pins(cache), runtime_fields(recipe), label)


def run(execution: Execution) -> Outcome:
    [ran] = run_together(execution, [])
    for row in ran.rows:
        execution.ctx.log(row)
    if isinstance(ran.result, Exception):
        raise ran.result
    return ran.result


def run_together(execution: Execution, others: Sequence[Step]) -> list[Ran]:
    """Measure several variants in turns (mlkv/measure/session.py)."""
    from mlkv.measure.bench import Subject
    from mlkv.measure.session import measure_together, rows_of

    def subject(step: Step) -> Subject:
        shape = recipe_of(DecoderShape, step.slice["shape"], step.how)
        return Subject(shape, KVLayout.from_dict(step.slice["layout"]), step.slice.get("cache", AS_COMPUTED))

    subjects = [subject(step) for step in (execution.step, *others)]
    results = measure_together(execution.recipe(MeasureRecipe, "measure"), subjects, execution.ctx)
    return [Ran(result, rows_of(result) if isinstance(result, Outcome) else []) for result in results]


def session_key(step: Step) -> str:
    """Variants of one shape that are measured alike; where conversion widens MLPs, in whatever width they came out."""
    shape = {name: value for name, value in step.slice["shape"].items() if name != "mlp_width"}
    return canonical({"measure": step.slice["measure"], "shape": shape})


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


KIND = StepKind(
    run,
    MeasureRecipe,
    changes=("variants are measured in turns, and by phase",),
    job="together",
    work=work,
    numbers=numbers,
    fresh_process=True,
    session=Session(run_together, session_key),
)
