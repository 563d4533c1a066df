"""The score of every sample of an evaluation, in the compact form that comparisons of two checkpoints read.

`scores/METRIC.samples` holds a metric that is Σ parts / Σ weights over samples: for each sample three little-endian
numbers of eight bytes, `unit` (an integer: a digest of the sample's content), `part` and `weight`. A metric of another
kind (perplexity) has no such file.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..context import MetricRow
from ..files import Json

FOLDER, SUFFIX = "scores", ".samples"
ROW = np.dtype([("unit", "<i8"), ("part", "<f8"), ("weight", "<f8")])


@dataclass(frozen=True)
class Outcomes:
    """A score as Σ parts / Σ weights: `units` (int64: which sample each is, by its content), `parts` and `weights`
    (float64), each [N], of `N` samples in the task's order."""

    units: NDArray[np.int64]
    parts: NDArray[np.float64]
    weights: NDArray[np.float64]

    @property
    def value(self) -> float:
        return float(self.parts.sum() / self.weights.sum())

    @property
    def samples_digest(self) -> str:
        """Equal for scores over the same samples in the same order."""
        return hashlib.blake2b(self.units.tobytes(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Sample:
    """One question of one task, as lm-eval logs it. The task defines the types of answers and scores."""

    task: str
    doc_id: int
    doc_hash: str
    target: Any
    filter: str
    """How the answers were post-processed; "none" where they were not."""
    answers: Any
    scores: dict[str, Any]

    def as_json(self) -> Json:
        """A line of samples.jsonl: without the prompt, which the task's data have."""
        own = {"doc_id": self.doc_id, "target": self.target, "filter": self.filter, "filtered_resps": self.answers}
        return {"task": self.task, **own, **self.scores}


def digest(content: bytes) -> int:
    """A sample's identity: equal for equal content, whichever checkpoint is scored on it."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)


def save(outcomes: Mapping[str, Outcomes], out: Path) -> None:
    """Into a step's output; a member of a task group has a folder of its own."""
    for metric, each in outcomes.items():
        rows = np.empty(len(each.units), ROW)
        rows["unit"], rows["part"], rows["weight"] = each.units, each.parts, each.weights
        path = path_of(out, metric)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rows.tobytes())


def read(out: Path, metric: str) -> Outcomes | None:
    """What `save` wrote of a metric (of a group's member: `MEMBER/METRIC`); None where it wrote none. Raises ValueError
    for a file that is cut off."""
    try:
        rows = np.frombuffer(path_of(out, metric).read_bytes(), ROW)
    except FileNotFoundError:
        return None
    return Outcomes(*(np.ascontiguousarray(rows[name]) for name in ("unit", "part", "weight")))


def path_of(out: Path, metric: str) -> Path:
    return out / FOLDER / f"{metric}{SUFFIX}"


def of_samples(samples: Sequence[Sample], task: str, rows: Iterable[MetricRow]) -> dict[str, Outcomes]:
    """The outcomes behind those of `rows` that are means over the samples.

    A group's own score counts where it is the mean over the samples of all its members.
    """
    scores: dict[tuple[str, str], list[tuple[str, Any]]] = defaultdict(list)
    place = {member: i for i, member in enumerate(dict.fromkeys(sample.task for sample in samples))}
    for sample in sorted(samples, key=lambda sample: (place[sample.task], sample.doc_id)):
        for metric, value in sample.scores.items():
            name = metric if sample.filter == "none" else f"{metric},{sample.filter}"
            for scored in {sample.task, task}:
                scores[scored, name].append((sample.doc_hash, value))
    outcomes: dict[str, Outcomes] = {}
    for row in rows:
        means = _means(scores[row.subtask or task, row.metric])
        if means and row.value is not None and np.isclose(means.value, row.value, rtol=1e-9, atol=1e-12):
            outcomes[f"{row.subtask}/{row.metric}" if row.subtask else row.metric] = means
    return outcomes


def _means(scores: list[tuple[str, Any]]) -> Outcomes | None:
    """Of (hash, score) pairs. None where a score is no number: what lm-eval makes a metric of is then not its mean."""
    if not scores or not all(isinstance(score, bool | int | float) for _, score in scores):
        return None
    units = [digest(sample.encode()) for sample, _ in scores]
    parts = [float(score) for _, score in scores]
    return Outcomes(np.array(units, np.int64), np.array(parts), np.ones(len(parts)))
