"""`mlkv sync`: the mirror run later, from the store or from plain W&B directories. Says what it did with every run.

The server is asked what it has before and after, a page of runs at a time; what is there already is not sent again, and
only what it then has counts as sent. So it can be stopped, fail and be repeated at any point.

`python -m sweeps.tracking.sync --store STORE` is the process that talks to W&B (target: the environment); it prints
a JSON line per run. `synced` starts it and reads them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sweeps.store.axis import Json, Rows
from sweeps.store.store import SavedSweep, Store, TrackingDir
from sweeps.tracking.runs import MARK, Run, SweepRuns, step_run
from sweeps.tracking.supervisor import environment
from sweeps.tracking.target import Target, TrackingConfig

_STATES = {"finished": "DONE", "failed": "FAILED"}
Done = Literal["sent", "already there", "still running", "written", "failed"]
if TYPE_CHECKING:
    from sweeps.tracking.read.runs import LoggedRun

PAGE = 200
PATIENCE = 30.0
"""Seconds for one answer, whatever jobs are told: somebody waits for this command, and nothing computes meanwhile."""
_DEFAULT = TrackingConfig()


@dataclass(frozen=True)
class Synced:
    """What became of one run."""

    run: str
    name: str
    done: Done
    reason: str = ""


Report = Callable[[Synced], None]


def runs_of(store: Store, sweep: SavedSweep, done: bool = False) -> Iterator[Run]:
    """The runs of a sweep's steps and variants, as the store has them; `done`: those of variants that are."""
    runs = SweepRuns(store, sweep)
    if done:
        yield from (run for run in runs.variants() if run.state == "DONE")
        return
    for step in runs.steps():
        yield step_run(step, sweep)
    yield from runs.variants()


def logged_run(run: LoggedRun) -> Run:
    """A run that W&B wrote to files, ready to be sent."""
    shown = {key: value for key, value in run.summary.items() if not key.startswith("_") and key != MARK}
    return Run(
        id=run.id,
        name=run.name or run.id,
        job_type=run.job_type,
        config=run.config,
        axes={pattern.removesuffix("/*"): axis for pattern, axis in run.axes.items() if pattern.endswith("/*")},
        rows=_positions(run.rows),
        summary=shown,
        state=_STATES.get(run.state, "LOST"),
        group=run.group or None,
        tags=run.tags,
        mark=str(run.summary.get(MARK, "")),
    )


def _positions(rows: list[Json]) -> Rows:
    """Their own W&B steps where those only grow; fragments that each began at 0 are counted through."""
    steps = [row.get("_step", -1) for row in rows]
    grows = all(before < after for before, after in pairwise([-1, *steps]))
    kept = [{key: value for key, value in row.items() if key not in ("_step", "_runtime")} for row in rows]
    return list(zip(steps, kept, strict=True)) if grows else list(enumerate(kept))


def send(runs: Iterable[Run], config: TrackingConfig, directory: TrackingDir, report: Report) -> int:
    """Upload what the server does not have; how many runs it did not get. `directory` is W&B's scratch space."""
    from sweeps.tracking.mirror import connect_briefly, redacted

    online = replace(config, mode="online", timeout=max(config.timeout, PATIENCE))
    connect_briefly()
    pending = list(runs)
    try:
        before = _on_server(pending, online)
    except Exception as error:  # no server, no key, no such project: nothing can be sent
        return _all_failed(pending, redacted(error), report)
    failures = {run.id: _send(run, before, online, directory, report) for run in pending}
    sent = [run for run in pending if failures[run.id] is not None]
    try:
        after = _on_server(sent, online) if sent else {}
    except Exception as error:
        return _all_failed(sent, redacted(error), report)
    return sum(not _arrived(run, after, failures[run.id] or "", report) for run in sent)


def write_files(runs: Iterable[Run], config: TrackingConfig, directory: TrackingDir, report: Report) -> int:
    """Offline: give every finished run a whole copy in `directory`; how many could not be written."""
    failed = 0
    for run in runs:
        if run.state in ("RUNNING", "LOST"):
            report(Synced(run.id, run.name, "still running"))
        elif directory.written(run.id) == run.fingerprint:
            report(Synced(run.id, run.name, "already there"))
        else:
            reason = _attempt(run, config, directory)
            failed += bool(reason)
            report(Synced(run.id, run.name, "failed" if reason else "written", reason))
    return failed


def _on_server(runs: list[Run], config: TrackingConfig) -> dict[str, tuple[str, int]]:
    """Fingerprint and number of rows of those runs that the server knows."""
    import wandb

    api = wandb.Api(timeout=int(config.timeout) + 1)
    found: dict[str, tuple[str, int]] = {}
    for start in range(0, len(runs), PAGE):
        ids = [run.id for run in runs[start : start + PAGE]]
        page = api.runs(config.path, filters={"name": {"$in": ids}}, per_page=PAGE, lazy=False)
        try:
            for known in page:
                found[known.id] = (str(known.summary_metrics.get(MARK, "")), known.historyLineCount or 0)
        except ValueError:
            return {}  # there is no such project yet
    return found


def _send(
    run: Run, before: dict[str, tuple[str, int]], config: TrackingConfig, directory: TrackingDir, report: Report
) -> str | None:
    """None where nothing was to do; else what went wrong, or an empty string."""
    if run.state == "RUNNING":
        report(Synced(run.id, run.name, "still running"))
        return None
    if before.get(run.id) == _expected(run):
        report(Synced(run.id, run.name, "already there"))
        return None
    return _attempt(run, config, directory)


def _attempt(run: Run, config: TrackingConfig, directory: TrackingDir) -> str:
    from sweeps.tracking.mirror import MirrorError, write

    try:
        write(run, config, directory)
    except MirrorError as error:
        return str(error)
    return ""


def _expected(run: Run) -> tuple[str, int]:
    return (run.fingerprint if run.settled else "", len(run.rows))


def _arrived(run: Run, after: dict[str, tuple[str, int]], reason: str, report: Report) -> bool:
    there = after.get(run.id, ("", 0))
    if there == _expected(run):
        report(Synced(run.id, run.name, "sent"))
        return True
    missing = f"the server has {there[1]} of {len(run.rows)} rows" + ("" if there[0] else " and no summary")
    report(Synced(run.id, run.name, "failed", reason or missing))
    return False


def _all_failed(runs: list[Run], reason: str, report: Report) -> int:
    for run in runs:
        report(Synced(run.id, run.name, "failed", reason))
    return len(runs)


# The process


def synced(store: Store, target: Target, timeout: float | None = None, done: bool = False) -> Iterator[Synced]:
    """Mirror a sweep, or its variants that are done, in a process of its own, a result per run as they come. Ends it
    after `timeout` seconds."""
    yield from _process(["--done" if done else "--store", str(store.root)], target, timeout)


def synced_files(path: Path, target: Target) -> Iterator[Synced]:
    """Send the runs in a directory that W&B wrote, each under its own id; fragments of a run as one."""
    yield from _process(["--files", str(path)], target, None)


def _process(arguments: list[str], target: Target, timeout: float | None) -> Iterator[Synced]:
    command = [sys.executable, "-m", "sweeps.tracking.sync", *arguments]
    process = subprocess.Popen(command, env=environment(target), stdout=subprocess.PIPE, text=True)
    overdue = threading.Timer(timeout or 0.0, process.kill)
    if timeout is not None:
        overdue.start()
    assert process.stdout
    with process.stdout:
        for line in process.stdout:
            yield Synced(**json.loads(line))
    if process.wait() not in (0, 1):
        reason = "W&B took too long" if overdue.finished.is_set() else "the process that sends ended"
        yield Synced("", "the rest", "failed", reason)
    overdue.cancel()


def main() -> None:
    (source, path), target = sys.argv[1:], Target.of_environment()
    assert target
    failed = (
        _files(Path(path), target) if source == "--files" else _store(Store(Path(path)), target, source == "--done")
    )
    sys.exit(1 if failed else 0)


def _say(done: Synced) -> None:
    print(json.dumps(asdict(done)), flush=True)


def _store(store: Store, target: Target, done: bool) -> int:
    assert target.sweep
    sweep, directory = store.sweep(target.sweep), store.tracking(target.sweep)
    mirror = send if target.config.mode == "online" else write_files
    return mirror(runs_of(store, sweep, done), target.config, directory, _say)


def _files(path: Path, target: Target) -> int:
    from sweeps.tracking.read.files import read_directory

    by_place: dict[tuple[str, str], list[Run]] = {}
    for run in read_directory(path):
        by_place.setdefault((run.entity, run.project), []).append(logged_run(run))
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for (entity, project), runs in by_place.items():
            own = {key: value for key, value in (("entity", entity), ("project", project)) if value}
            given = {key: value for key in own if (value := getattr(target.config, key)) != getattr(_DEFAULT, key)}
            config = replace(target.config, **{**own, **given})
            failed += send(runs, config, TrackingDir(Path(scratch)), _say)
    return failed


if __name__ == "__main__":
    main()
