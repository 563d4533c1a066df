"""The score of every sample of an evaluation, as the store has them: what paired comparisons need."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sweeps.store.store import Store

_ROW = np.dtype([("unit", "<i8"), ("part", "<f8"), ("weight", "<f8")])


@dataclass(frozen=True)
class Outcomes:
    """A score as Σ parts / Σ weights over `N` samples; `units` [N] identify each sample by its content."""

    units: NDArray[np.int64]
    parts: NDArray[np.float64]
    weights: NDArray[np.float64]

    @property
    def samples(self) -> str:
        """Equal for scores over the same samples in the same order."""
        return hashlib.blake2b(self.units.tobytes(), digest_size=16).hexdigest()


class Samples(Protocol):
    def outcomes(self, step: str, task: str, metric: str) -> Outcomes | None:
        """Those of a finished evaluation; None where it stored none, or the metric is no mean over samples."""
        ...


class StoredSamples:
    """From `scores/` among the outputs of the store's evaluations, which mlkv.evaluate.outcomes writes."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def outcomes(self, step: str, task: str, metric: str) -> Outcomes | None:
        return read(self._store.step(step).out / "scores" / "/".join([*task.split("/")[1:], f"{metric}.samples"]))


def read(path: Path) -> Outcomes | None:
    """The outcomes in a file; None where there is no such file."""
    try:
        rows = np.frombuffer(path.read_bytes(), _ROW)
    except FileNotFoundError:
        return None
    return Outcomes(*(np.ascontiguousarray(rows[name]) for name in ("unit", "part", "weight")))
