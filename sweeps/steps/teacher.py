"""The teacher step: a base's largest predictions on training text, for the runs that learn from them (mlkv/train)."""

from __future__ import annotations

from mlkv.context import Outcome
from mlkv.shape import DecoderShape
from mlkv.training_recipes import TeacherRecipe, TrainRecipe
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.step import Step, identity_fields, runtime_fields


def teacher_step(
    recipe: TeacherRecipe,
    run: TrainRecipe,
    base: Step,
    corpus: Step,
    shape: DecoderShape,
    sequence_length: int,
    label: str,
) -> Step:
    """For a run of this recipe, and for all others that need as many rows at the same temperature."""
    recipe = recipe.for_run(run, sequence_length, shape.vocab_size)
    identity = identity_fields(recipe)
    if recipe.tokens is None and run.epochs is not None and run.epochs < 1:
        identity |= {"share": run.epochs}
    if run.temperature != 1:
        identity |= {"temperature": run.temperature}
    return Step("teacher", identity, {"base": base.id, "corpus": corpus.id}, {}, runtime_fields(recipe), label)


def run(execution: Execution) -> Outcome:
    from mlkv.train.teacher import run as predict

    recipe, inputs, values = execution.recipe(TeacherRecipe), execution.inputs, execution.step.slice
    return predict(
        recipe,
        execution.out,
        execution.ctx,
        base=inputs["base"],
        corpus=inputs["corpus"],
        temperature=values.get("temperature", 1.0),
        share=values.get("share", 1.0),
    )


def work(step: Step, millions: float, sequence_length: int) -> float:
    """That of training on as many tokens, without the two thirds that its way back takes."""
    tokens = step.slice["tokens"] or 1e6 * step.slice.get("share", 1.0)
    return max(millions * float(tokens) / 3, 1.0)


KIND = StepKind(
    run,
    TeacherRecipe,
    shares_job=False,
    work=work,
    cost="training",
    modules=("mlkv.train.teacher",),
    saves_memory="a smaller teacher.batch_size",
)
"""Many runs wait for it, so its job holds nothing else."""
