"""From a plan to finished steps on this machine: run what is missing, watch it, and read the store again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from sweeps.dispatch.grouping import JobSpec, job_specs
from sweeps.planning.config import ClusterConfig
from sweeps.planning.reconcile import Graph, read_states_while_running, to_run
from sweeps.store.store import SavedSweep, Store

MAX_ROUNDS = 3
"""Rounds over the plan. The second and third run again what was interrupted or lost its input; what is still missing
then needs a person."""

POLL_SECONDS = 0.1


class RunningJobs(Protocol):
    """Jobs that were started on this machine."""

    def poll(self) -> None: ...

    @property
    def idle(self) -> bool: ...

    def close(self) -> None: ...


Start = Callable[[list[JobSpec]], RunningJobs]
Watch = Callable[[], None]


def run(
    graph: Graph,
    cluster: ClusterConfig,
    store: Store,
    saved: SavedSweep,
    start: Start,
    watch: Watch,
    retry: bool = False,
) -> set[str]:
    """Run what is missing until every step is done, stopped or failed, or MAX_ROUNDS are over. Returns the ids
    of the steps it tried to run.

    `watch` is called a few times per second; `retry` runs failed steps again, in the first round alone.
    """
    tried: set[str] = set()
    saved.clear_cancel()
    for _ in range(MAX_ROUNDS):
        todo = to_run(graph, read_states_while_running(graph, store, saved.plan.stopped), retry=retry)
        if not todo:
            break
        retry = False
        tried |= {step.id for step in todo}
        running = start(job_specs(todo, cluster))
        try:
            while not running.idle:
                if saved.cancel_requested():
                    return tried
                running.poll()
                watch()
                time.sleep(POLL_SECONDS)
        finally:
            running.close()
    return tried
