"""From a plan to finished steps on this machine: freeze, run what is missing, watch, and look again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from sweeps.dispatch.grouping import PlannedJob, planned_jobs
from sweeps.planning.config import ClusterConfig
from sweeps.planning.reconcile import Graph, standing, to_run
from sweeps.store.store import SavedSweep, Store

ROUNDS = 3
"""How often what was interrupted, or lost its input, is taken up again before the user is asked."""


class Running(Protocol):
    """Jobs that were started and the machine they run on."""

    def poll(self) -> None: ...

    @property
    def idle(self) -> bool: ...

    def close(self) -> None: ...


Start = Callable[[list[PlannedJob]], Running]
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
    """Run what is missing until all is done, failed, or nothing more comes of trying; the steps it took up."""
    begun: set[str] = set()
    saved.clear_cancel()
    for _ in range(ROUNDS):
        todo = to_run(graph, standing(graph, store), retry=retry)
        if not todo:
            break
        retry = False
        begun |= {step.id for step in todo}
        running = start(planned_jobs(todo, cluster))
        try:
            while not running.idle:
                if saved.cancel_requested():
                    return begun
                running.poll()
                watch()
                time.sleep(0.2)
        finally:
            running.close()
    return begun
