"""The elastic step: one training of a base in which layouts are sampled; conversions cut each from it (mlkv/train)."""

from __future__ import annotations

from collections.abc import Sequence

from mlkv.context import Outcome
from mlkv.layout import KVLayout
from mlkv.merges import MERGES
from mlkv.signature import of_training
from mlkv.training_recipes import ElasticRecipe
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.step import Step, identity_fields, recipe_of, runtime_fields
from sweeps.steps.uptrain import saves_memory, training_work

_RULE = ("pattern", "kv_layers", "kv_heads")
"""Fields that name the layouts. The layouts themselves identify the step: several rules may give the same ones."""


def elastic_step(
    recipe: ElasticRecipe,
    layouts: Sequence[KVLayout],
    merge: str,
    base: Step,
    corpus: Step,
    calibration: Step | None,
    label: str,
) -> Step:
    identity = {name: value for name, value in identity_fields(recipe.without_unread()).items() if name not in _RULE}
    identity |= {"layouts": [layout.as_dict() for layout in layouts], "merge": merge}
    parents = {"base": base.id, "corpus": corpus.id} | ({"calibration": calibration.id} if calibration else {})
    return Step("elastic", identity, parents, MERGES.pins(merge), runtime_fields(recipe), label)


def run(execution: Execution) -> Outcome:
    from mlkv.train.elastic import Elastic
    from mlkv.train.step import run as train

    recipe, values, inputs = execution.recipe(ElasticRecipe), execution.step.slice, execution.inputs
    layouts = tuple(map(KVLayout.from_dict, values["layouts"]))
    elastic = Elastic(layouts, values["merge"], recipe.layouts_per_step, inputs.get("calibration"))
    out, ctx, base = execution.out, execution.ctx, inputs["base"]
    teacher = base if recipe.teacher_online else None
    return train(recipe, out, ctx, corpus=inputs["corpus"], start=base, teacher=teacher, elastic=elastic)


def work(step: Step, millions: float, sequence_length: int) -> float:
    return training_work(recipe_of(ElasticRecipe, step.slice, step.how), millions, sequence_length)


KIND = StepKind(
    run,
    ElasticRecipe,
    trains=True,
    scores=True,
    shares_job=False,
    work=work,
    cost="training",
    modules=("mlkv.train.elastic", "mlkv.train.step"),
    signatures=of_training,
    saves_memory=saves_memory("elastic"),
)
"""Many conversions wait for an elastic training, so its job holds nothing else."""
