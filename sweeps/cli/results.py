"""The subcommands that write results: table, figure, report, import-results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.figures.kinds import FIGURES
from analysis.tables.kinds import TABLES
from sweeps.cli.console import make_console, print_json
from sweeps.cli.current import is_current
from sweeps.cli.options import JsonOption, StoreOptions, argument, user_path
from sweeps.cli.selection import existing
from sweeps.cli.sources import ResultsOptions, SelectionOptions, folder_of, load_results, names_and_kinds, one_line
from sweeps.store.errors import OK, UserError, choices

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.statistics.sources import Source
    from analysis.tables.saved import SavedTable
    from analysis.tables.table import Table
    from sweeps.store.store import SavedSweep, Store


_PUBLISHED = (
    "add published results for comparison: a set of published/, or by default the one that the experiment reproduces"
)


@dataclass(frozen=True)
class TableOptions(JsonOption, SelectionOptions, ResultsOptions):
    others: tuple[str, ...] = argument(
        lambda: f"further names, and of kinds (default: all) {', '.join(TABLES)}", nargs="*", metavar="NAME|KIND"
    )
    format: str | None = argument("terminal (default), md, tex or csv", "--format")
    out: Path | None = argument(
        "a file (.md, .tex, .csv), or a directory for a file per kind", "-o", "--out", type=user_path
    )
    columns: tuple[str, ...] | None = argument(
        "only the columns with these headings, as in --columns 'bits per byte' ARC-e; all: every column, also in tex, "
        "which leaves out some where a page is too narrow",
        "--columns",
        nargs="+",
        metavar="COLUMN",
    )
    published: str | None = argument(_PUBLISHED, "--published", nargs="?", const="", metavar="SET")


@dataclass(frozen=True)
class FigureOptions(SelectionOptions, ResultsOptions):
    others: tuple[str, ...] = argument(
        lambda: f"further names, and of kinds (default: all that there is something to draw for) {', '.join(FIGURES)}",
        nargs="*",
        metavar="NAME|KIND",
    )
    published: str | None = argument(_PUBLISHED, "--published", nargs="?", const="", metavar="SET")
    out: Path | None = argument("directory (default: reports/NAME/figures)", "-o", "--out", type=user_path)


@dataclass(frozen=True)
class ReportOptions(SelectionOptions, ResultsOptions):
    others: tuple[str, ...] = argument("further names", nargs="*", metavar="NAME")
    out: Path | None = argument("directory (default: reports/NAME)", "-o", "--out", type=user_path)


@dataclass(frozen=True)
class ImportOptions(StoreOptions):
    directory: Path = argument("with lm-eval's JSON results, CSV measurements", type=user_path, metavar="DIR")
    name: str | None = argument("what the tables and figures call it (default: the directory's name)", "--name")
    accuracy: tuple[str, ...] | None = argument(
        "what its accuracy averages", "--accuracy", nargs="+", metavar="TASK.METRIC"
    )


_LATER = (
    *("analysis.page.report", "analysis.tables.terminal", "jinja2", "scipy.special", "pandas.io.formats.csvs"),
    *("matplotlib.backends.backend_pdf", "fontTools.subset", "PIL.PngImagePlugin"),
)

FORMATS = ("terminal", "md", "tex", "csv")


def table(options: TableOptions) -> int:
    """Print the named tables, or write them: into one file, or into a directory with a file per kind."""
    from analysis.tables.paper import make_tables, select_columns
    from analysis.tables.terminal import FittingTable

    (names, kinds), form = names_and_kinds(options, options.others, TABLES), _format(options)
    source = load_results(names, options, options, TABLES)
    if options.json:
        return _print_long_form(source, kinds, options)
    with one_line():
        tables = make_tables(source, kinds, _published_set(options.published, source))
        tables = select_columns(tables, options.columns) if options.columns else tables
    if form == "terminal":
        for kind, made in tables.items():
            make_console().print(FittingTable(made, f"{source.name}: {TABLES[kind].title}"))
        return OK
    titles = {kind: TABLES[kind].title if len(tables) > 1 else None for kind in tables}
    compact = not options.columns
    texts = {kind: _rendered(made, form, titles[kind], compact=compact) for kind, made in tables.items()}
    _write(texts, form, options.out)
    return OK


def _print_long_form(source: Source, kinds: list[str], options: TableOptions) -> int:
    """Every score of every row, as one JSON object."""
    from analysis.statistics.long_form import long_form

    given = {"--out": options.out, "--format": options.format, "--columns": options.columns}
    if other := next((option for option, value in given.items() if value), None):
        raise UserError(f"table: give either --json or {other}")
    if options.published is not None:
        raise UserError("table: with --json name the set among the results, as in published/mlkv")
    if kinds:
        raise UserError(f"table: --json has all scores; leave out the kind {kinds[0]}")
    with one_line():
        rows = long_form(source)
    names = [part.source.name for part in source.parts] or [source.name]
    print_json({"names": names, "axis": source.results.estimates.axis, "notes": source.notes, "rows": rows})
    return OK


def _format(options: TableOptions) -> str:
    """`--format`, else by the file's suffix; Markdown into a directory."""
    form = options.format or (options.out and (options.out.suffix.lstrip(".") or "md")) or "terminal"
    if form not in FORMATS:
        raise UserError(f"format = {form}: {choices(form, FORMATS)}")
    if form == "terminal" and options.out:
        raise UserError("format = terminal: is printed; with -o choose md, tex or csv")
    return form


def _rendered(made: Table, form: str, title: str | None, *, compact: bool) -> str:
    from analysis.tables import rendering

    if form == "md":
        return rendering.markdown(made, title)
    return rendering.latex(made, compact=compact) if form == "tex" else rendering.csv(made)


def _write(texts: dict[str, str], form: str, out: Path | None) -> None:
    from sweeps.store.files import write_atomic

    if out is None or out.suffix:
        if form == "csv" and len(texts) > 1:
            raise UserError(
                f"format = csv: one table to a file; name one of {', '.join(texts)}, or a directory with -o"
            )
        text = "\n".join(texts.values())
        print(text, end="") if out is None else write_atomic(out, text)
        return
    for kind, text in texts.items():
        write_atomic(out / f"{kind}.{form}", text)
        print(out / f"{kind}.{form}")


def _published_set(name: str | None, source: Source) -> Source | None:
    """The published set of this name, or for an empty name the one that the experiment reproduces; None for none."""
    from analysis.data.published import set_for
    from analysis.statistics.sources import published_source

    return None if name is None else published_source(name or set_for(source.experiment))


def figure(options: FigureOptions) -> int:
    from analysis.figures.drawing import write_figures

    names, kinds = names_and_kinds(options, options.others, FIGURES)
    source = load_results(names, options, options, FIGURES)
    with one_line():
        published = _published_set(options.published, source)
        out = options.out or folder_of(source, options) / "figures"
        files = write_figures(source, kinds, out, published)
    for path in files:
        print(path)
    return OK


def report(options: ReportOptions) -> int:
    from analysis.page.report import write_page, write_results

    source = load_results([options.name, *options.others], options, options)
    out = options.out or folder_of(source, options)
    if source.sweep and not options.words:
        write_report_of(make_console(), existing(options.store), source.sweep, out)
        return OK
    with one_line():
        files = write_page(existing(options.store), source, out) if source.sweep else write_results(source, out)
    for path in files:
        print(path)
    return OK


def write_report_of(console: Console, store: Store, saved: SavedSweep, out: Path, *, again: bool = True) -> None:
    """Show the results and write the report; without `again`, not where one is newer than all there is to tell."""
    from analysis.tables.saved import SavedTable
    from analysis.tables.terminal import FittingTable

    source, shown = None, None if again else _saved_table(out, store, saved)
    if shown is None:
        from analysis.statistics.sources import load
        from analysis.tables.results_table import results_table

        source = load(store, saved.name)
        shown = SavedTable(results_table(source.results), source.whose)
    console.print(FittingTable(shown.table))
    for line in shown.whose:
        console.print(line, highlight=False)
    if source is not None:
        from analysis.page.report import write_page

        write_page(store, source, out, shown.table)
    console.print(f"report: {out / 'index.html'}", highlight=False)


def report_modules() -> list[str]:
    """What `write_report_of` imports where there is something to draw, a second's work in all."""
    functions = [row.draw for row in FIGURES.values() if isinstance(row.draw, str)]
    figures = dict.fromkeys(function.partition(":")[0] for function in functions)
    return ["pandas", "analysis.statistics.sources", "matplotlib.backends.backend_agg", *figures, *_LATER]


def _saved_table(out: Path, store: Store, saved: SavedSweep) -> SavedTable | None:
    """The table of a report that is newer than all there is to tell."""
    from analysis.tables.saved import TABLE, read_saved

    files = [out / "index.html", out / TABLE]
    if not all(file.is_file() for file in files):
        return None
    oldest = min(files, key=lambda file: file.stat().st_mtime)
    return read_saved(out / TABLE) if is_current(oldest, store, saved) else None


def import_results(options: ImportOptions) -> int:
    from analysis.data import frame, importer
    from sweeps.store.store import Store

    name = options.directory.resolve().name if options.name is None else options.name
    Store(options.store).check_import_name(name)
    accuracy = [_pair(word) for word in options.accuracy] if options.accuracy else None
    with one_line():
        found = importer.read_directory(options.directory, name, accuracy)
    Store.open(options.store).save_import(name, frame.write_csv(found.table))
    values, variants = found.table["value"].notna().sum(), found.table["variant"].nunique()
    print(f"{name}: {values} results of {variants} variants; `mlkv table {name}` shows them")
    if found.averaged:
        print(f"mean of {len(found.averaged)}: {', '.join(found.averaged)}")
    for note in found.notes:
        print(note)
    return OK


def _pair(word: str) -> tuple[str, str]:
    task, dot, metric = word.rpartition(".")
    if not dot:
        raise UserError(f"accuracy = {word}: wanted TASK.METRIC, as in arc_easy.acc")
    return task, metric
