"""The subcommands that write results: table, figure, report, import-results."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.errors import OK, UserError
from sweeps.looking import existing, make_console

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.sources import Source
    from sweeps.store import SavedSweep, Store


@contextmanager
def one_line() -> Iterator[None]:
    """What `analysis` refuses with a ValueError is the user's to mend."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None


def source_of(options: argparse.Namespace) -> Source:
    """A sweep, a published set or an import, by its name."""
    from analysis.sources import PUBLISHED, load
    from sweeps.store import Store

    store = Store(options.store) if options.name.startswith(PUBLISHED) else existing(options.store)
    return load(store, options.name)


def table(options: argparse.Namespace) -> int:
    from analysis.tables import render_terminal

    make_console().print(render_terminal(source_of(options).pivot))
    return OK


def _beside(options: argparse.Namespace, source: Source) -> Source | None:
    """The published set that was asked for: by its name, or the one that the experiment reproduces."""
    from analysis.published import set_for
    from analysis.sources import published_source

    if options.published is None:
        return None
    return published_source(options.published or set_for(source.experiment))


def figure(options: argparse.Namespace) -> int:
    from analysis.drawing import write_figures

    source = source_of(options)
    with one_line():
        beside = _beside(options, source)
        out = options.out or Path("reports") / source.name / "figures"
        files = write_figures(source, options.kinds, out, beside)
    for path in files:
        print(path)
    return OK


def report(options: argparse.Namespace) -> int:
    from analysis.report import write_results

    source = source_of(options)
    out = options.out or Path("reports") / source.name
    if source.sweep:
        write_report_of(make_console(), existing(options.store), source.sweep, out)
        return OK
    with one_line():
        files = write_results(source.table, out)
    for path in files:
        print(path)
    return OK


def write_report_of(console: Console, store: Store, saved: SavedSweep, out: Path) -> None:
    from analysis.report import write_report
    from analysis.sources import load
    from analysis.tables import render_terminal

    console.print(render_terminal(load(store, saved.name).pivot))
    write_report(store, saved.name, out)
    console.print(f"report: {out / 'index.html'}", highlight=False)


def import_results(options: argparse.Namespace) -> int:
    from analysis import frame, importer
    from sweeps.store import Store

    name = options.name or options.directory.resolve().name
    accuracy = [_pair(word) for word in options.accuracy] if options.accuracy else None
    with one_line():
        found = importer.import_results(options.directory, name, accuracy)
    Store.open(options.store).save_import(name, frame.write_csv(found))
    variants = found["variant"].nunique()
    print(f"{name}: {len(found)} results of {variants} variants; `mlkv table {name}` shows them")
    return OK


def _pair(word: str) -> tuple[str, str]:
    task, dot, metric = word.rpartition(".")
    if not dot:
        raise UserError(f"accuracy = {word}: wanted TASK.METRIC, as in arc_easy.acc")
    return task, metric
