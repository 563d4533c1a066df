"""What a running step is given besides its recipe and its inputs."""

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
    """`work` outlives the process (resume checkpoints); `log` appends a row to the attempt's metrics.jsonl;
    `should_stop` turns true when the job has been asked to end: save to `work` and raise Interrupted. `attempt` tells
    executions of one step apart: one that slept may wake up beside the next, so no two write one file in `work`."""

    work: Path
    log: Callable[[Row], None]
    should_stop: Callable[[], bool] = lambda: False
    attempt: int = 1


class Interrupted(Exception):
    """The step saved its state and stopped because it was asked to; the next attempt goes on from there."""


class StepFailed(Exception):
    """The step cannot succeed as it is configured; the message says why in one line (no traceback is shown)."""
