"""What a step printed and logged, as text to read."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.store.errors import OK, UserError
from sweeps.store.schema import LoggedRow
from sweeps.store.states import StepState
from sweeps.store.stepdir import StepDir

if TYPE_CHECKING:
    from sweeps.store.store import Store

_FIRST = ("time", "step", "steps")
"""Fields of a row that begin its line."""


class LogReader:
    """The output of a step's latest attempt, read on from where it was left: what its libraries printed, then its
    numbers, a line for each row."""

    def __init__(self, step: StepDir, title: str) -> None:
        self._step, self._title = step, title
        self._read: dict[Path, int] = {}

    def new_text(self) -> str:
        attempt = self._step.attempt()
        if attempt is None:
            return ""
        title = f"== {self._title}\n" if self._title and not self._read else ""
        printed = "".join(self._printed(path) for path in (attempt.stdout, attempt.stderr))
        rows, end = attempt.metrics_from(self._read.get(attempt.metrics_file, 0))
        self._read[attempt.metrics_file] = end
        return title + printed + "".join(f"{row_text(row)}\n" for row in rows)

    def _printed(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                content = file.read()
                self._read[path] = file.tell()
        except FileNotFoundError:
            return ""
        text = content.decode(errors="replace")
        return text if not text or text.endswith("\n") else f"{text}\n"

    def ending(self) -> str:
        """How the step has ended; empty while it has not."""
        state, record = self._step.state(), self._step.record()
        if state.name is StepState.DONE and record:
            return f"{self._step.id}: done in {record.wall_seconds:,.1f} s on {record.host}\n"
        if state.name in (StepState.RUNNING, StepState.PENDING):
            return ""
        return f"{self._step.id}: {': '.join(filter(None, [state.name.lower(), state.reason]))}\n"


DRIVER = "driver"
"""In place of a label: what the job printed that drives a sweep on SLURM."""
FOLLOW_SECONDS = 1.0


def print_driver_log(store: Store, sweep: str, follow: bool) -> int:
    """Raises UserError where no job ever drove the sweep, and where SLURM does not answer."""
    from sweeps.cli.selection import queue_answers
    from sweeps.dispatch.queue_status import driver_job

    printed = 0
    while True:
        with queue_answers():
            job = driver_job(sweep, store)
        if job is None or job.output is None:
            raise UserError(f"{sweep}: no job drives it; a search on SLURM has one, or a sweep with a stopping rule")
        text = job.output.read_text(encoding="utf-8", errors="replace") if job.output.exists() else ""
        sys.stdout.write(text[printed:])
        sys.stdout.flush()
        printed = len(text)
        if not follow or not job.live:
            return OK
        time.sleep(FOLLOW_SECONDS)


def row_text(row: LoggedRow) -> str:
    """`12:30:05  3/40  loss 2.345  lr 0.001`: a row of metrics as a line to read."""
    parts = []
    with suppress(ValueError, OverflowError, OSError):  # no time of day
        parts += [time.strftime("%H:%M:%S", time.localtime(row.time))] if row.time is not None else []
    if row.step is not None:
        parts.append(f"{row.step}/{row.steps}" if row.steps else f"step {row.step}")
    parts += [f"{name} {_text(value)}" for name, value in row.fields.items() if name not in _FIRST]
    return "  ".join(parts)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else " ".join(str(value).split())
