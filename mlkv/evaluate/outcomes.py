"""What an evaluation found for every sample, compact: what comparing two checkpoints on the same samples needs.

`scores/METRIC.samples` holds a metric that is Σ parts / Σ weights over samples: for each sample three little-endian
numbers of eight bytes, `unit` (an integer: which one it is, as a digest of its content), `part` and `weight`. Reading
thousands of them takes no time. A metric of another kind (perplexity) has none.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..context import MetricRow
from ..files import Json

FOLDER, SUFFIX = "scores", ".samples"
ROW = np.dtype([("unit", "<i8"), ("part", "<f8"), ("weight", "<f8")])


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


def save(outcomes: Mapping[str, Outcomes], out: Path) -> None:
    """Into a step's output; a member of a task group has a folder of its own."""
    for metric, found in outcomes.items():
        rows = np.empty(len(found.units), ROW)
        rows["unit"], rows["part"], rows["weight"] = found.units, found.parts, found.weights
        path = out / FOLDER / f"{metric}{SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rows.tobytes())


def of_samples(results: Json, task: str, rows: Iterable[MetricRow]) -> dict[str, Outcomes]:
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
        outcomes = _means(logged[row.subtask or task, row.metric])
        if outcomes and row.value is not None and np.isclose(outcomes.value, row.value, rtol=1e-9, atol=1e-12):
            found[f"{row.subtask}/{row.metric}" if row.subtask else row.metric] = outcomes
    return found


def _means(samples: list[Json]) -> Outcomes | None:
    """None where a score is no number: what lm-eval makes a metric of is then not its mean."""
    if not samples or not all(isinstance(sample["score"], bool | int | float) for sample in samples):
        return None
    units = [digest(sample["hash"].encode()) for sample in samples]
    parts = [float(sample["score"]) for sample in samples]
    return Outcomes(np.array(units, np.int64), np.array(parts), np.ones(len(parts)))
