"""`mlkv sync`: uploads missing runs to W&B, from the store or from directories that W&B wrote; one result per run.

The server is asked which runs it has before and after, a page at a time. A run that is there is not sent again, and
only a run that is there afterwards counts as sent. So it can be stopped, fail and be repeated at any point.

`python -m sweeps.tracking.sync --store STORE` is the process that imports wandb (its target: the environment); it
prints a JSON line per run. `sync_sweep` and `sync_files` start it and read them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlkv.files import Json
from sweeps.store.axis import Rows
from sweeps.store.states import NOTHING_LEFT, StepState
from sweeps.store.store import SavedSweep, Store, TrackingDir
from sweeps.tracking.alerts import ALERTS_KEY
from sweeps.tracking.checkpoints import CHECKPOINT_KEY
from sweeps.tracking.console import CONSOLE_KEY, Console, Sent, sent_lines
from sweeps.tracking.environment import environment
from sweeps.tracking.redaction import redact
from sweeps.tracking.runs import FINGERPRINT_KEY, Run, SweepRuns, step_run
from sweeps.tracking.target import DEFAULT_CONFIG, Target, TrackingConfig

_STATES = {"finished": StepState.DONE, "failed": StepState.FAILED}
Outcome = Literal["sent", "already there", "still running", "written", "failed"]
if TYPE_CHECKING:
    from sweeps.tracking.read.runs import LoggedRun

PAGE = 200
MIN_TIMEOUT = 30.0
"""Seconds to wait for one answer, even where jobs wait less: a person waits for this command, and no GPU does."""
NOT_ARRIVED = 4
"""Exit status of the process where some runs did not arrive; Python itself ends with 1 or 2 where it crashes."""
_OURS = (FINGERPRINT_KEY, CONSOLE_KEY, CHECKPOINT_KEY, ALERTS_KEY)
"""Keys of the summary that the client's side of it (mirror.py) writes."""


@dataclass(frozen=True)
class SyncResult:
    """What was done with one run."""

    run: str
    name: str
    outcome: Outcome
    reason: str = ""


Report = Callable[[SyncResult], None]


def sweep_runs(
    store: Store, sweep: SavedSweep, only_done: bool = False, config: TrackingConfig = DEFAULT_CONFIG
) -> Iterator[Run]:
    """The runs of a sweep's steps and variants as the store has them; `only_done`: of variants alone of which nothing
    is left to do."""
    runs = SweepRuns(store, sweep)
    if only_done:
        yield from (run for run in runs.variants() if run.state in NOTHING_LEFT)
        return
    for step in runs.steps():
        yield step_run(store, step, sweep, config)
    yield from runs.variants()


def logged_run(run: LoggedRun) -> Run:
    """A run that was read from W&B's files, in the form that `send` takes."""
    shown = {key: value for key, value in run.summary.items() if not key.startswith("_") and key not in _OURS}
    return Run(
        id=run.id,
        name=run.name or run.id,
        job_type=run.job_type,
        config=run.config,
        axes={pattern.removesuffix("/*"): axis for pattern, axis in run.axes.items() if pattern.endswith("/*")},
        rows=_positions(run.rows),
        summary=shown,
        state=_STATES.get(run.state, StepState.LOST),
        group=run.group or None,
        tags=run.tags,
        console=_logged_console(run),
        requirements=run.requirements,
        stored_fingerprint=str(run.summary.get(FINGERPRINT_KEY, "")),
    )


def _logged_console(run: LoggedRun) -> Console:
    """Without the keys that anybody's program may have printed: ours have none any more."""
    lines = [redact(line) for line in run.console]
    return Console({"": lines}, sent_lines(run.summary.get(CONSOLE_KEY))) if lines else Console()


def _positions(rows: list[Json]) -> Rows:
    """Rows with their own W&B steps where those only grow, else numbered from 0: offline, W&B starts each fragment of
    a resumed run at step 0 again, and drops rows whose step does not grow."""
    steps = [row.get("_step", -1) for row in rows]
    grows = all(before < after for before, after in pairwise([-1, *steps]))
    values = [{key: value for key, value in row.items() if key not in ("_step", "_runtime")} for row in rows]
    return list(zip(steps, values, strict=True)) if grows else list(enumerate(values))


def send(runs: Iterable[Run], config: TrackingConfig, directory: TrackingDir | None, report: Report) -> int:
    """Upload the runs that the server does not have; returns the number of runs that did not arrive.

    directory: where the sweep's own W&B files are; what the client writes meanwhile goes to a temporary folder.
    """
    from sweeps.tracking.mirror import connect_briefly, redacted

    online = replace(config, mode="online", timeout=max(config.timeout, MIN_TIMEOUT))
    connect_briefly()
    pending = list(runs)
    try:
        before = _on_server(pending, online)
    except Exception as error:  # no server, no key, no such project: nothing can be sent
        return _all_failed(pending, redacted(error), report)
    with tempfile.TemporaryDirectory(prefix="mlkv-sync-", ignore_cleanup_errors=True) as scratch:
        meanwhile = TrackingDir(Path(scratch))
        failures = {run.id: _send(run, before, online, meanwhile, report) for run in pending}
        if directory:
            directory.note_address(meanwhile.address() or directory.address())
            for run in pending:
                if run.finished:  # what a job of earlier code left, or one that was killed
                    directory.drop_hollow(run.id)
    sent = [run for run in pending if failures[run.id] is not None]
    try:
        after = _on_server(sent, online) if sent else {}
    except Exception as error:
        return _all_failed(sent, redacted(error), report)
    return sum(not _arrived(run, after, failures[run.id] or "", report) for run in sent)


def write_files(runs: Iterable[Run], config: TrackingConfig, directory: TrackingDir, report: Report) -> int:
    """Offline: write a complete copy of every finished run to `directory`; returns the number that failed."""
    failed = 0
    for run in runs:
        if run.state in (StepState.RUNNING, StepState.LOST):
            report(SyncResult(run.id, run.name, "still running"))
        elif directory.written(run.id) == run.fingerprint:
            report(SyncResult(run.id, run.name, "already there"))
        else:
            reason = _attempt(run, config, directory)
            failed += bool(reason)
            report(SyncResult(run.id, run.name, "failed" if reason else "written", reason))
    return failed


@dataclass(frozen=True)
class OnServer:
    """What the server has of a run."""

    fingerprint: str = ""
    rows: int = 0
    console: Sent = field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    checkpoint: str = ""

    def missing(self, run: Run) -> str:
        """What it lacks of ours; empty where it has all of it."""
        if self.rows != len(run.rows) or (run.settled and not self.fingerprint):
            return f"the server has {self.rows} of {len(run.rows)} rows" + (
                "" if self.fingerprint else " and no summary"
            )
        if self.fingerprint != (run.fingerprint if run.settled else ""):
            return "the server has another summary"
        if not run.console.is_within(self.console):
            return "the server has not all of what it printed"
        if run.checkpoint and not run.checkpoint.is_in(self.checkpoint):
            return "the server does not have its checkpoint"
        return "" if self.tags.issuperset(run.sweeps) else "the server has not all of its tags"


def _on_server(runs: list[Run], config: TrackingConfig) -> dict[str, OnServer]:
    """By run id, without the runs that the server does not know."""
    import wandb

    api = wandb.Api(timeout=int(config.timeout) + 1)
    known: dict[str, OnServer] = {}
    for start in range(0, len(runs), PAGE):
        ids = [run.id for run in runs[start : start + PAGE]]
        page = api.runs(config.path, filters={"name": {"$in": ids}}, per_page=PAGE, lazy=False)
        try:
            for run in page:
                summary = run.summary_metrics
                known[run.id] = OnServer(
                    str(summary.get(FINGERPRINT_KEY, "")),
                    run.historyLineCount or 0,
                    sent_lines(summary.get(CONSOLE_KEY)),
                    frozenset(run.tags or ()),
                    str(summary.get(CHECKPOINT_KEY, "")),
                )
        except ValueError:
            return {}  # there is no such project yet
    return known


def _send(
    run: Run, before: dict[str, OnServer], config: TrackingConfig, directory: TrackingDir, report: Report
) -> str | None:
    """The error of a run that was sent, an empty string without one; None for a run that need not be sent."""
    if run.state == StepState.RUNNING:
        report(SyncResult(run.id, run.name, "still running"))
        return None
    if run.id in before and not before[run.id].missing(run):
        report(SyncResult(run.id, run.name, "already there"))
        return None
    return _attempt(run, config, directory)


def _attempt(run: Run, config: TrackingConfig, directory: TrackingDir) -> str:
    from sweeps.tracking.mirror import MirrorError, write

    try:
        write(run, config, directory)
    except MirrorError as error:
        return str(error)
    return ""


def _arrived(run: Run, after: dict[str, OnServer], reason: str, report: Report) -> bool:
    missing = after.get(run.id, OnServer()).missing(run)
    report(SyncResult(run.id, run.name, "failed" if missing else "sent", missing and (reason or missing)))
    return not missing


def _all_failed(runs: list[Run], reason: str, report: Report) -> int:
    for run in runs:
        report(SyncResult(run.id, run.name, "failed", reason))
    return len(runs)


# The process


def sync_sweep(
    store: Store, target: Target, timeout: float | None = None, only_done: bool = False
) -> Iterator[SyncResult]:
    """Mirror a sweep, or its finished variants alone, in a process of its own; yields results as they come. The process
    is killed after `timeout` seconds."""
    yield from _process(["--done" if only_done else "--store", str(store.root)], target, timeout)


def sync_files(path: Path, target: Target) -> Iterator[SyncResult]:
    """Send the runs in a directory that W&B wrote, each under its own id, the fragments of a run as one run."""
    yield from _process(["--files", str(path)], target, None)


def _process(arguments: list[str], target: Target, timeout: float | None) -> Iterator[SyncResult]:
    command = [sys.executable, "-m", "sweeps.tracking.sync", *arguments]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(command, env=environment(target), stdout=subprocess.PIPE, stderr=errors, text=True)
        overdue = threading.Timer(timeout or 0.0, process.kill)
        if timeout is not None:
            overdue.start()
        assert process.stdout
        with process.stdout:
            for line in process.stdout:
                yield SyncResult(**json.loads(line))
        if process.wait() not in (0, NOT_ARRIVED):
            errors.seek(0)
            reason = "W&B took too long" if overdue.finished.is_set() else _why_it_ended(errors.read())
            yield SyncResult("", "the other runs", "failed", reason)
        overdue.cancel()


def _why_it_ended(errors: str) -> str:
    """The end of a traceback from the line that names the error on (pydantic's have several), else the last line that
    the process printed."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    named = [at for at, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)]
    words = " ".join(lines[named[-1] :] if named else lines[-1:])[:500]
    return ": ".join(filter(None, ["the process that uploads ended early", words]))


def main() -> None:
    (source, path), target = sys.argv[1:], Target.of_environment()
    assert target
    failed = (
        _sync_directory(Path(path), target)
        if source == "--files"
        else _sync_store(Store(Path(path)), target, source == "--done")
    )
    sys.exit(NOT_ARRIVED if failed else 0)


def _print_result(result: SyncResult) -> None:
    print(json.dumps(asdict(result)), flush=True)


def _sync_store(store: Store, target: Target, only_done: bool) -> int:
    assert target.sweep
    sweep, directory = store.sweep(target.sweep), store.tracking(target.sweep)
    mirror = send if target.config.mode == "online" else write_files
    runs = sweep_runs(store, sweep, only_done, target.config)
    return mirror(runs, target.config, directory, _print_result)


def _sync_directory(path: Path, target: Target) -> int:
    from sweeps.tracking.read.files import read_directory

    by_project: dict[tuple[str, str], list[Run]] = {}
    for run in read_directory(path):
        by_project.setdefault((run.entity, run.project), []).append(logged_run(run))
    failed = 0
    for (entity, project), runs in by_project.items():
        # A project that the user names wins over the one that the files name.
        own = {key: value for key, value in (("entity", entity), ("project", project)) if value}
        given = {key: value for key in own if (value := getattr(target.config, key)) != getattr(DEFAULT_CONFIG, key)}
        config = replace(target.config, **{**own, **given})
        failed += send(runs, config, None, _print_result)
    return failed


if __name__ == "__main__":
    main()
