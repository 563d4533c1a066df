"""What a sweep with layouts by rule does before its layouts are known: it runs what the rules read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweeps.cli.run import queue_up, run_graph, show_plan
from sweeps.cli.search import command_line
from sweeps.cli.selection import queue_answers
from sweeps.store.errors import NOT_DONE, OK

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.cli.options import PlanOptions
    from sweeps.planning.plan import Plan
    from sweeps.store.store import Store

GOES_ON = "the layouts are not known yet: the same line goes on when what their rules read is done"


def run_inputs(console: Console, planned: Plan, store: Store, options: PlanOptions) -> int:
    """Run the steps that rules read; on SLURM, queue them, and a job behind them that runs the same line again."""
    from sweeps.planning.freeze import freeze

    saved, cluster = freeze(planned, store, list(options.overrides)), planned.config.cluster
    show_plan(console, planned, store)
    if cluster.name == "slurm":
        from sweeps.worker.fetch import fetch_inputs

        # The job that plans the layouts sees no internet either.
        if cluster.offline and not fetch_inputs(planned.with_expected, store, console):
            return NOT_DONE
        status = queue_up(console, planned.steps, cluster, store, saved)
        return status or _queue_planning(console, planned, store, options)
    failed = run_graph(console, planned.steps, cluster, store, saved)
    if failed:
        console.print(GOES_ON, highlight=False)
    return NOT_DONE if failed else OK


def _queue_planning(console: Console, planned: Plan, store: Store, options: PlanOptions) -> int:
    from sweeps.dispatch.queue_status import JobStatus, latest_jobs
    from sweeps.dispatch.search_job import submit_driver

    with queue_answers():
        jobs = latest_jobs(planned.steps, store).values()
    live = {job.id for job in jobs if job.live and job.id}
    if not live:  # what is left has failed
        console.print(GOES_ON, highlight=False)
        return NOT_DONE
    line = command_line("sweep", store, options)
    job = submit_driver(planned.name, line, planned.config.cluster, store, live)
    which = f"{job} plans the layouts already" if isinstance(job, JobStatus) else f"job {job} plans the layouts"
    console.print(
        f"{which} when these have ended; `mlkv logs {planned.name} driver` shows what it did", highlight=False
    )
    return OK
