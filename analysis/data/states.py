"""The states of rows in the long table: those of steps, and three of results that no step of ours computes."""

from __future__ import annotations

from sweeps.store.states import SEVERITY, StepState

PUBLISHED, IMPORTED, UNPLANNED = "PUBLISHED", "IMPORTED", "UNPLANNED"
TRUSTED = (StepState.DONE.value, PUBLISHED, IMPORTED)
"""States in which a row's value counts."""


def severity(state: str) -> int:
    """The position in the order of severity, the worst first: a state that only W&B has (CRASHED) is worse than any
    other, and what no step evaluates is better."""
    if state == UNPLANNED:
        return len(SEVERITY)
    return next((i for i, known in enumerate(SEVERITY) if known == state), -1)
