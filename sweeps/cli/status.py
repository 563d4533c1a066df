"""The subcommands that show the state of a sweep: status, why, logs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeps.cli.console import can_redraw, make_console, print_json
from sweeps.cli.guard import Guard
from sweeps.cli.options import ExtensionOptions, JsonOption, StoreOptions, SweepOptions, argument
from sweeps.cli.selection import existing, selected
from sweeps.cli.wandb import addresses
from sweeps.store.errors import NOT_DONE, OK, StoreError, UserError
from sweeps.store.outside import describe_error
from sweeps.store.states import StepState

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.dispatch.queue_status import JobStatus, JobStatuses
    from sweeps.planning.reconcile import Graph, States
    from sweeps.store.stepdir import StepDir
    from sweeps.store.store import SavedSweep, Store

WATCH_SECONDS = 2.0
QUIET_LOOKS = 6
"""Looks at a sweep of which no step runs, before its command is taken to have ended: between two jobs of this machine
no step runs for as long as a Python needs to start."""
FOLLOW_SECONDS = 0.5
JOB_LINES = 5
"""Of a job's output, in `why`."""
ENDED_BADLY = (StepState.FAILED, StepState.LOST, StepState.INTERRUPTED, StepState.CANCELLED)


@dataclass(frozen=True)
class StatusOptions(JsonOption, ExtensionOptions):
    name: str | None = argument("the sweep's name", nargs="?", metavar="NAME")
    verify: bool = argument("read every output, and set corrupt ones aside", "--verify", action="store_true")
    watch: bool = argument("update the table until no step runs or waits", "-w", "--watch", action="store_true")


@dataclass(frozen=True)
class WhyOptions(JsonOption, SweepOptions):
    variant: str = argument("a variant's label, a step id or the beginning of one")


@dataclass(frozen=True)
class LogsOptions(StoreOptions):
    words: tuple[str, ...] = argument(
        "a step id or its beginning; a variant's or a step's label; or a sweep's name and one of these, or `driver`",
        nargs="+",
        metavar="STEP|LABEL",
    )
    follow: bool = argument("print new output until the step ends", "-f", "--follow", action="store_true")


def status(options: StatusOptions) -> int:
    from sweeps.cli import json_output
    from sweeps.cli.view import counts, following, status_table, summary
    from sweeps.planning.reconcile import saved_graph
    from sweeps.steps.registry import outdated_note

    store, console = existing(options.store), make_console(stderr=options.json)
    if options.json and options.watch:
        raise UserError("status: give either --json or --watch")
    if options.name is None:
        return _status_of_all(console, store, options)
    saved = store.sweep(options.name)
    for note in filter(None, [store.sweep_problem(saved.name), store.unreadable_jobs()]):
        console.print(note, style="yellow", highlight=False, markup=False)
    graph = saved_graph(store, saved)
    bad = _verify(console, graph, store) if options.verify else 0
    if options.watch:
        graph, states = _watch(console, graph, saved, store)
        saved = store.sweep(saved.name)  # somebody may have planned more meanwhile
    else:
        states, _ = _states_and_jobs(console, graph, saved, store)
    driver = driver_of(saved, store)
    if options.json:
        print_json({**json_output.of_states(saved.name, graph, states), "driver": driver})
    else:
        console.print(status_table(graph, states))
        console.print(summary(counts(graph, states)), highlight=False)
        if driver:
            console.print(f"driver: {driver}", highlight=False)
        if saved.plan.following:
            console.print(following(saved.plan.following), highlight=False)
    if outdated := outdated_note(graph):
        console.print(outdated, highlight=False)
    for line in addresses(store, saved):
        console.print(line, highlight=False, soft_wrap=True)
    return NOT_DONE if bad or any(state.name is StepState.FAILED for state in states.values()) else OK


def _status_of_all(console: Console, store: Store, options: StatusOptions) -> int:
    """A line per sweep; one that cannot be read says why, and the others go on."""
    from sweeps.cli import json_output
    from sweeps.cli.view import counts, summary
    from sweeps.planning.reconcile import read_states, saved_graph

    worst, sweeps = OK, []
    for folder in store.sweep_folders():
        problem = folder.problem()
        try:
            if folder.numbers():
                saved = folder.read()
                graph = saved_graph(store, saved)
                worst = NOT_DONE if options.verify and _verify(console, graph, store) else worst
                states = read_states(graph, store, saved.plan.stopped)
                sweeps.append({"name": folder.name, "counts": json_output.counts(graph, states)})
                if not options.json:
                    console.print(f"{folder.name}: {summary(counts(graph, states))}", highlight=False)
        except (StoreError, OSError) as error:
            problem = problem or f"sweep {folder.name}: {error}"
        if problem:
            console.print(f"damaged: {problem}", style="red", highlight=False, markup=False)
            worst = NOT_DONE
        if wrong_name := folder.misnamed():
            console.print(wrong_name, highlight=False, markup=False)
    if options.json:
        print_json({"sweeps": sweeps})
    return worst


def _watch(console: Console, graph: Graph, saved: SavedSweep, store: Store) -> tuple[Graph, States]:
    """Show the states of steps until none runs or waits in the queue, nor has for some time where some are left to run;
    on a pipe, a line whenever something changed."""
    import time

    from rich.live import Live

    from sweeps.cli.view import counts, summary, watch_view
    from sweeps.planning.reconcile import saved_graph, to_run

    before, quiet_looks = "", 0
    guard = Guard(lambda line: console.print(f"the live view: {line}", style="yellow", highlight=False))
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            if (saved.plan.driven or saved.plan.following) and (
                newest := store.sweep(saved.name)
            ).number != saved.number:
                saved, graph = newest, saved_graph(store, newest)
            states, jobs = _states_and_jobs(console, graph, saved, store)
            shown = summary(counts(graph, states))
            if can_redraw(console):
                with guard():
                    live.update(watch_view(graph, states, console), refresh=True)
            elif shown != before:
                console.print(shown, highlight=False)
            before = shown
            running = any(state.name is StepState.RUNNING for state in states.values())
            running = running or _decides_more(saved, store)
            quiet_looks = 0 if running or any(job.live for job in jobs.values()) else quiet_looks + 1
            ended = not to_run(graph, states) and not saved.plan.following
            if quiet_looks and (ended or quiet_looks >= QUIET_LOOKS):
                return graph, states
            time.sleep(WATCH_SECONDS)


def _states_and_jobs(console: Console, graph: Graph, saved: SavedSweep, store: Store) -> tuple[States, JobStatuses]:
    """The states of steps by the store and, on SLURM, by the queue; by the store alone if the queue does not answer."""
    from sweeps.planning.parse import saved_cluster
    from sweeps.planning.reconcile import read_states

    states = read_states(graph, store, saved.plan.stopped)
    if saved_cluster(saved).name != "slurm":
        return states, {}
    from sweeps.dispatch.queue_status import QueueError, with_queue

    try:
        return with_queue(states, store)
    except QueueError as error:
        console.print(f"the queue does not answer ({error}): what waits or is lost is not known", highlight=False)
        return states, {}


def driver_of(saved: SavedSweep, store: Store) -> str | None:
    """Who decides what a sweep runs next, in words; None where all that it has is queued already, or nobody does."""
    from sweeps.planning.parse import saved_cluster

    process = store.journal(saved.name).driver()
    if saved_cluster(saved).name != "slurm":
        return process
    from sweeps.dispatch.queue_status import QueueError, driver_job

    with suppress(QueueError):  # whose states say so
        job = driver_job(saved.name, store)
        if job and job.live:
            return ", ".join(filter(None, [str(job), process]))
        if job and process is None and not job.forgotten and not job.state.ok:
            return str(job)
    return process


def _decides_more(saved: SavedSweep, store: Store) -> bool:
    """Whether somebody is there who decides what a sweep runs next."""
    from sweeps.planning.parse import saved_cluster

    if not (saved.plan.driven or saved.plan.following):
        return False
    if saved_cluster(saved).name == "slurm":
        from sweeps.dispatch.queue_status import QueueError, driver_job

        with suppress(QueueError):
            if (job := driver_job(saved.name, store)) and job.live:
                return True
    return store.journal(saved.name).driver() is not None


def _verify(console: Console, graph: Graph, store: Store) -> int:
    from rich.progress import track
    from rich.text import Text

    from sweeps.steps.verify import cannot_be_checked, edited

    bad, unchecked = 0, Counter[str]()
    for step in track([store.step(id) for id in graph], "reading outputs", console=console, transient=True):
        try:
            wrong = step.corrupted() or edited(step)
        except OSError as error:
            console.print(f"{step.id}: cannot be checked ({describe_error(error)})", highlight=False, markup=False)
            bad += 1
            continue
        if wrong:
            console.print(Text.assemble(("corrupt", "red"), f" {step.id}: {wrong}; {_set_aside(step, wrong)}"))
            bad += 1
        elif cannot_be_checked(step):
            unchecked[step.kind] += 1
        if lost := sum(attempt.skipped_rows() for attempt in step.attempts()):
            console.print(f"{step.id}: {lost} lines of metrics.jsonl are no JSON and were skipped", highlight=False)
    if unchecked:
        kinds = ", ".join(f"{count} {kind}" for kind, count in unchecked.items())
        console.print(f"numbers not checked, as earlier code put no seal on their records: {kinds}", highlight=False)
    return bad


def _set_aside(step: StepDir, wrong: str) -> str:
    """What became of it; a store may be one that can only be read."""
    try:
        step.set_aside(wrong)
    except OSError as error:
        return f"could not be set aside ({describe_error(error)})"
    return "set aside, `mlkv sweep` runs it again"


def why(options: WhyOptions) -> int:
    from sweeps.cli import json_output
    from sweeps.cli.view import reason_of
    from sweeps.planning.reconcile import blockers, saved_graph

    store, console = existing(options.store), make_console(stderr=options.json)
    saved = store.sweep(options.name)
    chosen = selected([saved], [options.variant])
    graph = saved_graph(store, saved)
    states, jobs = _states_and_jobs(console, graph, saved, store)
    if options.json:

        def log_of(id: str) -> list[str]:
            return _tail(store.step(id), jobs.get(id)) if states[id].name in ENDED_BADLY else []

        print_json(
            json_output.of_variant(saved.name, graph, states, chosen, log_of, lambda id: remarks(store.step(id)))
        )
        return OK
    blocked = blockers(graph, states)
    for id in chosen:
        if (state := states[id]).name is StepState.DONE:
            if reason := "; ".join(filter(None, [state.reason, *remarks(store.step(id))])):
                console.print(f"{id} {graph[id].label}: {state.name} {reason}", highlight=False)
            continue
        name, reason = state.name, reason_of(id, graph, states)
        if id in blocked:
            name, reason = StepState.BLOCKED, f"waits for {blocked[id]}, which failed"
        console.print(f"{id} {graph[id].label}: {name} {reason}", highlight=False)
        if state.name in ENDED_BADLY:
            for line in _tail(store.step(id), jobs.get(id)):
                console.print(f"    {line}", style="dim", highlight=False, markup=False)
    if all(states[id].name is StepState.DONE for id in chosen):
        console.print("all done")
    elif any(states[id].name is StepState.PENDING for id in chosen) and (driver := driver_of(saved, store)):
        console.print(f"driver: {driver}", highlight=False)
    return OK


def remarks(step: StepDir) -> list[str]:
    """What its kind says of a finished step's numbers, signatures last."""
    from sweeps.steps.registry import kind_of

    record = step.record()
    if record is None:
        return []
    kind = kind_of(record.kind)
    lines = [each.line for each in kind.signatures(record.metrics, record.facts)]
    return [*filter(None, [kind.remark(record.metrics)]), *lines]


def _tail(step: StepDir, job: JobStatus | None) -> list[str]:
    """The last lines of the attempt, then where SLURM's own words on the job are, and the last of those."""
    attempt = step.attempt()
    lines = list(attempt.log_tail()) if attempt else []
    if job and job.output and job.output.exists():
        printed = job.output.read_text(encoding="utf-8", errors="replace").splitlines()
        lines += [f"{job.output}:", *printed[-JOB_LINES:]]
    return lines


def logs(options: LogsOptions) -> int:
    import time

    from sweeps.cli.logs import DRIVER, LogReader, print_driver_log

    store = existing(options.store)
    if options.words[1:] == (DRIVER,):
        return print_driver_log(store, store.sweep(options.words[0]).name, options.follow)
    steps = _steps_with_logs(store, options.words)
    readers = [LogReader(step, label if len(steps) > 1 else "") for step, label in steps]
    while True:
        for reader in readers:
            sys.stdout.write(reader.new_text())
        sys.stdout.flush()
        if not options.follow or not any(_goes_on(step) for step, _label in steps):
            break
        time.sleep(FOLLOW_SECONDS)
    for reader in readers:
        sys.stdout.write(reader.ending())
    return OK


def _goes_on(step: StepDir) -> bool:
    return step.state().name in (StepState.RUNNING, StepState.PENDING, StepState.INTERRUPTED)


def _steps_with_logs(store: Store, words: Sequence[str]) -> list[tuple[StepDir, str]]:
    """The steps that were started, with their labels, of those that the words name: a step id or the beginning of one;
    a label, where one sweep has it; or a sweep and a label of it. Raises UserError."""
    if len(words) > 2:
        raise UserError(f"{' '.join(words)}: must be a step id, a label, or a sweep and a label")
    labels: dict[str, str] = {}
    if len(words) == 1 and any(step.id.startswith(words[0]) for step in store.steps()):
        ids = [store.find(words[0]).id]
    else:
        sweep = store.sweep(words[0]) if len(words) == 2 else _sweep_with(store, words[0])
        ids = selected([sweep], words[-1:])
        labels = {id: f"{id} {sweep.plan.steps[id].label}" for id in ids}
    started = [(step, labels.get(step.id, step.id)) for step in map(store.step, ids) if step.attempt()]
    if not started:
        raise UserError(f"{ids[0] if len(ids) == 1 else words[-1]}: was never started")
    return started


def _sweep_with(store: Store, label: str) -> SavedSweep:
    """The sweep that has variants or steps of this label. Raises UserError where none or several have."""
    names = []
    for name in store.sweep_names():
        with suppress(UserError, OSError):  # it has none, or it is damaged
            if selected([store.sweep(name)], [label]):
                names.append(name)
    if not names and label in store.sweep_names():
        raise UserError(f"{label}: is a sweep; name a label or a step of it too (`mlkv status {label}` lists them)")
    if not names:
        raise UserError(f"{label}: no step id begins so, and no sweep in {store.root} has such a label")
    if len(names) > 1:
        raise UserError(f"{label}: is in the sweeps {', '.join(names)}; name one: `mlkv logs {names[0]} '{label}'`")
    return store.sweep(names[0])
