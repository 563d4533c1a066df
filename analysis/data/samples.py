"""Reads the scores of single samples from the outputs of a store's evaluations, for paired comparisons."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pandas as pd

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


COLUMNS = ("variant", "task", "metric", "sample", "part", "weight", "score")


def of_cells(cells: pd.DataFrame, samples: Samples) -> pd.DataFrame:
    """A row for every sample behind the scores in some rows of the long table: the task's number of it, and its part
    and weight (mlkv/evaluate/outcomes.py). Scores that are no means over samples are left out."""
    tables = []
    for cell in cells.dropna(subset=["step", "task", "metric"]).to_dict("records"):
        found = samples.outcomes(cell["step"], cell["task"], cell["metric"])
        if found is not None:
            columns = {name: cell[name] for name in ("variant", "task", "metric")}
            numbers = np.arange(len(found.units))
            score = np.divide(found.parts, found.weights, where=found.weights != 0, out=np.full(len(numbers), np.nan))
            shown = {"sample": numbers, "part": found.parts, "weight": found.weights, "score": score}
            tables.append(pd.DataFrame({**columns, **shown}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))
