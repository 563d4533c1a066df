"""The subcommands about W&B: sync and dashboard; and what a sweep does for it when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.cli.console import make_console
from sweeps.cli.current import is_current
from sweeps.cli.options import StoreOptions, SweepOptions, argument
from sweeps.cli.selection import existing
from sweeps.cli.sources import one_line
from sweeps.store.errors import NOT_DONE, OK, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.store.store import SavedSweep, Store, TrackingDir
    from sweeps.tracking.sync import SyncResult
    from sweeps.tracking.target import Target, TrackingConfig

LOOK_SECONDS = 2.0
SECONDS_PER_RUN = 0.5
"""Seconds that the end of a sweep waits for each run, added to the configured timeout."""

WHOLE = "whole"
"""Stands for all runs of a sweep, as W&B's files have them."""


@dataclass(frozen=True)
class SyncOptions(StoreOptions):
    what: str = argument("a sweep's name, or a directory that W&B wrote", metavar="NAME|DIR")
    project: str | None = argument("default: the sweep's tracking.project", "--project")
    entity: str | None = argument("default: the sweep's tracking.entity", "--entity")


@dataclass(frozen=True)
class DashboardOptions(SweepOptions):
    online: bool = argument("make, or renew, the sweep's saved view in W&B instead", "--online", action="store_true")


def sync(options: SyncOptions) -> int:
    """Upload the runs that W&B lacks: of a sweep in the store, or of a directory that W&B wrote."""
    from sweeps.tracking.sync import sync_sweep
    from sweeps.tracking.target import saved_target

    if os.path.isdir(options.what):  # false where the text cannot be a path
        if not any(Path(options.what).rglob("run-*.wandb")):
            raise UserError(f"{options.what}: no W&B files in this directory (run-ID.wandb)")
        return _show(make_console(), _sync_files(Path(options.what), options))
    store = existing(options.store)
    target = _online(saved_target(store.sweep(options.what)), options)
    return _show(make_console(), sync_sweep(store, target))


def _online(target: Target, options: SyncOptions) -> Target:
    with one_line():
        config = replace(
            target.config,
            mode="online",
            project=options.project or target.config.project,
            entity=options.entity or target.config.entity,
        )
    return replace(target, config=config)


def _sync_files(path: Path, options: SyncOptions) -> Iterable[SyncResult]:
    from sweeps.tracking.sync import sync_files
    from sweeps.tracking.target import Target, TrackingConfig

    return sync_files(path, _online(Target(TrackingConfig()), options))


def track(saved: SavedSweep | None) -> None:
    """Have a worker in this very process mirror what it does, as those of the sweep do."""
    from sweeps.tracking.target import saved_target

    if saved:
        os.environ.update(saved_target(saved).environment())


def addresses(store: Store, saved: SavedSweep) -> list[str]:
    """Where W&B shows a sweep that is sent there, once its client has said so. Imports no wandb."""
    from urllib.parse import quote

    from sweeps.tracking.target import saved_target

    config = saved_target(saved).config
    project = store.tracking(saved.name).address()
    if config.mode != "online" or project.rpartition("/")[2] != quote(config.project):
        return []
    return [f"W&B project: {project}", f"W&B group: {project}/groups/{quote(saved.name)}/workspace"]


class Announcement:
    """Prints the addresses of a sweep that runs, as soon as they are known; once."""

    def __init__(self, console: Console, store: Store, saved: SavedSweep) -> None:
        self._console, self._store, self._saved = console, store, saved
        self._printed, self._looked = False, 0.0

    def __call__(self, now: bool = False) -> None:
        import time

        if self._printed or (not now and time.monotonic() - self._looked < LOOK_SECONDS):
            return
        self._looked = time.monotonic()
        with suppress(Exception):  # as in any view: the jobs run whether this can be read and printed or not
            for line in addresses(self._store, self._saved):
                self._console.print(line, highlight=False, soft_wrap=True)
                self._printed = True


def mirror_sweep(console: Console, store: Store, saved: SavedSweep, done: bool = False) -> None:
    """When a sweep ends: a run for each variant, and for each step that an earlier sweep ran. Never an error.
    `done`: only of the variants that are; the workers write the others as their steps end."""
    from sweeps.tracking.sync import sweep_runs, sync_sweep
    from sweeps.tracking.target import saved_target

    target = saved_target(saved)
    if target.config.mode == "off":
        return
    count = sum(1 for _ in sweep_runs(store, saved, done)) if done else len(saved.plan.steps) + len(saved.variants)
    if not count:
        return
    directory, whole = store.tracking(saved.name), f"{store.code_hash} {saved.number} {target.config}"
    offline = target.config.mode == "offline" and not done
    if offline and _is_whole(directory, whole, store, saved):
        counted = Counter({"already there": count})
    else:
        allowed = target.config.timeout + SECONDS_PER_RUN * count
        counted = Counter(each.outcome for each in sync_sweep(store, target, allowed, done))
        if offline and counted.keys() <= {"written", "already there"}:
            with suppress(OSError):  # it only saves the next look at each run
                directory.mark_written(WHOLE, whole)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counted.items())
    advice = f"; `mlkv sync {saved.name}` uploads the rest" if counted["failed"] else ""
    console.print(f"W&B ({target.config.mode}): {outcomes}{advice}", highlight=False)
    for line in [] if done else addresses(store, saved):
        console.print(line, highlight=False, soft_wrap=True)


def _is_whole(directory: TrackingDir, whole: str, store: Store, saved: SavedSweep) -> bool:
    """Whether every run was written, by this code, after the last that there is to tell."""
    return directory.written(WHOLE) == whole and is_current(directory.mark(WHOLE), store, saved)


def _show(console: Console, results: Iterable[SyncResult]) -> int:
    """A line per run; runs that were already there are only counted, and those that failed share a line for a reason
    that they share."""
    counted: Counter[str] = Counter()
    failed: dict[str, list[SyncResult]] = {}
    for each in results:
        counted[each.outcome] += 1
        if each.outcome == "failed":
            failed.setdefault(each.reason, []).append(each)
        elif each.outcome != "already there":
            line = f"{each.outcome}: {each.run} {each.name}" + (f": {each.reason}" if each.reason else "")
            console.print(line, highlight=False, markup=False)
    for reason, runs in failed.items():
        more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        line = f"failed: {runs[0].run} {runs[0].name}{more}" + (f": {reason}" if reason else "")
        console.print(line, style="red", highlight=False, markup=False)
    console.print(", ".join(f"{count} {done}" for done, count in counted.items()) or "nothing to upload")
    return NOT_DONE if counted["failed"] else OK


def dashboard(options: DashboardOptions) -> int:
    """W&B's own terminal dashboard over a sweep's offline files; online, a saved view of the project's workspace."""
    from sweeps.tracking.environment import environment
    from sweeps.tracking.target import saved_target

    store = existing(options.store)
    saved = store.sweep(options.name)
    config, directory = saved_target(saved).config, store.tracking(saved.name).runs
    if options.online:
        make_console().print(_save_view(saved, config), highlight=False)
        return OK
    if not any(directory.glob("*run-*/*.wandb")):
        tip = (
            "`mlkv dashboard NAME --online` makes its view in W&B"
            if config.mode == "online"
            else "run it with tracking=offline"
        )
        raise UserError(f"{saved.name}: no W&B files in {directory}; {tip}")
    return subprocess.call([sys.executable, "-m", "wandb", "leet", str(directory)], env=environment())


def _save_view(saved: SavedSweep, config: TrackingConfig) -> str:
    from analysis.data.metrics import metric
    from sweeps.tracking import workspace

    axis = saved.plan.axis
    with one_line():
        better = metric(axis[1] if axis else "accuracy").higher_is_better
    return workspace.save(saved, config, better)
