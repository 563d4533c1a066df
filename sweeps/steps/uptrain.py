"""The uptrain step: further training of a converted checkpoint (mlkv/train)."""

from __future__ import annotations

from mlkv.context import Outcome
from mlkv.recipes import TrainRecipe
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.step import Step, identity_fields, recipe_of, runtime_fields


def uptrain_step(recipe: TrainRecipe, start: Step, corpus: Step, label: str) -> Step:
    return Step(
        "uptrain", identity_fields(recipe), {"start": start.id, "corpus": corpus.id}, {}, runtime_fields(recipe), label
    )


def run(execution: Execution) -> Outcome:
    from mlkv.train.step import run as train

    recipe, inputs = execution.recipe(TrainRecipe), execution.inputs
    return train(recipe, execution.out, execution.ctx, corpus=inputs["corpus"], start=inputs["start"])


def training_work(recipe: TrainRecipe, millions: float, sequence_length: int) -> float:
    """Millions of parameters times the tokens that pass through them."""
    tokens = recipe.tokens_of(sequence_length) or 1e6 * (recipe.epochs or 1)
    return max(millions * tokens, 1.0)


def work(step: Step, millions: float, sequence_length: int) -> float:
    return training_work(recipe_of(TrainRecipe, step.slice, step.how), millions, sequence_length)


KIND = StepKind(run, TrainRecipe, trains=True, scores=True, work=work, cost="training")
