"""The uptrain step: further training of a converted checkpoint (mlkv/train)."""

from __future__ import annotations

from dataclasses import replace

from mlkv.context import Outcome
from mlkv.signature import of_training
from mlkv.training_recipes import TrainRecipe
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.step import Step, identity_fields, recipe_of, runtime_fields
from sweeps.store.schema import Spec

SHORTER = "shorter"
"""The role of the parent that a rung continues: the same training with the rung before as its last."""


def uptrain_steps(
    recipe: TrainRecipe, start: Step, corpus: Step, label: str, teacher: Step | None = None
) -> list[Step]:
    """The training, behind those that it continues. A rung knows those before it and none after it: a longer chain has
    the steps of a shorter one. One `wsd` run of some steps is a chain of one, so that it can be continued, and a chain
    of one by another schedule is a run of so many steps.

    teacher: the base, or the step that stored what it predicts.
    """
    recipe = replace(recipe.without_unread(), rungs=recipe.trained_rungs)
    if recipe.schedule == "wsd" and recipe.steps:
        recipe = replace(recipe, rungs=(recipe.steps,), steps=None)
    elif recipe.schedule != "wsd" and recipe.rungs:
        recipe = replace(recipe, rungs=(), steps=recipe.last_step)
    shared = {"start": start.id, "corpus": corpus.id} | ({"teacher": teacher.id} if teacher else {})
    chain: list[Step] = []
    for i in range(len(recipe.rungs) or 1):
        rung = replace(recipe, rungs=recipe.rungs[: i + 1])
        parents = shared | ({SHORTER: chain[-1].id} if chain else {})
        name = f"{label} {rung.last_step} steps" if len(recipe.rungs) > 1 else label
        chain.append(Step("uptrain", identity_fields(rung), parents, {}, runtime_fields(rung), name))
    return chain


def run(execution: Execution) -> Outcome:
    from mlkv.train.step import run as train

    recipe, inputs = execution.recipe(TrainRecipe), execution.inputs
    return train(
        recipe,
        execution.out,
        execution.ctx,
        corpus=inputs["corpus"],
        start=inputs["start"],
        shorter=inputs.get(SHORTER),
        teacher=inputs.get("teacher"),
    )


def training_work(recipe: TrainRecipe, millions: float, sequence_length: int) -> float:
    """Millions of parameters times the tokens that pass through them; a third more where a teacher computes too, as a
    pass forward is a third of a training step."""
    tokens = recipe.tokens_of(sequence_length) or 1e6 * (recipe.epochs or 1)
    return max(millions * tokens, 1.0) * (4 / 3 if recipe.teacher_online else 1)


def work(step: Step, millions: float, sequence_length: int) -> float:
    """Of a rung, from the shorter one's trunk on."""
    recipe = recipe_of(TrainRecipe, step.slice, step.how)
    if begun := begins_after(step.spec):
        recipe = replace(recipe, rungs=(recipe.rungs[-1] - begun,))
    return training_work(recipe, millions, sequence_length)


def begins_after(spec: Spec) -> int:
    """The last step of the trunk that a training continues; 0 for one that continues none."""
    if SHORTER not in spec.parents:
        return 0
    recipe = recipe_of(TrainRecipe, spec.slice, {})
    return recipe.trunk_of(recipe.rungs[-2])


def saves_memory(kind: str) -> str:
    """The settings of a training that change no result first."""
    return f"{kind}.micro_batch=1, {kind}.gradient_checkpointing=true or {kind}.loss=chunked"


KIND = StepKind(
    run,
    TrainRecipe,
    trains=True,
    scores=True,
    work=work,
    cost="training",
    modules=("mlkv.train.step",),
    signatures=of_training,
    saves_memory=saves_memory("uptrain"),
)
