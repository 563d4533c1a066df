"""What a sweep has used of its budgets, from the records of its steps: a driver that was killed counts the same."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from mlkv.training_recipes import TrainRecipe
from sweeps.planning.reconcile import States
from sweeps.planning.variant import Variant
from sweeps.search.course import Spent, trainings_of
from sweeps.steps.step import Step, recipe_of
from sweeps.steps.uptrain import begins_after
from sweeps.store.schema import Record
from sweeps.store.states import StepState
from sweeps.store.stepdir import StepDir
from sweeps.store.store import Store


def spent_by(
    variants: Iterable[Variant], states: States, dispatched: Collection[str], store: Store, since: str
) -> Spent:
    """since: when the sweep was first planned. What was done before that, or came in a pack, costs it nothing."""
    given = list(variants)
    lengths = {step.id: each.config.corpus.sequence_length for each in given for step in trainings_of(each)}
    records = {step.id: store.step(step.id).record() for each in given for step in each.steps}
    free = {id for id, record in records.items() if record and _is_free(record, store.step(id), since)}

    def is_begun(id: str) -> bool:
        state = states[id]
        return state.name is not StepState.PENDING or state.attempt > 0 or id in dispatched

    def tokens(step: Step) -> int:
        return 0 if step.id in free else tokens_of(step, lengths[step.id])

    trainings = {step.id: step for each in given for step in trainings_of(each)}
    return Spent(
        sum(tokens(step) for id, step in trainings.items() if is_begun(id)),
        sum(record.device_seconds for id, record in records.items() if record and id not in free) / 3600,
        lambda step: 0 if is_begun(step.id) else tokens(step),
    )


def _is_free(record: Record, step: StepDir, since: str) -> bool:
    return record.finished < since or step.origin() is not None


def tokens_of(step: Step, sequence_length: int) -> int:
    """What a training sees: of a rung, from the trunk of the shorter one on. 0 where its length is in epochs."""
    recipe = recipe_of(TrainRecipe, step.slice, step.how)
    if begun := begins_after(step.spec):
        recipe = replace(recipe, rungs=(recipe.rungs[-1] - begun,))
    return recipe.tokens_of(sequence_length) or 0
