"""The similarity step: how alike a base's layers and heads are on held-out text (mlkv/similarity)."""

from __future__ import annotations

from mlkv.context import Outcome
from mlkv.recipes import SimilarityRecipe
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.step import Step, identity_fields, runtime_fields


def similarity_step(recipe: SimilarityRecipe, base: Step, corpus: Step, label: str) -> Step:
    return Step(
        "similarity", identity_fields(recipe), {"base": base.id, "corpus": corpus.id}, {}, runtime_fields(recipe), label
    )


def run(execution: Execution) -> Outcome:
    from mlkv.similarity.step import run as compare

    recipe, inputs = execution.recipe(SimilarityRecipe), execution.inputs
    return compare(recipe, execution.out, execution.ctx, base=inputs["base"], corpus=inputs["corpus"])


def work(step: Step, millions: float, sequence_length: int) -> float:
    """Millions of parameters times windows."""
    return millions * int(step.slice["windows"])


KIND = StepKind(run, SimilarityRecipe, work=work, modules=("mlkv.similarity.step",))
