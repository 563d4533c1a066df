"""The `mlkv` command. Imports what a subcommand needs when it runs: `mlkv --help` loads neither Hydra nor torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from slurm.local import LocalExecutor
    from sweeps.config import ClusterConfig
    from sweeps.jobs import PlannedJob
    from sweeps.plan import Plan
    from sweeps.reconcile import Graph
    from sweeps.store import SavedSweep, StepDir, Store

OK, SOMETHING_FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        from sweeps.completion import enable

        enable(parser)
    options = _parse(parser, arguments)
    try:
        sys.exit(options.run(options))
    except ValueError as error:
        if not _is_users(error):
            raise
        print(f"mlkv: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        print("mlkv: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Like parse_args, but options may stand between overrides."""
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _is_users(error: ValueError) -> bool:
    from sweeps.store import StoreError

    return isinstance(error, UserError | StoreError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlkv",
        description="How few key-value heads can a transformer live with, and where should they sit?",
        epilog="Overrides are Hydra's: experiment=quickstart layout.kv_layers=1,2,3 uptrain.lr=1e-3 name=mine",
    )
    commands = parser.add_subparsers(title="commands", metavar="", required=True)
    _with_overrides(commands, "sweep", sweep, "plan a sweep, run what is missing, draw its results")
    _with_overrides(commands, "plan", plan, "show what a sweep consists of and what is missing; touch nothing")
    one = _command(commands, "run", run, "run one step in the foreground")
    one.add_argument("target", help="a kind (the plan's only missing step of it) or a step id", metavar="KIND|STEP")
    _add_overrides(one)
    state = _of_sweep(commands, "status", status, "where the steps of a sweep stand", optional=True)
    state.add_argument("--verify", action="store_true", help="read every output and set aside what is corrupt")
    of_variant = _of_sweep(commands, "why", why, "what a variant waits for, or why it failed")
    of_variant.add_argument("variant", help="a variant's label, a step id or the beginning of one")
    log = _with_store(commands, "logs", logs, "what a step printed")
    log.add_argument("step", help="a step id or the beginning of one")
    log.add_argument("-f", "--follow", action="store_true", help="go on until the step ends")
    _of_sweep(commands, "retry", retry, "run the failed steps of a sweep and what descends from them")
    _of_sweep(commands, "cancel", cancel, "stop a running sweep; what runs saves its state first")
    table = _of_sweep(commands, "gather", gather, "every planned cell of a sweep as one long table")
    table.add_argument("-o", "--out", type=Path, help="write CSV here instead of printing a summary")
    written = _of_sweep(commands, "report", report, "tables, figures and the page of a sweep, finished or not")
    written.add_argument("-o", "--out", type=Path, help="directory (default: reports/NAME)")
    return parser


Command = Callable[[argparse.Namespace], int]


def _command(commands: Any, name: str, function: Command, help: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(run=function)
    return parser


def _with_overrides(commands: Any, name: str, function: Command, help: str) -> argparse.ArgumentParser:
    parser = _command(commands, name, function, help)
    _add_overrides(parser)
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", help="Hydra overrides", metavar="KEY=VALUE")
    parser.add_argument("--config-dir", type=Path, help="a directory of your own configurations, shaped like conf/")
    _add_store(parser)


def _add_store(parser: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get("MLKV_STORE", "store"))
    parser.add_argument("--store", type=Path, default=default, help="default: MLKV_STORE or ./store")


def _with_store(commands: Any, name: str, function: Command, help: str) -> argparse.ArgumentParser:
    parser = _command(commands, name, function, help)
    _add_store(parser)
    return parser


def _of_sweep(
    commands: Any, name: str, function: Command, help: str, optional: bool = False
) -> argparse.ArgumentParser:
    parser = _with_store(commands, name, function, help)
    parser.add_argument("name", nargs="?" if optional else None, help="the sweep's name", metavar="NAME")
    return parser


# Commands


def sweep(options: argparse.Namespace) -> int:
    from sweeps.launch import freeze

    console = _console()
    planned, store = _plan(options)
    saved = freeze(planned, store, options.overrides)
    _show_plan(console, planned, store)
    failed = _run_graph(console, planned.steps, planned.config.cluster, store, saved)
    _report(console, store, saved, Path(planned.config.reports) / planned.name)
    return SOMETHING_FAILED if failed else OK


def plan(options: argparse.Namespace) -> int:
    planned, store = _plan(options, write=False)
    _show_plan(_console(), planned, store)
    return OK


def run(options: argparse.Namespace) -> int:
    from sweeps.launch import freeze
    from sweeps.worker import Worker

    if "-" in options.target:
        store = _existing(options.store)
        return Worker(store).run([store.find(options.target).id])
    planned, store = _plan(options)
    missing = [id for id, step in planned.steps.items() if step.kind == options.target and not store.step(id).record()]
    if len(missing) != 1:
        known = ", ".join(dict.fromkeys(step.kind for step in planned.steps.values()))
        raise UserError(
            f"{options.target}: the plan misses {len(missing)} steps of this kind, run takes one (kinds: {known})"
        )
    freeze(planned, store, options.overrides)
    return Worker(store).run(missing)


def status(options: argparse.Namespace) -> int:
    from sweeps.reconcile import saved_graph, standing
    from sweeps.view import counts, status_table, summary

    store, console = _existing(options.store), _console()
    if options.name is None:
        for name in store.sweep_names():
            graph = saved_graph(store, store.sweep(name))
            console.print(f"{name}: {summary(counts(graph, standing(graph, store)))}", highlight=False)
        return OK
    graph = saved_graph(store, store.sweep(options.name))
    bad = _verify(console, graph, store) if options.verify else 0
    states = standing(graph, store)
    console.print(status_table(graph, states))
    console.print(summary(counts(graph, states)), highlight=False)
    return SOMETHING_FAILED if bad or any(state.name == "FAILED" for state in states.values()) else OK


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

    store, console = _existing(options.store), _console()
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

    step = _existing(options.store).find(options.step)
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


def retry(options: argparse.Namespace) -> int:
    from sweeps.config import parse_cluster
    from sweeps.reconcile import saved_graph

    store, console = _existing(options.store), _console()
    saved = store.sweep(options.name)
    cluster = parse_cluster(saved.plan["cluster"])
    failed = _run_graph(console, saved_graph(store, saved), cluster, store, saved, retry=True)
    return SOMETHING_FAILED if failed else OK


def cancel(options: argparse.Namespace) -> int:
    saved = _existing(options.store).sweep(options.name)
    saved.request_cancel()
    _console().print(f"asked the launcher of {saved.name} to stop")
    return OK


def gather(options: argparse.Namespace) -> int:
    from analysis.gather import gather as gather_cells

    cells = gather_cells(_existing(options.store), options.name)
    if options.out:
        cells.to_csv(options.out, index=False)
    else:
        print(cells.to_string())
    return OK


def report(options: argparse.Namespace) -> int:
    store = _existing(options.store)
    saved = store.sweep(options.name)
    _report(_console(), store, saved, options.out or Path("reports") / saved.name)
    return OK


# What they share


def _console() -> Console:
    from rich.console import Console

    return Console(soft_wrap=not sys.stdout.isatty())


def _existing(root: Path) -> Store:
    from sweeps.store import Store, StoreError

    if not (root / "steps").is_dir():
        raise StoreError(f"store = {root}: no store there; set --store or MLKV_STORE")
    return Store(root)


def _plan(options: argparse.Namespace, write: bool = True) -> tuple[Plan, Store]:
    from sweeps.compose import Composer
    from sweeps.plan import make_plan
    from sweeps.resolve import Resolver
    from sweeps.store import Store

    composer = Composer(options.config_dir)
    store = Store.open(options.store) if write else Store(options.store)
    return make_plan(composer, Resolver(store), options.overrides), store


def _show_plan(console: Console, planned: Plan, store: Store) -> None:
    from sweeps.reconcile import Costs, standing
    from sweeps.view import plan_tables

    console.print(plan_tables(planned, standing(planned.steps, store), Costs.of_store(store)))


def _run_graph(
    console: Console, graph: Graph, cluster: ClusterConfig, store: Store, saved: SavedSweep, *, retry: bool = False
) -> bool:
    """Run what is missing with a live view; true if something is not done in the end."""
    from slurm.local import LocalExecutor
    from sweeps import launch
    from sweeps.reconcile import standing
    from sweeps.view import Progress, counts, summary

    def start(jobs: list[PlannedJob]) -> LocalExecutor:
        executor = LocalExecutor(saved.submissions, slots=cluster.slots, env=_job_environment(store))
        executor.submit([_job(store, job) for job in jobs])
        return executor

    with Progress(console, graph, store, cluster.slots or 1) as progress:
        launch.run(graph, cluster, store, saved, start, progress, retry)
    counted = counts(graph, standing(graph, store))
    console.print(summary(counted), highlight=False)
    return set(counted) != {"DONE"}


def _job(store: Store, planned: PlannedJob) -> Any:
    from dataclasses import asdict

    from slurm.jobs import Job, Resources

    argv = (sys.executable, "-m", "sweeps.worker", str(store.root), *planned.steps)
    return Job(planned.name, argv, Resources(**asdict(planned.resources)), planned.after, planned.kind)


def _job_environment(store: Store) -> dict[str, str]:
    """Jobs import the code as it is now, wherever they start and whatever is edited meanwhile."""
    paths = [str(store.snapshot_code()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _report(console: Console, store: Store, saved: SavedSweep, out: Path) -> None:
    from analysis.gather import gather as gather_cells
    from analysis.report import write_report
    from analysis.results import results
    from analysis.tables import render_terminal

    cells = gather_cells(store, saved.name)
    console.print(render_terminal(results(cells)))
    write_report(store, saved.name, out)
    console.print(f"report: {out / 'index.html'}", highlight=False)


if __name__ == "__main__":
    main()
