"""Reads the scores of single samples from the outputs of a store's evaluations, for paired comparisons."""

from __future__ import annotations

from typing import Protocol

from mlkv.evaluate import outcomes
from mlkv.evaluate.outcomes import Outcomes
from sweeps.store.errors import DamagedFileError
from sweeps.store.store import Store


class Samples(Protocol):
    def outcomes(self, step: str, task: str, metric: str) -> Outcomes | None:
        """Of a finished evaluation; None where it has none, or the metric is no mean over samples."""
        ...


class StoredSamples:
    def __init__(self, store: Store) -> None:
        self._store = store

    def outcomes(self, step: str, task: str, metric: str) -> Outcomes | None:
        """Raises DamagedFileError."""
        out, name = self._store.step(step).out, "/".join([*task.split("/")[1:], metric])
        try:
            return outcomes.read(out, name)
        except ValueError:
            advice = "run `mlkv status NAME --verify`, which sets the step aside, and the sweep's line again"
            raise DamagedFileError(f"{outcomes.path_of(out, name)}: is cut off; {advice}") from None
