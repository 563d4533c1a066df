"""What teachers cost in a plan: to compute at every step of every run, or once, with their predictions stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from sweeps.planning.plan import Plan
from sweeps.planning.reconcile import Costs
from sweeps.planning.variant import Variant
from sweeps.steps.step import Step, with_work
from sweeps.steps.teacher import teacher_step
from sweeps.steps.uptrain import begins_after

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class TeacherCosts:
    """online, stored: how many runs learn in this way. tokens, stored_tokens: that the teacher computes on if all runs
    ask it, and if its predictions are stored; None where a run counts epochs of a corpus that is not made yet. seconds,
    stored_seconds: what that takes; None where no training has been timed. bytes: of the stored predictions; of one
    token where their number is not known."""

    online: int
    stored: int
    tokens: int | None
    stored_tokens: int | None
    seconds: float | None
    stored_seconds: float | None
    bytes: float


def teacher_costs(plan: Plan, costs: Costs) -> TeacherCosts | None:
    """Of all runs of the plan that learn from a teacher, done or not; None where there are none."""
    runs = {v.uptrain.id: v for v in plan.variants if v.uptrain and v.config.uptrain.teacher != "none"}
    if not runs:
        return None
    stored = {step.id: (step, v) for v in runs.values() if (step := _stored(v))}
    online_seconds = [costs.seconds(_asked(v)) for v in runs.values()]
    written = [costs.seconds(with_work(step, v.work(step))) for step, v in stored.values()]
    return TeacherCosts(
        online=sum(v.config.uptrain.teacher_online for v in runs.values()),
        stored=sum(v.config.uptrain.teacher_stored for v in runs.values()),
        tokens=_sum([_tokens(v) for v in runs.values()]),
        stored_tokens=_sum([step.slice["tokens"] for step, _ in stored.values()]),
        seconds=_sum(online_seconds),
        stored_seconds=_sum(written),
        bytes=sum(_bytes(step, v) for step, v in stored.values()),
    )


def _stored(variant: Variant) -> Step | None:
    """The teacher step that the variant's run has, or would have if it learned from stored predictions."""
    if variant.teacher or variant.base is None or variant.corpus is None:
        return variant.teacher
    config = variant.config
    run = replace(config.uptrain, teacher_logits="stored", hidden_weight=0.0, documents="together")
    length, shape = config.corpus.sequence_length, variant.model.shape
    return teacher_step(config.teacher, run, variant.base, variant.corpus, shape, length, "")


def _tokens(variant: Variant) -> int | None:
    """Of its training, without what a shorter rung trained on before."""
    assert variant.uptrain
    recipe, length = variant.config.uptrain, variant.config.corpus.sequence_length
    every = recipe.tokens_of(length)
    return None if every is None else every - begins_after(variant.uptrain.spec) * recipe.batch_size * length


def _asked(variant: Variant) -> Step:
    """What an online teacher adds to a run, as a step: a pass forward on each of its tokens."""
    assert variant.uptrain
    work = variant.work(variant.uptrain) / variant.layout.training_cost
    return with_work(variant.uptrain, work / 4 if variant.config.uptrain.teacher_online else work / 3)


def _bytes(step: Step, variant: Variant) -> float:
    length = variant.config.corpus.sequence_length
    recipe = replace(variant.config.teacher, top_k=step.slice["top_k"])
    row = recipe.row_bytes(length, variant.model.shape.vocab_size)
    tokens = step.slice["tokens"]
    return row / length if tokens is None else -(-tokens // length) * row


def _sum(numbers: Sequence[N | None]) -> N | None:
    """None if any is unknown."""
    known = [number for number in numbers if number is not None]
    return sum(known[1:], known[0]) if len(known) == len(numbers) else None
