"""What a running step gets beside its recipe and its inputs, and how it ends early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""One line of metrics.jsonl. `step` and `steps` (done, in all) feed the progress view; the rest is the kind's own."""

Outcome = dict[str, Any]
"""What a step returns: "metrics" (rows of "metric", "value", "stderr", "n", …) and "facts". Values finite or None."""


@dataclass(frozen=True)
class Context:
    """work: a directory for resume checkpoints; it outlives the process.
    log: appends a row to the attempt's metrics.jsonl.
    should_stop: true once the job has been asked to end: save to `work` and raise Interrupted.
    attempt: the number of this execution of the step. One that was suspended may go on beside the next, so no two may
    write the same file in `work`.
    """

    work: Path
    log: Callable[[Row], None]
    should_stop: Callable[[], bool] = lambda: False
    attempt: int = 1


class Interrupted(Exception):
    """The step saved its state and stopped because it was asked to; the next attempt goes on from there."""


class StepFailed(Exception):
    """The step cannot succeed as it is configured; the message says why in one line (no traceback is shown)."""
