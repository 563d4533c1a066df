"""Which results the subcommands show that show results: names, several of them together, and a selection of rows."""

from __future__ import annotations

import ast
import builtins
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlkv.registry import Registry
from sweeps.cli.console import make_console
from sweeps.cli.options import ExtensionOptions, argument
from sweeps.cli.selection import existing
from sweeps.store.errors import StoreError, UserError, choices

if TYPE_CHECKING:
    from analysis.statistics.sources import Source

MOST_NAMES = 20
"""That a message lists."""
MOST_BYTES = 200
"""Of the name of a folder, as file systems take 255."""


@dataclass(frozen=True)
class ResultsOptions(ExtensionOptions):
    """Of subcommands that show results. `others` are further names and, where the subcommand has kinds, kinds."""

    name: str = argument("a sweep, an import, or a published set (published/mlkv)", metavar="NAME")


@dataclass(frozen=True)
class SelectionOptions:
    """Of subcommands that show rows of results."""

    variants: tuple[str, ...] | None = argument(
        "only the rows whose label matches one of these, as in --variants 'MLKV-*'",
        "--variants",
        nargs="+",
        metavar="GLOB",
    )
    where: str | None = argument(
        "only the rows for which this is true, as in --where 'kv_layers > 1'", "--where", metavar="EXPRESSION"
    )

    @property
    def words(self) -> list[str]:
        """The options as they were given."""
        globs = ["--variants", *self.variants] if self.variants else []
        return [*globs, *(["--where", self.where] if self.where is not None else [])]


@contextmanager
def one_line() -> Iterator[None]:
    """What `analysis` refuses with a ValueError is the user's to mend."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None


def load_source(name: str, root: Path) -> Source:
    """A sweep, a published set or an import, by its name."""
    from analysis.statistics.sources import PUBLISHED, load
    from sweeps.store.store import Store

    store = Store(root) if name.startswith(PUBLISHED) else existing(root)
    return load(store, name)


def names_and_kinds(
    options: ResultsOptions, others: Sequence[str], table: Registry[Any]
) -> tuple[list[str], list[str]]:
    """The first word names results; of the others those in `table` are kinds, and the rest are names too."""
    from sweeps.store.store import Store

    kinds = [word for word in others if word in table]
    store = Store(options.store)
    for word in kinds:
        if word in store.sweep_names():
            make_console(stderr=True).print(f"{word}: is taken for a {table.noun}; sweep/{word} names the sweep")
        elif word in store.import_names():
            make_console(stderr=True).print(f"{word}: is taken for a {table.noun}; import/{word} names the import")
    return [options.name, *(word for word in others if word not in table)], kinds


def load_results(
    names: Sequence[str], options: ResultsOptions, selection: SelectionOptions, table: Registry[Any] | None = None
) -> Source:
    """The results of these names as one source, and of them what is selected. `table` has the words that could have
    been given in place of a name, but for the first."""
    from analysis.statistics.combine import combine

    sources = [load_source(names[0], options.store), *(_further(name, options, table) for name in names[1:])]
    with one_line():
        source = combine(sources)
        _check_globs(source, selection.variants or (), table)
        return _selected(source, selection)


def _further(name: str, options: ResultsOptions, table: Registry[Any] | None) -> Source:
    try:
        return load_source(name, options.store)
    except StoreError as error:
        if table is None or "/" in name:
            raise
        raise StoreError(f"{error}; as a {table.noun}: {choices(name, table)}") from None


def _check_globs(source: Source, globs: Sequence[str], table: Registry[Any] | None) -> None:
    """Raises UserError for a kind behind --variants, which takes all words that follow."""
    from analysis.statistics.sources import row_names

    for word in globs:
        if table is not None and word in table and word not in row_names(source.table):
            raise UserError(f"variants = {word}: is a {table.noun}, and no variant; kinds go before --variants")


def _selected(source: Source, options: SelectionOptions) -> Source:
    """The source, or the rows of it that the options select. Raises UserError where there are none."""
    from analysis.statistics.selection import facts, matching, select
    from analysis.statistics.sources import row_names

    if not options.words:
        return source
    rows = matching(source, options.variants) if options.variants else row_names(source.table)
    if options.where is not None:
        fitting = {row["variant"] for row in facts(source) if _keeps(options.where, row)}
        rows = [row for row in rows if row in fitting]
    condition = shlex.join(options.words)
    if not rows:
        every = row_names(source.table)
        names = ", ".join([*every[:MOST_NAMES], *(["…"] if len(every) > MOST_NAMES else [])])
        raise UserError(f"{condition}: no variant of {source.name} is left of {names}")
    return select(source, rows, f"selected by {condition}: {len(rows)} of {len(row_names(source.table))} rows")


def _keeps(expression: str, row: dict[str, Any]) -> bool:
    """Whether a row passes; one that lacks what the expression asks for does not. Raises UserError."""
    from sweeps.planning.grammar import keeps

    named = _names(expression)
    # What is missing cannot be compared; a name that no row has is refused all the same.
    lacks = any(name in row and row[name] is None for name in named)
    if lacks and named <= {*row, *dir(builtins)}:
        return False
    return keeps(expression, row, option="--where")


def _names(expression: str) -> set[str]:
    try:
        return {node.id for node in ast.walk(ast.parse(expression.strip(), mode="eval")) if isinstance(node, ast.Name)}
    except (SyntaxError, ValueError):
        return set()  # keeps says what is wrong


def folder_of(source: Source, selection: SelectionOptions) -> Path:
    """Where reports of these results go; of a selection in a folder of its own, as the page of the whole sweep is kept
    until there is more to tell. Raises UserError for a name that is too long for a folder."""
    name = source.name.replace("/", "-") if source.parts else source.name
    if len(name.encode()) > MOST_BYTES:
        raise UserError(f"{name[:40]}…: is too long for the name of a folder; name one with -o")
    return Path("reports") / name / ("selected" if selection.words else "")
