"""What a step printed, as lines for its run's Logs in W&B.

Each file of each attempt is a part. A part only grows, so the number of its lines that were sent says where to go on;
the run's summary keeps these numbers, and no line is there twice, however often the step is requeued or its run is sent
again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sweeps.store.attempt import Attempt
from sweeps.store.stepdir import StepDir
from sweeps.tracking.redaction import redact

CONSOLE_KEY = "mlkv_console"
"""Key of the summary that says how many lines of each part the run has, as JSON text."""
MAX_BYTES, MAX_LINES, MAX_LINE = 4 * 2**20, 10_000, 4096
"""What is sent of one file at most; W&B itself cuts longer lines."""
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
Sent = dict[str, int]
"""Part → the number of its lines."""


@dataclass(frozen=True)
class Console:
    """parts: name → lines. stored: of a run that was read from W&B's files, the numbers in its summary."""

    parts: dict[str, list[str]] = field(default_factory=dict)
    stored: Sent = field(default_factory=dict)

    @property
    def lines(self) -> Sent:
        """What a run that has all of it says in its summary."""
        return self.stored or {part: len(lines) for part, lines in self.parts.items()}

    def is_within(self, sent: Sent) -> bool:
        return all(sent.get(part, 0) >= count for part, count in self.lines.items())

    def after(self, sent: Sent) -> Iterator[str]:
        """The lines that are missing where `sent` are there."""
        if self.is_within(sent) or (self.stored and sent):
            return
        for part, lines in self.parts.items():
            yield from lines[sent.get(part, 0) :]


def step_console(step: StepDir) -> Console:
    """What all attempts printed so far."""
    attempts = step.attempts()
    parts: dict[str, list[str]] = {}
    for attempt in attempts:
        ended = attempt.number < attempts[-1].number or attempt.exit() is not None
        parts |= attempt_console(attempt, ended).parts
    return Console(parts)


def attempt_console(attempt: Attempt, ended: bool = False) -> Console:
    """Complete lines; the last one, which may go on, where the attempt has ended."""
    parts = {}
    for path in (attempt.stdout, attempt.stderr):
        if lines := _lines(path, ended):
            parts[f"{attempt.number} {path.name}"] = [f"== attempt {attempt.number}, {path.name}", *lines]
    return Console(parts)


def sent_lines(text: object) -> Sent:
    """The numbers that a summary has; none where it has no such text."""
    try:
        values = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {}
    return {part: n for part, n in values.items() if isinstance(n, int)} if isinstance(values, dict) else {}


def _lines(path: Path, ended: bool) -> list[str]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES)
            more = bool(file.read(1))
    except FileNotFoundError:
        return []
    *lines, last = content.decode(errors="replace").split("\n")
    if ended and not more and last:
        lines.append(last)
    if more or len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES], f"… the rest is in {path.name} of the store"]
    return [_shown(line) for line in lines]


def _shown(line: str) -> str:
    """As a terminal shows it at the end: a progress bar overwrites itself."""
    return redact(_COLOURS.sub("", line.rstrip("\r").rpartition("\r")[2]))[:MAX_LINE]
