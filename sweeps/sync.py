"""`mlkv sync`: the mirror run later, from the store or from plain W&B directories. Says what it did with every run.

The server is asked what it has before and after, a page of runs at a time; what is there already is not sent again, and
only what it then has counts as sent. So it can be stopped, fail and be repeated at any point.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

os.environ.setdefault("WANDB_SILENT", "true")

import wandb

from sweeps.store import SavedSweep, Store, TrackingDir
from sweeps.tracking.mirror import CONNECTION, MirrorError, redacted, write
from sweeps.tracking.runs import MARK, Run, SweepRuns, step_run
from sweeps.tracking.target import TrackingConfig

Done = Literal["sent", "already there", "still running", "written", "failed"]
PAGE = 200


@dataclass(frozen=True)
class Synced:
    """What became of one run."""

    run: str
    name: str
    done: Done
    reason: str = ""


Report = Callable[[Synced], None]


def runs_of(store: Store, sweep: SavedSweep) -> Iterator[Run]:
    """The runs of a sweep's steps and variants, as the store has them."""
    runs = SweepRuns(store, sweep)
    for step in runs.steps():
        yield step_run(step, sweep)
    yield from runs.variants()


def send(runs: Iterable[Run], config: TrackingConfig, directory: TrackingDir, report: Report) -> int:
    """Upload what the server does not have; how many runs it did not get. `directory` is W&B's scratch space."""
    online = replace(config, mode="online")
    wandb.setup(wandb.Settings(**CONNECTION))
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
    api = wandb.Api(timeout=int(config.timeout) + 1)
    path = f"{config.entity}/{config.project}" if config.entity else config.project
    found: dict[str, tuple[str, int]] = {}
    for start in range(0, len(runs), PAGE):
        ids = [run.id for run in runs[start : start + PAGE]]
        page = api.runs(path, filters={"name": {"$in": ids}}, per_page=PAGE, lazy=False)
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
    try:
        write(run, config, directory)
    except MirrorError as error:
        return str(error)
    return ""


def _expected(run: Run) -> tuple[str, int]:
    return (run.fingerprint if run.finished else "", len(run.rows))


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
