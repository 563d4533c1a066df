"""The states of a step, in one order of severity."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class StepState(StrEnum):
    """A step's state, most severe first: the order in which states are listed, and by which the worst of several is
    found. BLOCKED (an ancestor failed) and CANCELLED (by the queue) cannot be seen in a step's own files."""

    FAILED = "FAILED"
    LOST = "LOST"
    CANCELLED = "CANCELLED"
    BLOCKED = "BLOCKED"
    INTERRUPTED = "INTERRUPTED"
    RUNNING = "RUNNING"
    PENDING = "PENDING"
    DONE = "DONE"


SEVERITY = tuple(StepState)


def worst(states: Iterable[StepState]) -> StepState:
    """The most severe of some states; DONE where there are none."""
    return min(states, key=SEVERITY.index, default=StepState.DONE)
