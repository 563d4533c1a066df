"""What a worker's two processes send each other, a line of JSON each: the supervisor asks for an attempt, the process
that computes answers how it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from mlkv.context import Outcome
from sweeps.store import typed_json
from sweeps.store.errors import StoreError
from sweeps.store.outside import in_one_line


@dataclass(frozen=True, kw_only=True)
class Request:
    """Run this attempt of a step. `group`: the process's place in a torch.distributed group (its environment), where
    several train together. `together`: further steps of the job, not done yet, that a session can run beside it."""

    step: str
    attempt: int
    group: dict[str, str] | None = None
    together: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How an attempt ended; `vanished`: the process that computes is gone without an answer.

    reason: one line.
    own: false where it was ended by others.
    outside: the machine or its files ended it: another attempt at once would fare no better.
    needs_repair: a file of the store is damaged: no attempt fares better until a person has repaired it.
    outcome: what the step returned, where it is done.
    """

    state: Literal["done", "failed", "interrupted", "vanished"]
    reason: str = ""
    returncode: int | None = None
    own: bool = True
    outside: bool = False
    needs_repair: bool = False
    outcome: Outcome = field(default_factory=Outcome)


def line_of(message: Request | Answer) -> str:
    """Raises ValueError for NaN, which JSON does not hold."""
    return json.dumps(typed_json.as_json(message), allow_nan=False) + "\n"


def interrupted_from_outside(cause: str) -> Answer:
    return Answer(state="interrupted", reason=cause, own=False, outside=True)


def answer_to(error: Exception) -> Answer:
    """What an error of the store, or of a worker itself, means for the attempt: the step did not cause it."""
    if isinstance(error, OSError):
        return interrupted_from_outside(in_one_line(error))
    if isinstance(error, StoreError):
        return Answer(state="interrupted", reason=in_one_line(error), own=False, needs_repair=True)
    return Answer(state="failed", reason=in_one_line(error))


TAKEN_OVER = Answer(state="interrupted", reason="another worker took the step over", own=False)
