"""The runs of a sweep's variants. The job that ends a step writes the runs of the variants that the step belongs to.

There is no lock: several jobs may write one run at once. Each reads the store again after it has written, and writes
again where the store has changed. So the job that writes last has seen the last step end, and the run ends as the store
has it.
"""

from __future__ import annotations

from sweeps.store.states import StepState
from sweeps.store.store import SavedSweep, Store
from sweeps.tracking.runs import Run, SweepRuns, step_state
from sweeps.tracking.target import Target

MAX_SHARED_VARIANTS = 4
"""A step that more variants share (corpus, base) does not write their runs, unless it ends them (by failing): the next
step of each variant does it. Else one step of a large sweep would write a hundred runs."""
MAX_REWRITES = 5
"""How often a run is written, at most, because its steps went on meanwhile."""


class VariantRuns:
    """The runs of variants that this process has to write."""

    def __init__(self, store: Store, target: Target) -> None:
        self._store, self._target = store, target
        self._sweep: SavedSweep | None = store.sweep(target.sweep) if target.sweep else None
        self._waiting: dict[str, None] = {}
        self._written: dict[str, str] = {}

    def ended(self, step: str) -> None:
        """Note which runs a step's end changes. An interrupted step changes none: it goes on in another job, and this
        one may have little time left."""
        if not self._sweep or step_state(self._store.step(step))[0] == StepState.INTERRUPTED:
            return
        planned = self._sweep.plan.steps.get(step)
        labels = planned.variants if planned else []
        runs = SweepRuns(self._store, self._sweep)
        changed = [label for label in labels if len(labels) <= MAX_SHARED_VARIANTS or runs.variant(label).finished]
        self._waiting |= dict.fromkeys(changed)

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def forget(self) -> None:
        """Leave the waiting runs to the next step that ends, or to `mlkv sync`."""
        self._waiting.clear()

    def write_next(self) -> None:
        """Write the run that has waited longest, again until it is as the store has it. Raises MirrorError."""
        from sweeps.tracking.mirror import write

        label = next(iter(self._waiting))
        for _ in range(MAX_REWRITES):
            run = self._run(label)
            if self._written.get(label) == run.fingerprint:
                break
            write(run, self._target.config, self._store.tracking(self._target.sweep))
            self._written[label] = run.fingerprint
        del self._waiting[label]

    def _run(self, label: str) -> Run:
        assert self._sweep
        return SweepRuns(self._store, self._sweep).variant(label)
