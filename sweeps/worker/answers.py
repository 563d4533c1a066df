"""How an execution of a step ended, as the child answers and as its attempt keeps it.

"state" is done, failed or interrupted (vanished: the child is gone without an answer), "reason" one line, "own" false
where it was ended by others, and "outside" true where the machine or its files did it: then another attempt at once
would fare no better.
"""

from __future__ import annotations

from typing import Any


def interrupted_from_outside(cause: str) -> dict[str, Any]:
    return {"state": "interrupted", "reason": cause, "own": False, "outside": True}


def taken_over() -> dict[str, Any]:
    return {"state": "interrupted", "reason": "another worker took the step over", "own": False}
