"""The subcommands that look: status, why, logs, gather, report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.errors import NOT_DONE, OK, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.reconcile import Graph, Standing
    from sweeps.store import SavedSweep, StepDir, Store


def status(options: argparse.Namespace) -> int:
    from sweeps.reconcile import saved_graph, standing
    from sweeps.view import counts, status_table, summary

    store, console = existing(options.store), make_console()
    if options.name is None:
        for name in store.sweep_names():
            graph = saved_graph(store, store.sweep(name))
            console.print(f"{name}: {summary(counts(graph, standing(graph, store)))}", highlight=False)
        return OK
    graph = saved_graph(store, store.sweep(options.name))
    bad = _verify(console, graph, store) if options.verify else 0
    states = _with_queue(standing(graph, store), store.sweep(options.name), store)
    console.print(status_table(graph, states))
    console.print(summary(counts(graph, states)), highlight=False)
    return NOT_DONE if bad or any(state.name == "FAILED" for state in states.values()) else OK


def _with_queue(states: Standing, saved: SavedSweep, store: Store) -> Standing:
    """The standing with what SLURM says of steps that have not begun."""
    from dataclasses import replace

    from sweeps import dispatch
    from sweeps.config import parse_cluster

    cluster = parse_cluster(saved.plan["cluster"])
    queued = dispatch.queued_steps(cluster, store) if cluster.name == "slurm" else {}
    for id, (job, state) in queued.items():
        if id in states and states[id].name not in ("DONE", "RUNNING"):
            states[id] = replace(states[id], name="PENDING", reason=f"job {job} {state.phase.lower()} {state.reason}")
    return states


def _verify(console: Console, graph: Graph, store: Store) -> int:
    from rich.progress import track

    bad = 0
    for id in track(list(graph), "reading outputs", console=console, transient=True):
        if wrong := store.step(id).corrupted():
            store.step(id).set_aside(wrong)
            console.print(f"[red]corrupt[/] {id}: {wrong}; set aside, `mlkv sweep` runs it again", highlight=False)
            bad += 1
    return bad


def why(options: argparse.Namespace) -> int:
    from sweeps.reconcile import blockers, saved_graph, standing

    store, console = existing(options.store), make_console()
    saved = store.sweep(options.name)
    graph = saved_graph(store, saved)
    chosen = [
        id
        for id, told in saved.plan["steps"].items()
        if options.variant in told["variants"] or id.startswith(options.variant)
    ]
    if not chosen:
        labels = ", ".join(row["variant"] for row in saved.variants)
        raise UserError(f"{options.variant}: no variant or step of sweep {saved.name} (variants: {labels})")
    states = standing(graph, store)
    blocked = blockers(graph, states)
    for id in chosen:
        if (state := states[id]).name == "DONE":
            continue
        reason = f"waits for {blocked[id]}, which failed" if id in blocked else state.reason
        waits = [p for p in graph[id].parents.values() if states[p].name != "DONE"]
        console.print(
            f"{id} {graph[id].label}: {state.name} {reason or ('waits for ' + ', '.join(waits) if waits else '')}",
            highlight=False,
        )
        if state.name in ("FAILED", "LOST", "INTERRUPTED"):
            _print_tail(console, store.step(id))
    if all(states[id].name == "DONE" for id in chosen):
        console.print("all done")
    return OK


def _print_tail(console: Console, step: StepDir) -> None:
    attempt = step.attempt()
    for line in attempt.log_tail() if attempt else []:
        console.print(f"    {line}", style="dim", highlight=False, markup=False)


def logs(options: argparse.Namespace) -> int:
    import time

    step = existing(options.store).find(options.step)
    attempt = step.attempt()
    if attempt is None:
        raise UserError(f"step {step.id}: was never started")
    shown = {attempt.stdout: 0, attempt.stderr: 0, attempt.metrics_file: 0}
    while True:
        for path, position in shown.items():
            if path.exists():
                with path.open(encoding="utf-8", errors="replace") as file:
                    file.seek(position)
                    sys.stdout.write(file.read())
                    shown[path] = file.tell()
        sys.stdout.flush()
        if not options.follow or step.state().name != "RUNNING":
            return OK
        time.sleep(0.5)


def gather(options: argparse.Namespace) -> int:
    from analysis.gather import gather as gather_cells

    cells = gather_cells(existing(options.store), options.name)
    if options.out:
        cells.to_csv(options.out, index=False)
    else:
        print(cells.to_string())
    return OK


def report(options: argparse.Namespace) -> int:
    store = existing(options.store)
    saved = store.sweep(options.name)
    write_report_of(make_console(), store, saved, options.out or Path("reports") / saved.name)
    return OK


def write_report_of(console: Console, store: Store, saved: SavedSweep, out: Path) -> None:
    from analysis.gather import gather as gather_cells
    from analysis.report import write_report
    from analysis.results import results
    from analysis.tables import render_terminal

    cells = gather_cells(store, saved.name)
    console.print(render_terminal(results(cells)))
    write_report(store, saved.name, out)
    console.print(f"report: {out / 'index.html'}", highlight=False)


def make_console() -> Console:
    from rich.console import Console

    return Console(soft_wrap=not sys.stdout.isatty())


def existing(root: Path) -> Store:
    from sweeps.store import Store, StoreError

    if not (root / "steps").is_dir():
        raise StoreError(f"store = {root}: no store there; set --store or MLKV_STORE")
    return Store(root)
