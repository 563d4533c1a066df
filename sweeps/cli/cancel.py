"""The subcommand that stops a running sweep, or some of its variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeps.cli.console import make_console
from sweeps.cli.options import SweepOptions, argument
from sweeps.cli.selection import existing, queue_answers, selected
from sweeps.store.errors import OK, StoreError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.store.store import SavedSweep, Store


@dataclass(frozen=True)
class CancelOptions(SweepOptions):
    variants: tuple[str, ...] = argument(
        "on SLURM, only these: labels (globs), step ids or their beginnings", nargs="*"
    )


def cancel(options: CancelOptions) -> int:
    from sweeps.planning.parse import saved_cluster

    store, console = existing(options.store), make_console()
    saved = store.sweep(options.name)
    if saved_cluster(saved).name == "slurm":
        if not options.variants:
            saved.request_cancel()  # whoever drives it from a terminal stops; a job that does is cancelled
        return _cancel_jobs(
            console, steps_to_cancel(store, saved, options.variants), store, saved, driver=not options.variants
        )
    if options.variants:
        raise UserError(f"{options.variants[0]}: sweep {saved.name} runs on this machine and is cancelled as a whole")
    message = _cancel_message(store, saved)
    saved.request_cancel()
    console.print(message, highlight=False)
    return OK


def _cancel_message(store: Store, saved: SavedSweep) -> str:
    """What the request does to a sweep on this machine. The store does not say whether the sweep's command still runs,
    but where every step is done, failed or blocked, nothing is left to stop."""
    from sweeps.cli.view import counts, summary
    from sweeps.planning.reconcile import read_states, saved_graph, to_run
    from sweeps.store.states import StepState

    stops = f"sweep {saved.name} stops now; its running steps save their state first"
    try:
        graph = saved_graph(store, saved)
        states = read_states(graph, store, saved.plan.stopped)
    except (StoreError, OSError):  # a sweep with a damaged file can be cancelled too
        return stops
    if not to_run(graph, states):
        return f"sweep {saved.name} has ended ({summary(counts(graph, states))}): nothing to cancel"
    if all(state.name is not StepState.RUNNING for state in states.values()):
        return f"no step of sweep {saved.name} is running; if its command still runs, it stops now"
    return stops


def steps_to_cancel(store: Store, saved: SavedSweep, wanted: Sequence[str]) -> list[str]:
    """Steps of the wanted variants. Jobs of a variant that a later plan dropped still run, so all plans count. But a
    step that only an earlier plan has may now run for another sweep, and is then left to that sweep."""
    submitted_for = {step: row.sweep for row in store.noted_jobs() for step in row.steps or ()}
    steps = selected(store.plans(saved.name), wanted, alone=True)
    return [id for id in steps if id in saved.plan.steps or submitted_for.get(id) == saved.name]


def _cancel_jobs(console: Console, steps: list[str], store: Store, saved: SavedSweep, *, driver: bool) -> int:
    """driver: the job that drives it ends too, before it can queue more."""
    from sweeps.dispatch import queue_status

    with queue_answers():
        count = queue_status.cancel_driver(saved.name, store) if driver else 0
        count += queue_status.cancel(steps, store)
    if lost := store.unreadable_jobs():
        console.print(f"{lost}; `scancel` ends what they named", style="yellow", highlight=False, markup=False)
    done = f"cancelled {count} jobs of {saved.name}" if count else f"no job of {saved.name} is queued or running"
    console.print(done, highlight=False)
    return OK
