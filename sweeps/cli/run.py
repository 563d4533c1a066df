"""The subcommands that plan and run: sweep, plan, fetch, run, retry."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.cli.console import make_console, print_json
from sweeps.cli.guard import Guard
from sweeps.cli.options import JsonOption, PlanOptions, SweepOptions, argument
from sweeps.cli.results import report_modules, write_report_of
from sweeps.cli.selection import existing
from sweeps.cli.wandb import Announcement, addresses, mirror_sweep, track
from sweeps.store.errors import NOT_DONE, OK, UserError, choices

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.cli.search import DrivenOptions
    from sweeps.dispatch.grouping import JobSpec
    from sweeps.planning.config import ClusterConfig
    from sweeps.planning.plan import Plan
    from sweeps.planning.reconcile import Graph
    from sweeps.store.store import SavedSweep, Store


@dataclass(frozen=True)
class _Target:
    target: str = argument("a kind (the plan's only missing step of it) or a step id", metavar="KIND|STEP")


@dataclass(frozen=True)
class RunOptions(PlanOptions, _Target):
    """The target is read before the overrides: a dataclass takes the fields of its last base first."""


@dataclass(frozen=True)
class ShowOptions(JsonOption, PlanOptions):
    """Of `plan`, which only shows one."""


def sweep(options: DrivenOptions) -> int:
    from sweeps.cli.rules import run_inputs
    from sweeps.planning.freeze import freeze

    console = make_console()
    planned, store = _plan(options)
    while planned.following:
        if status := run_inputs(console, planned, store, options):
            return status
        if planned.config.cluster.name == "slurm":
            return OK
        planned, store = _plan(options)
    if planned.config.stopping.active:
        from sweeps.cli.search import driven_sweep

        return driven_sweep(console, store, planned, options)
    saved = freeze(planned, store, list(options.overrides))
    is_done = show_plan(console, planned, store, what_is_done=False)
    if planned.config.cluster.name == "slurm":
        return queue_up(console, planned.steps, planned.config.cluster, store, saved)
    if is_done:
        Announcement(console, store, saved)(now=True)
    graph, cluster = planned.steps, planned.config.cluster
    failed = not is_done and run_graph(console, graph, cluster, store, saved, later=report_modules())
    mirror(console, store, saved)
    drawn = draw_results(console, store, saved, Path(planned.config.reports) / planned.name)
    return NOT_DONE if failed or not drawn else OK


def draw_results(console: Console, store: Store, saved: SavedSweep, out: Path) -> bool:
    """The table and the report of a sweep that has ended; false where they cannot be drawn. The results are in the
    store whether they are or not."""
    advice = f"the results are in the store; `mlkv report {saved.name}` draws it again"
    guard = Guard(lambda line: print(f"mlkv: the report cannot be written ({line}); {advice}", file=sys.stderr))
    with guard():
        write_report_of(console, store, saved, out, again=False)
    return not guard.failed


def mirror(console: Console, store: Store, saved: SavedSweep, *, done: bool = False) -> None:
    """Copy a sweep to W&B; where that fails, nothing else does."""
    advice = f"`mlkv sync {saved.name}` copies it again"
    with Guard(lambda line: print(f"mlkv: W&B: {line}; {advice}", file=sys.stderr))():
        mirror_sweep(console, store, saved, done)


def plan(options: ShowOptions) -> int:
    from sweeps.cli.power import planned_power, power_lines

    planned, store = _plan(options, write=False)
    if options.json:
        _print_plan(planned, store)
        return OK
    console = make_console()
    show_plan(console, planned, store)
    for line in power_lines(planned_power(planned, store)):
        console.print(line, highlight=False)
    if planned.config.cluster.name == "slurm":
        _show_forecast(console, planned, store)
    return OK


def _print_plan(planned: Plan, store: Store) -> None:
    from sweeps.cli import json_output, power
    from sweeps.planning.reconcile import Costs, read_states

    states = read_states(planned.steps, store, planned.stopped)
    values = json_output.of_plan(planned, states, Costs.of_store(store))
    print_json({**values, "power": [power.as_json(each) for each in power.planned_power(planned, store)]})


def _show_forecast(console: Console, planned: Plan, store: Store) -> None:
    from sweeps.cli.view import forecast_lines
    from sweeps.dispatch import submit
    from sweeps.planning.reconcile import read_states, to_run

    missing = to_run(planned.steps, read_states(planned.steps, store, planned.stopped))
    for line in forecast_lines(submit.forecast(missing, planned.config.cluster, store)):
        console.print(line, highlight=False)


def fetch(options: PlanOptions) -> int:
    from sweeps.planning.freeze import freeze
    from sweeps.worker.fetch import fetch_inputs

    planned, store = _plan(options)
    freeze(planned, store, list(options.overrides))
    return OK if fetch_inputs(planned.with_expected, store, make_console()) else NOT_DONE


def run(options: RunOptions) -> int:
    from sweeps.planning.freeze import freeze
    from sweeps.worker.supervisor import Worker

    if "-" in options.target:
        store = existing(options.store)
        step = store.find(options.target).id
        saved = store.planning(step)
        if saved:
            _refuse_unpacked(saved)
        track(saved)
        return Worker(store).run([step])
    planned, store = _plan(options)
    step = _only_missing(options.target, planned, store)
    track(freeze(planned, store, list(options.overrides)))
    return Worker(store).run([step])


def _refuse_unpacked(saved: SavedSweep) -> None:
    """Raises UserError for a plan of somebody else: their files lay elsewhere, and packs tell of no paths."""
    if origin := saved.origin():
        raise UserError(
            f"sweep {saved.name}: its plan was unpacked ({origin.words}) and knows no files of this machine; run its "
            "line here, which repeats nothing that is done"
        )


def _only_missing(kind: str, planned: Plan, store: Store) -> str:
    """The plan's only unfinished step of a kind. Raises UserError for an unknown kind, and where none or several are
    unfinished."""
    steps = [id for id, step in planned.steps.items() if step.kind == kind]
    if not steps:
        kinds = dict.fromkeys(step.kind for step in planned.steps.values())
        raise UserError(f"{kind}: the plan has no steps of this kind; {choices(kind, kinds)}")
    missing = [id for id in steps if not store.step(id).record()]
    if not missing:
        raise UserError(f"{kind}: all {len(steps)} steps of this kind are done")
    if len(missing) > 1:
        raise UserError(f"{kind}: {len(missing)} steps of this kind are not done, and run takes one; give a step id")
    return missing[0]


def retry(options: SweepOptions) -> int:
    from sweeps.planning.parse import saved_cluster
    from sweeps.planning.reconcile import refuse_outdated, saved_graph

    store, console = existing(options.store), make_console()
    saved = store.sweep(options.name)
    _refuse_unpacked(saved)
    cluster, graph = saved_cluster(saved), saved_graph(store, saved)
    refuse_outdated(graph, store)
    if saved.plan.driven:
        saved = _without_undecided(console, store, saved, graph)
    if cluster.name == "slurm":
        return queue_up(console, graph, cluster, store, saved, retry=True)
    failed = run_graph(console, graph, cluster, store, saved, retry=True)
    mirror(console, store, saved)
    return NOT_DONE if failed else OK


def _without_undecided(console: Console, store: Store, saved: SavedSweep, graph: Graph) -> SavedSweep:
    """The plan where what its driver has not begun counts as stopped: whether it is run is for the driver to decide.
    Raises UserError where somebody drives it now."""
    from sweeps.planning.reconcile import read_states, undecided

    if driver := store.journal(saved.name).driver():
        raise UserError(f"sweep {saved.name}: {driver} drives it; `mlkv cancel {saved.name}` ends that")
    left = undecided(graph, read_states(graph, store, saved.plan.stopped))
    if left:
        note = f"{len(left)} steps were not begun by its driver, and stay so: the sweep's line again goes on with them"
        console.print(note, highlight=False)
    return replace(saved, plan=replace(saved.plan, stopped={**left, **(saved.plan.stopped or {})}))


def _plan(options: PlanOptions, write: bool = True) -> tuple[Plan, Store]:
    from sweeps.planning.compose import Composer
    from sweeps.planning.plan import make_plan
    from sweeps.planning.resolve import Resolver
    from sweeps.store.store import Store

    composer = Composer(options.config_dir)
    store = Store.open(options.store) if write else Store(options.store)
    planned = make_plan(composer, Resolver(store, only_shown=not write), options.overrides)
    store.check_sweep_name(planned.name)
    return planned, store


def show_plan(console: Console, planned: Plan, store: Store, *, what_is_done: bool = True) -> bool:
    """Its variants, and what their steps will take; returns whether all is done. Without `what_is_done` little is said
    where all is: the results that a sweep ends with have a row for each variant too."""
    from sweeps.cli.view import finished_plan, plan_tables
    from sweeps.planning.reconcile import Costs, other_code, read_states, replaced
    from sweeps.store.states import NOTHING_LEFT

    states = read_states(planned.steps, store, planned.stopped)
    is_done = all(state.name in NOTHING_LEFT for state in states.values())
    if what_is_done or not is_done:
        console.print(plan_tables(planned, states, Costs.of_store(store)))
    else:
        console.print(finished_plan(planned, states))
    for note in planned.overruled:
        console.print(note, style="yellow", highlight=False, markup=False)
    if planned.unresolved:
        note = f"the hub is out of reach: {', '.join(planned.unresolved)} as known here; a sweep needs the commits"
        console.print(note, style="yellow", highlight=False)
    if stale := replaced(planned.steps, store):
        reasons = "; ".join(dict.fromkeys(stale.values()))
        console.print(f"{len(stale)} finished steps are stale and run again ({reasons})", highlight=False)
    code = other_code(planned.steps, store)
    for steps, which in ((code.differs, "code"), (code.unknown, "earlier code")):
        if steps:
            note = f"{len(steps)} finished steps were made by {which} that may give other results than the code here"
            console.print(note, style="dim", highlight=False)
    return is_done


def run_graph(
    console: Console,
    graph: Graph,
    cluster: ClusterConfig,
    store: Store,
    saved: SavedSweep,
    *,
    retry: bool = False,
    later: Sequence[str] = (),
) -> bool:
    """Run what is missing with a live view; true if something is not done in the end. later: what the command imports
    when it has run, which it does here while it waits."""
    from sweeps.cli.progress import Progress
    from sweeps.dispatch import local_loop
    from sweeps.steps.registry import kind_of
    from sweeps.worker.imports import import_modules

    waiting: list[str] = []

    def start(jobs: list[JobSpec]) -> local_loop.RunningJobs:
        from sweeps.dispatch import submit  # with all of slurm, which a finished sweep does without

        started = submit.start_local(jobs, cluster, store, saved)
        kinds = {store.step(id).kind for job in jobs for id in job.steps}
        # Nothing is to be imported beside a measurement.
        waiting[:] = [] if any(kind_of(kind).fresh_process for kind in kinds) else later
        return started

    announce = Announcement(console, store, saved)
    announce(now=True)
    with Progress(console, graph, store, cluster.slots or 1, saved.plan.stopped) as progress:

        def watch() -> None:
            progress()
            announce()
            if waiting:  # one each time: a job that ends is not to be seen late
                import_modules([waiting.pop(0)])

        local_loop.run(graph, cluster, store, saved, start, watch, retry)
    return print_end(console, graph, store, saved)


def print_end(console: Console, graph: Graph, store: Store, saved: SavedSweep) -> bool:
    """Say how the steps of a sweep ended; true if something is neither done nor stopped."""
    from sweeps.cli.view import advice, counts, endings, summary
    from sweeps.planning.reconcile import read_states_while_running
    from sweeps.store.states import NOTHING_LEFT

    states = read_states_while_running(graph, store, saved.plan.stopped)
    for line in endings(graph, states):
        console.print(line, style="red", highlight=False, markup=False)
    counted = counts(graph, states)
    console.print(summary(counted), highlight=False)
    if line := advice(counted, saved.name):
        console.print(line, highlight=False)
    return not set(counted) <= set(NOTHING_LEFT)


def queue_up(
    console: Console, graph: Graph, cluster: ClusterConfig, store: Store, saved: SavedSweep, *, retry: bool = False
) -> int:
    """Submit what is missing to SLURM and leave."""
    from sweeps.cli.view import advice, counts
    from sweeps.dispatch import submit
    from sweeps.planning.reconcile import read_states, to_run
    from sweeps.worker.fetch import fetch_inputs

    if cluster.offline and not fetch_inputs(graph, store, console):
        return NOT_DONE
    states = read_states(graph, store, saved.plan.stopped)
    submitted = submit.submit(to_run(graph, states, retry=retry), cluster, store, saved)
    for note in submitted.notes:
        console.print(note, style="yellow", highlight=False, markup=False)
    mirror(console, store, saved, done=True)
    jobs = len(submitted.jobs)
    console.print(f"{jobs} jobs submitted; `mlkv status {saved.name}` shows them", highlight=False)
    for line in addresses(store, saved):
        console.print(line, highlight=False, soft_wrap=True)
    if submitted.left:
        console.print(submitted.left, style="yellow", highlight=False, markup=False)
        return NOT_DONE
    if not retry and (line := advice(counts(graph, states), saved.name)):
        console.print(line, highlight=False)
    return OK
