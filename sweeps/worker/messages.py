"""What a worker's two processes send each other, a line of JSON each: the supervisor asks for an attempt, the process
that computes answers how it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from mlkv.context import Outcome
from sweeps.store import typed_json


@dataclass(frozen=True, kw_only=True)
class Request:
    """Run this attempt of a step. `group`: the process's place in a torch.distributed group (its environment), where
    several train together."""

    step: str
    attempt: int
    group: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How an attempt ended; `vanished`: the process that computes is gone without an answer.

    reason: one line.
    own: false where it was ended by others.
    outside: the machine or its files ended it: another attempt at once would fare no better.
    outcome: what the step returned, where it is done.
    """

    state: Literal["done", "failed", "interrupted", "vanished"]
    reason: str = ""
    returncode: int | None = None
    own: bool = True
    outside: bool = False
    outcome: Outcome = field(default_factory=Outcome)


def line_of(message: Request | Answer) -> str:
    """Raises ValueError for NaN, which JSON does not hold."""
    return json.dumps(typed_json.as_json(message), allow_nan=False) + "\n"


def interrupted_from_outside(cause: str) -> Answer:
    return Answer(state="interrupted", reason=cause, own=False, outside=True)


TAKEN_OVER = Answer(state="interrupted", reason="another worker took the step over", own=False)
