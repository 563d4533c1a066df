"""The subcommands that keep a store in order: ls, du, note, mv, rm, prune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from sweeps.cli.console import make_console, print_json
from sweeps.cli.options import JsonOption, StoreOptions, SweepOptions, argument
from sweeps.cli.selection import existing
from sweeps.store.errors import NOT_DONE, OK, StoreError, UserError
from sweeps.store.states import StepState

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sweeps.store.store import Store


@dataclass(frozen=True)
class ListOptions(JsonOption, StoreOptions):
    """Of `ls` and `du`."""


@dataclass(frozen=True)
class NoteOptions(SweepOptions):
    words: tuple[str, ...] = argument("the note; without any, the note there is is printed", nargs="*", metavar="TEXT")
    delete: bool = argument("delete the note", "--delete", action="store_true")


@dataclass(frozen=True)
class MoveOptions(StoreOptions):
    old: str = argument("the name of a sweep or an import", metavar="OLD")
    new: str = argument("its new name", metavar="NEW")


@dataclass(frozen=True)
class RemoveOptions(StoreOptions):
    names: tuple[str, ...] = argument("names of sweeps or imports", nargs="+", metavar="NAME")
    yes: bool = argument("delete, rather than show what would go", "--yes", action="store_true")


@dataclass(frozen=True)
class PruneOptions(StoreOptions):
    yes: bool = argument("delete them; without this option they are only listed", "--yes", action="store_true")


@dataclass(frozen=True)
class Listed:
    """A line of `ls`. None: what imported results do not have, or a damaged plan does not tell."""

    name: str
    planned: str | None = None
    variants: int | None = None
    steps: str | None = None
    note: str | None = None
    problem: str | None = None


def ls(options: ListOptions) -> int:
    """A line per sweep and import; one that cannot be read says why, and the others go on."""
    store, console = existing(options.store), make_console()
    rows = [*_sweeps(store), *map(Listed, store.import_names())]
    if options.json:
        print_json({"entries": [asdict(row) for row in rows]})
    else:
        console.print(_table(["name", "planned", "variants", "steps", "note"], [_words(row) for row in rows]))
    return NOT_DONE if any(row.problem for row in rows) else OK


def _sweeps(store: Store) -> Iterator[Listed]:
    from sweeps.cli.view import counts, summary
    from sweeps.planning.reconcile import read_states, saved_graph

    for folder in store.sweep_folders():
        listed = Listed(folder.name, note=folder.note() or None)
        try:
            if problem := folder.problem():
                raise StoreError(problem)
            if not folder.numbers():
                continue
            saved = folder.read()
            listed = replace(listed, planned=saved.plan.created, variants=len(saved.variants))
            graph = saved_graph(store, saved)
            yield replace(listed, steps=summary(counts(graph, read_states(graph, store, saved.plan.stopped))))
        except (StoreError, OSError) as error:
            yield replace(listed, problem=str(error))


def _words(row: Listed) -> list[str]:
    steps = f"damaged: {row.problem}" if row.problem else "imported results" if row.steps is None else row.steps
    variants = "" if row.variants is None else str(row.variants)
    planned = (row.planned or "")[: len("2026-01-31T00:00")].replace("T", " ")
    return [row.name, planned, variants, steps, row.note or ""]


def du(options: ListOptions) -> int:
    from analysis.data.units import size
    from sweeps.store.housekeeping import usage

    store, console = existing(options.store), make_console()
    used = usage(store)
    if options.json:
        print_json(asdict(used))
        return OK
    rows = [[each.name, size(each.own), size(each.shared)] for each in used.sweeps]
    console.print(_table(["sweep", "its own", "shared with others"], rows, left=1))
    unneeded = f", of which no sweep needs {size(used.unneeded)} (`mlkv prune`)" if used.unneeded else ""
    console.print(f"all steps: {size(used.steps)}{unneeded}", highlight=False)
    console.print(f"imports, code and notes on jobs: {size(used.other)}", highlight=False)
    return OK


def note(options: NoteOptions) -> int:
    store, text = existing(options.store), " ".join(" ".join(options.words).split())
    saved = store.sweep(options.name)
    if not text and not options.delete:
        print(store.note(saved.name) or f"sweep {saved.name} has no note")
        return OK
    if text and options.delete:
        raise UserError(f"note: {text}: give either a text or --delete")
    if not text.isprintable():
        raise UserError(f"note: {text!a}: must be printable")
    store.write_note(saved.name, text)
    return OK


def mv(options: MoveOptions) -> int:
    from sweeps.store.housekeeping import check_known, rename

    store, console = existing(options.store), make_console()
    check_known(store, [options.old])
    _check_idle(console, store, options.old)
    is_sweep = options.old in store.sweep_names()
    rename(store, options.old, options.new)
    if is_sweep:
        console.print(f"the line that made {options.old} makes it again, unless it has name={options.new}")
    return OK


def rm(options: RemoveOptions) -> int:
    from sweeps.store.housekeeping import check_known, remove

    store, console = existing(options.store), make_console()
    check_known(store, options.names)
    for name in options.names:
        _check_idle(console, store, name)
    for name in dict.fromkeys(options.names):
        console.print(f"{name}: {_contents(store, name)}", highlight=False)
    if not options.yes:
        console.print("nothing was deleted; --yes deletes them")
        return OK
    left = [name for name in dict.fromkeys(options.names) if not remove(store, name)]
    for name in left:
        console.print(f"{name}: a part of it could not be deleted", style="red", highlight=False)
    console.print("outputs of steps stay until `mlkv prune --yes`")
    return NOT_DONE if left else OK


def _contents(store: Store, name: str) -> str:
    if name in store.import_names():
        return f"imported results ({store.imported(name)})"
    words = [f"{len(store.plans(name))} plans with the logs of their jobs"]
    if text := store.note(name):
        words.append(f"the note “{text}”")
    return " and ".join(words)


def _check_idle(console: Console, store: Store, name: str) -> None:
    """Raises UserError for a sweep with a step that runs, or with a job that waits in the queue. A queue that does not
    answer is no reason to refuse: a job that runs later harms no other sweep."""
    if name not in store.sweep_names():
        return
    steps = {id for saved in store.plans(name) for id in saved.plan.steps}
    running = [id for id in sorted(steps) if store.step(id).state().name is StepState.RUNNING]
    if running := running or _queued(console, store, name):
        raise UserError(f"{name}: {running[0]} runs or waits in the queue; `mlkv cancel {name}` first")


def _queued(console: Console, store: Store, name: str) -> list[str]:
    from sweeps.dispatch.queue_status import QueueError, latest_jobs

    steps = {id for row in store.noted_jobs() if row.sweep == name for id in row.steps or ()}
    try:
        return [id for id, job in latest_jobs(steps, store).items() if job.live]
    except QueueError as error:
        console.print(f"{name}: jobs of it may wait in the queue: {error}", style="yellow", highlight=False)
        return []


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 99) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def prune(options: PruneOptions) -> int:
    from rich.progress import track

    from sweeps.cli.view import prune_table
    from sweeps.store.prune import prunable

    store, console = existing(options.store), make_console()
    found = list(prunable(store))
    if not found:
        console.print("nothing to delete: every output is needed by a sweep")
        return OK
    console.print(prune_table(found))
    if not options.yes:
        console.print("nothing was deleted; --yes deletes them")
        return OK
    for each in track(found, "dropping", console=console, transient=True):
        each.drop()
    return OK
