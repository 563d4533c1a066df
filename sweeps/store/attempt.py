"""One execution of a step: the directory that it alone writes to. Part of the store; see sweeps.store.store."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mlkv.files import discard
from sweeps.store import typed_json
from sweeps.store.errors import DamagedFileError
from sweeps.store.files import last_line, modified, utc_now, write_json
from sweeps.store.lines import Lines, parse_rows, read_rows
from sweeps.store.schema import Environment, Exit, ExitState, LoggedRow, Record
from sweeps.store.typed_json import as_json


class Attempt:
    """One execution of a step; everything in here is private to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = int(path.name)
        self.out = path / "out"
        self.stdout = path / "out.log"
        self.stderr = path / "err.log"
        self.metrics_file = path / "metrics.jsonl"
        self.tracking_log = path / "tracking.log"
        self._heartbeat = path / "heartbeat"
        self.record_file = path / "record.json"

    def beat(self) -> None:
        self._heartbeat.touch()

    def last_beat(self) -> float:
        """Seconds since the epoch by the file server's clock; 0 before the first beat."""
        return modified(self._heartbeat)

    def finish(self, state: ExitState, reason: str, returncode: int | None, own: bool = True) -> None:
        """Write down how it ended; where it did not end well, its log says so too."""
        ended = Exit(state=state, reason=reason, returncode=returncode, own=own, finished=utc_now())
        write_json(self.path / "exit.json", as_json(ended))
        if state != "done" and reason:
            self.log(_last_words(ended))

    def log(self, line: str) -> None:
        """Add a line to what it wrote to stderr; the exit status says the same where the log cannot be written."""
        with suppress(OSError), self.stderr.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{line}\n")

    def write_record(self, record: Record) -> None:
        """Write the future record of the step: from now on the output is complete, and any later attempt can publish
        it."""
        write_json(self.record_file, as_json(record))

    def record(self) -> Record | None:
        return typed_json.load(Record, self.record_file)

    def drop_unfinished(self) -> None:
        """Remove an output that never became whole: the disk may be full of it."""
        with suppress(OSError, DamagedFileError):  # an output that may still be published stays
            if not self.record():
                discard(self.out)

    def log_of_rank(self, rank: int) -> Path:
        """The log of a process other than the first."""
        return self.path / f"rank-{rank}.log"

    def exit(self) -> Exit | None:
        return typed_json.load(Exit, self.path / "exit.json")

    def write_environment(self, environment: Environment) -> None:
        write_json(self.path / "env.json", as_json(environment))

    def environment(self) -> Environment | None:
        return typed_json.load(Environment, self.path / "env.json")

    def metrics(self) -> list[LoggedRow]:
        """Complete rows logged so far; a torn last line is left out."""
        return self._rows().rows

    def skipped_rows(self) -> int:
        """Lines of its metrics that are no rows."""
        return self._rows().skipped

    def _rows(self) -> Lines[LoggedRow]:
        return read_rows(LoggedRow, self.metrics_file)

    def metrics_from(self, position: int) -> tuple[list[LoggedRow], int]:
        """Complete rows logged since `position` (bytes), and where to go on from."""
        try:
            with self.metrics_file.open("rb") as file:
                file.seek(position)
                content = file.read()
        except FileNotFoundError:
            return [], position
        return parse_rows(LoggedRow, content).rows, position + content.rfind(b"\n") + 1

    def progress(self) -> LoggedRow | None:
        """The newest row; None while there is none, or where the line is none."""
        rows = parse_rows(LoggedRow, f"{last_line(self.metrics_file)}\n".encode()).rows
        return rows[-1] if rows else None

    def computing_seconds(self) -> float | None:
        """Seconds that all of its work takes at the pace between its first row and its newest, without its start; None
        where rows show no pace."""
        try:
            with self.metrics_file.open("rb") as file:
                rows = parse_rows(LoggedRow, file.readline()).rows
        except FileNotFoundError:
            return None
        if not rows or not (last := self.progress()):
            return None
        facts = rows[0].time, rows[0].step, last.time, last.step, last.steps
        if None in facts:
            return None
        began, first, ended, newest, steps = (fact or 0 for fact in facts)
        return (ended - began) * steps / (newest - first) if newest > first and ended > began else None

    def log_tracking(self, reason: str) -> bool:
        """Note why W&B does not have all of it; false where that cannot be written: it may be the disk that is full."""
        try:
            with self.tracking_log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{utc_now()} not mirrored to W&B ({reason}); `mlkv sync` will\n")
        except OSError:
            return False
        return True

    def log_tail(self, lines: int = 5) -> list[str]:
        """The last non-empty lines of what it wrote to stderr, or to stdout where stderr is empty; without the line
        that repeats its exit status."""
        ended = None
        with suppress(DamagedFileError, OSError):
            ended = self.exit()
        for path in (self.stderr, self.stdout):
            if path.exists():
                text = path.read_text(encoding="utf-8", errors="replace")
                found = [line for line in text.splitlines() if line.strip()]
                if ended and found[-1:] == _last_words(ended).splitlines():
                    found.pop()
                if found:
                    return found[-lines:]
        return []


def _last_words(ended: Exit) -> str:
    return f"{ended.state}: {ended.reason}"
