"""The subcommand gather: results as one long table, from the store or from W&B, ours or somebody else's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.cli.console import make_console, print_json
from sweeps.cli.options import JsonOption, SweepOptions, argument, user_path
from sweeps.cli.selection import existing
from sweeps.cli.sources import load_source, one_line
from sweeps.store.errors import OK, UserError, choices

if TYPE_CHECKING:
    import pandas as pd
    from rich.progress import Progress, TaskID

    from sweeps.tracking.read.api import Project
    from sweeps.tracking.read.runs import LoggedRun

SOURCES = ("store", "offline", "api")


@dataclass(frozen=True)
class GatherOptions(JsonOption, SweepOptions):
    settings: tuple[str, ...] = argument(
        "source=store (default), offline or api; for runs that somebody else logged map.COLUMN=config.KEY, "
        "map.TASK.METRIC=summary.KEY, and group=… or sweep=… to pick among them",
        nargs="*",
        metavar="KEY=VALUE",
    )
    out: Path | None = argument("write CSV here instead of printing a summary", "-o", "--out", type=user_path)
    curves: Path | None = argument(
        "also write every number that was logged during the steps, as CSV", "--curves", type=user_path
    )
    layouts: Path | None = argument(
        "add a line for each layout and seed to this CSV, a small one to keep, instead of printing (docs/placement.md)",
        "--layouts",
        type=user_path,
    )
    dir: Path | None = argument(
        "source=offline: a directory that W&B wrote (default: the sweep's)", "--dir", type=user_path
    )
    project: str | None = argument("source=api: PROJECT or ENTITY/PROJECT (default: the sweep's, or mlkv)", "--project")
    cache: Path | None = argument(
        "source=api: the directory that caches histories (default: XDG_CACHE_HOME)", "--cache", type=user_path
    )


@dataclass
class Settings:
    """`settings`, parsed. A `mapping` is for runs that somebody else logged; `only` selects some of them."""

    source: str = "store"
    mapping: dict[str, str] = field(default_factory=dict)
    only: dict[str, str] = field(default_factory=dict)


def gather(options: GatherOptions) -> int:
    settings = _parse_settings(options.settings)
    with one_line():
        cells = _cells(options, settings)
    if options.out and options.json:
        raise UserError("gather: give either --json or --out, which is CSV")
    if options.layouts:
        _add_layouts(options, cells)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        cells.to_csv(options.out, index=False)
    elif options.json:
        print_json({"name": options.name, "cells": cells.astype(object).where(cells.notna(), None).to_dict("records")})
    elif not options.layouts:
        _print(cells)
    return OK


def _print(cells: pd.DataFrame) -> None:
    if sys.stdout.isatty():
        from analysis.tables.terminal import CellsTable

        make_console().print(CellsTable(cells))
    else:
        print(cells.to_string())


def _add_layouts(options: GatherOptions, cells: pd.DataFrame) -> None:
    """Write the lines of a file of layout scores anew, with those of these results."""
    from analysis.data import layout_scores
    from sweeps.store.files import write_atomic

    path = options.layouts
    assert path, "only asked for with a file"
    with one_line():
        old, new = layout_scores.read(path), layout_scores.lines_of(cells, options.name, _line_of(options))
        every = layout_scores.merged(old, new)
    write_atomic(path, layout_scores.text_of(every))
    print(f"{path}: {len(new)} layouts and seeds of {options.name}, {len(every)} lines", file=sys.stderr)


def _line_of(options: GatherOptions) -> str:
    """What makes these results: the experiment, or the sweep's name."""
    from sweeps.store.store import Store

    store = Store(options.store)
    if options.name not in store.sweep_names():
        return options.name
    words = store.sweep(options.name).plan.command or []
    chosen = [word for word in words if word.startswith(("experiment=", "model"))]
    return " ".join(["mlkv sweep", *chosen])


def _parse_settings(words: Iterable[str]) -> Settings:
    settings = Settings()
    for word in words:
        key, _, value = word.partition("=")
        if key == "source" and value in SOURCES:
            settings.source = value
        elif key == "source":
            raise UserError(f"source = {value}: {choices(value, SOURCES)}")
        elif key in ("group", "sweep") and value:
            settings.only[key] = value
        elif key.startswith("map.") and value:
            settings.mapping[key.removeprefix("map.")] = value
        else:
            raise UserError(f"{word}: must be KEY=VALUE with source, group, sweep or map.COLUMN as its key")
    if settings.mapping and settings.source == "store":
        raise UserError("map.COLUMN is for runs in W&B that somebody else logged: add source=api or source=offline")
    if settings.only and not settings.mapping:
        raise UserError(f"{next(iter(settings.only))}= picks among runs that somebody else logged: add map.COLUMN=…")
    return settings


def _cells(options: GatherOptions, settings: Settings) -> pd.DataFrame:
    """The same table, whichever source the results come from."""
    if settings.source == "store":
        if options.curves:
            _write_curves(options, None)
        source = load_source(options.name, options.store)
        for note in source.notes:
            print(note, file=sys.stderr)
        return source.table
    if settings.mapping:
        from analysis.data.foreign import foreign_table

        runs = _foreign_runs(options, settings)
        _write_curves(options, runs)
        return foreign_table(runs, settings.mapping)
    from analysis.data.logged import table

    runs = _from_api(options) if settings.source == "api" else _from_files(options)
    _write_curves(options, runs)
    return table(runs, options.name)


def _write_curves(options: GatherOptions, runs: list[LoggedRun] | None) -> None:
    """Every number that was logged on the way; from the store where there are no runs."""
    if options.curves:
        from analysis.data import curves

        store = existing(options.store) if runs is None else None
        found = curves.of_store(store, store.sweep(options.name)) if store else curves.of_runs(runs or [])
        options.curves.parent.mkdir(parents=True, exist_ok=True)
        found.to_csv(options.curves, index=False)


# Our runs


def _from_files(options: GatherOptions) -> list[LoggedRun]:
    from sweeps.tracking.read.files import read_directory

    return read_directory(options.dir or existing(options.store).tracking(options.name).runs)


def _from_api(options: GatherOptions) -> list[LoggedRun]:
    from sweeps.tracking.read.api import all_runs, unfinished

    with _project(options.project or _project_of_sweep(options), options) as project:
        return project.sweep(options.name, all_runs if options.curves else unfinished)


def _project_of_sweep(options: GatherOptions) -> str:
    """The project that the sweep is mirrored to, where the store knows it."""
    from sweeps.store.store import Store
    from sweeps.tracking.target import TrackingConfig, saved_target

    store = Store(options.store)
    known = options.name in store.sweep_names()
    config = saved_target(store.sweep(options.name)).config if known else TrackingConfig()
    return config.path


# Runs that somebody else logged


def _foreign_runs(options: GatherOptions, settings: Settings) -> list[LoggedRun]:
    if settings.source == "api":
        from sweeps.tracking.read.api import all_runs, no_runs

        with _project(options.name, options) as project:
            runs = project.runs(settings.only, all_runs if options.curves else no_runs)
    else:
        from sweeps.tracking.read.files import read_directory

        runs = [run for run in read_directory(Path(options.name)) if _matches(run, settings.only)]
    if not runs:
        which = "".join(f" with {key} = {value}" for key, value in settings.only.items())
        raise UserError(f"{options.name}: no W&B runs there{which}")
    return runs


def _matches(run: LoggedRun, only: Mapping[str, str]) -> bool:
    return all(getattr(run, key) == value for key, value in only.items())


@contextmanager
def _project(path: str, options: GatherOptions) -> Iterator[Project]:
    """A project to read, with a bar on a terminal's stderr, and in the end a line on what it cost."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from sweeps.tracking.read.api import Project
    from sweeps.tracking.read.cache import default_folder

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        project = Project(path, cache=options.cache or default_folder(), report=_bar(bars))
        yield project
    histories = project.fetched + project.cached
    console.print(f"W&B {path}: fetched {project.fetched} of {histories} histories", highlight=False)


def _bar(bars: Progress) -> Callable[[str, int, int], None]:
    """Shows what is read: a bar for each kind."""
    tasks: dict[str, TaskID] = {}

    def report(what: str, done: int, of: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(f"reading {what}")
        bars.update(tasks[what], completed=done, total=of)

    return report
