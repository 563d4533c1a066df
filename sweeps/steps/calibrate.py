"""The calibrate step: what a base computes on a little training text, for merges that need it (mlkv/convert)."""

from __future__ import annotations

from mlkv.context import Outcome
from mlkv.recipes import CalibrateRecipe
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.step import Step, identity_fields, runtime_fields


def calibrate_step(recipe: CalibrateRecipe, base: Step, corpus: Step, label: str) -> Step:
    return Step(
        "calibrate", identity_fields(recipe), {"base": base.id, "corpus": corpus.id}, {}, runtime_fields(recipe), label
    )


def run(execution: Execution) -> Outcome:
    from mlkv.convert.calibration import run as calibrate

    recipe, inputs = execution.recipe(CalibrateRecipe), execution.inputs
    return calibrate(recipe, execution.out, execution.ctx, base=inputs["base"], corpus=inputs["corpus"])


def work(step: Step, millions: float, sequence_length: int) -> float:
    """That of training on as many tokens."""
    return millions * int(step.slice["tokens"])


KIND = StepKind(
    run, CalibrateRecipe, shares_job=False, work=work, cost="training", modules=("mlkv.convert.calibration",)
)
"""Many conversions wait for a calibration, so its job holds nothing else."""
