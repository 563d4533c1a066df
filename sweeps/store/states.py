"""The states of a step, in one order of severity."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class StepState(StrEnum):
    """A step's state, most severe first: the order in which states are listed, and by which the worst of several is
    found. BLOCKED (an ancestor failed), CANCELLED (by the queue) and STOPPED (a rule or a budget decided that it is not
    to be run) cannot be seen in a step's own files."""

    FAILED = "FAILED"
    LOST = "LOST"
    CANCELLED = "CANCELLED"
    BLOCKED = "BLOCKED"
    INTERRUPTED = "INTERRUPTED"
    RUNNING = "RUNNING"
    PENDING = "PENDING"
    STOPPED = "STOPPED"
    DONE = "DONE"


SEVERITY = tuple(StepState)
NOTHING_LEFT = (StepState.DONE, StepState.STOPPED)
"""States of steps for which nothing is left to do, and nothing has gone wrong."""


def worst(states: Iterable[StepState]) -> StepState:
    """The most severe of some states; DONE where there are none."""
    return min(states, key=SEVERITY.index, default=StepState.DONE)


def where_stopped(state: StepState) -> StepState:
    """Of a step that its sweep has stopped: STOPPED, unless any sweep runs it or has finished it."""
    return state if state in (StepState.RUNNING, StepState.DONE) else StepState.STOPPED
