"""The runs of a sweep's variants, kept up with its steps: whoever ends a step writes those that it belongs to anew.

Nobody waits for anybody: several may write one run at once. Each looks again after it has written, so that whoever is
last has seen the last step end, and what stands in the end is what the store says.
"""

from __future__ import annotations

from sweeps.store.store import SavedSweep, Store
from sweeps.tracking.runs import Run, SweepRuns, standing
from sweeps.tracking.target import Target

FEW = 4
"""A step that more variants share (corpus, base) is told of by the next steps of theirs, unless it ends them."""
LOOKS = 5
"""How often at most a run is written anew because its steps went on meanwhile."""


class VariantRuns:
    """Those that wait to be written, in this process."""

    def __init__(self, store: Store, target: Target) -> None:
        self._store, self._target = store, target
        self._sweep: SavedSweep | None = store.sweep(target.sweep) if target.sweep else None
        self._waiting: dict[str, None] = {}
        self._written: dict[str, str] = {}

    def ended(self, step: str) -> None:
        """A step has ended. One that was interrupted goes on elsewhere, and its job may have little time left."""
        if not self._sweep or standing(self._store.step(step))[0] == "INTERRUPTED":
            return
        labels = self._sweep.plan["steps"].get(step, {}).get("variants", [])
        runs = SweepRuns(self._store, self._sweep)
        told = [label for label in labels if len(labels) <= FEW or runs.variant(label).finished]
        self._waiting |= dict.fromkeys(told)

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def forget(self) -> None:
        """What waits is left to the next step, or to `mlkv sync`."""
        self._waiting.clear()

    def write_next(self) -> None:
        """The run that has waited longest, until it is as the store has it. Raises MirrorError."""
        from sweeps.tracking.mirror import write

        label = next(iter(self._waiting))
        for _ in range(LOOKS):
            run = self._run(label)
            if self._written.get(label) == run.fingerprint:
                break
            write(run, self._target.config, self._store.tracking(self._target.sweep))
            self._written[label] = run.fingerprint
        del self._waiting[label]

    def _run(self, label: str) -> Run:
        assert self._sweep
        return SweepRuns(self._store, self._sweep).variant(label)
