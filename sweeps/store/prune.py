"""What a store holds that no sweep needs: outputs of steps that are in no sweep's latest plan, and what ended attempts
left behind. Specs, logs and records stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sweeps.store.errors import StoreError
from sweeps.store.files import tree
from sweeps.store.states import StepState
from sweeps.store.stepdir import StepDir
from sweeps.store.store import Store


@dataclass(frozen=True)
class Prunable:
    """One step's share of what can go. `whole`: no sweep needs the step, and its output goes too."""

    step: StepDir
    whole: bool
    bytes: int

    def drop(self) -> None:
        if self.whole:
            self.step.prune()
        else:
            self.step.drop_leftovers()


def needed(store: Store) -> set[str]:
    """Steps of the latest plan of every sweep. Raises StoreError where one cannot be read: it might need any step."""
    folders = list(store.sweep_folders())
    if problems := [problem for folder in folders if (problem := folder.problem())]:
        raise StoreError(f"nothing is dropped while a plan cannot be read: {'; '.join(problems)}")
    return {id for folder in folders for id in folder.read().plan.steps}


def prunable(store: Store) -> Iterator[Prunable]:
    """Steps with something to drop. One that is running is left alone. Raises StoreError as `needed` does."""
    planned = needed(store)
    for step in store.steps():
        whole = step.id not in planned
        if step.state().name == StepState.RUNNING:
            continue
        paths = step.leftovers() + (step.outputs() if whole else [])
        if paths:
            yield Prunable(step, whole, sum(_bytes(path) for path in paths))


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for _, file in tree(path))
