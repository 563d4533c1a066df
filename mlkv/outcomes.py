"""What an evaluation found for every sample, compact: what comparing two checkpoints on the same samples needs.

`scores.npz` holds an array for each metric that is Σ parts / Σ weights over samples: a row per sample, with the fields
`unit` (which one it is, as a digest of its content), `part` and, unless all are 1, `weight`. A metric of another kind
(perplexity) is not in it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = "scores.npz"
Json = dict[str, Any]


@dataclass(frozen=True)
class Outcomes:
    """`units` (int64), `parts` and `weights` (float64), each [N], of `N` samples in the task's order."""

    units: NDArray[np.int64]
    parts: NDArray[np.float64]
    weights: NDArray[np.float64]

    @property
    def value(self) -> float:
        return float(self.parts.sum() / self.weights.sum())


def digest(content: bytes) -> int:
    """A sample's identity: equal for equal content, whichever checkpoint it is put to."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)


def save(outcomes: Mapping[str, Outcomes], path: Path) -> None:
    arrays: dict[str, Any] = {metric: _rows(found) for metric, found in outcomes.items()}
    np.savez(path, **arrays)


def _rows(found: Outcomes) -> NDArray[Any]:
    columns: dict[str, NDArray[Any]] = {"unit": found.units, "part": found.parts}
    if (found.weights != 1).any():
        columns["weight"] = found.weights
    rows = np.empty(len(found.units), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        rows[name] = column
    return rows


def of_samples(results: Json, task: str, rows: Iterable[Json]) -> dict[str, Outcomes]:
    """The outcomes behind those of `rows` (metric, value, subtask) that are means over lm-eval's logged samples.

    A group's own score counts where it is the mean over the samples of all its members.
    """
    logged: dict[tuple[str, str], list[Json]] = defaultdict(list)
    for member, samples in results["samples"].items():
        for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
            for metric in sample["metrics"]:
                name = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
                for place in {member, task}:
                    logged[place, name].append({"hash": sample["doc_hash"], "score": sample[metric]})
    found: dict[str, Outcomes] = {}
    for row in rows:
        member = row.get("subtask")
        outcomes = _means(logged[member or task, row["metric"]])
        if outcomes and row["value"] is not None and np.isclose(outcomes.value, row["value"], rtol=1e-9, atol=1e-12):
            found[f"{member}/{row['metric']}" if member else row["metric"]] = outcomes
    return found


def _means(samples: list[Json]) -> Outcomes | None:
    """None where a score is no number: what lm-eval makes a metric of is then not its mean."""
    if not samples or not all(isinstance(sample["score"], bool | int | float) for sample in samples):
        return None
    units = [digest(sample["hash"].encode()) for sample in samples]
    parts = [float(sample["score"]) for sample in samples]
    return Outcomes(np.array(units, np.int64), np.array(parts), np.ones(len(parts)))
