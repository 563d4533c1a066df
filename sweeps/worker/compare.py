"""Compares two results of one step: bit by bit, and where bits differ by the tolerance of the step's kind.

Times are never compared, nor what they or the machine decide (speeds, peaks of memory, the largest batch), nor the code
that a checkpoint carries.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from mlkv.context import MetricRow
from sweeps.store.others import CODE
from sweeps.store.schema import FileHash, Files, Record


class Verdict(StrEnum):
    EQUAL = "equal"
    WITHIN = "within tolerance"
    DIFFERENT = "different"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Tolerance:
    """numbers: relative difference of each metric. weights: relative L2 difference of each tensor; None: of the same
    tensors the values may differ, as the metrics tell."""

    numbers: float = 0.0
    weights: float | None = 0.0


TOLERANCES = {
    "base": Tolerance(numbers=1e-2, weights=None),
    "uptrain": Tolerance(numbers=1e-2, weights=None),
    "elastic": Tolerance(numbers=1e-2, weights=None),
    "convert": Tolerance(weights=1e-4),
    "calibrate": Tolerance(numbers=1e-4, weights=1e-4),
    "teacher": Tolerance(numbers=1e-4, weights=1e-4),
    "evaluate": Tolerance(numbers=1e-3),
    "similarity": Tolerance(numbers=1e-2, weights=1e-2),
}
"""By kind; any other (corpus, measure, those of extensions) must be bit-equal. Training adds up rounding over its
steps, so on other hardware its loss is what can be compared."""
_BY_TIME = re.compile(r"second|peak|wall|memory|step_over|largest|processor")
_WEIGHTS = ".safetensors"
_SCORES = (".json", ".jsonl", ".samples")
"""Outputs of an evaluation that hold what its metrics sum up."""


@dataclass(frozen=True)
class Comparison:
    """files: outputs whose bits differ. numbers: metric → relative difference, of those that differ. weights: file →
    largest relative difference of a tensor."""

    verdict: Verdict
    reason: str
    files: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


def compare(before: Record, out_before: Path, after: Record, out_after: Path) -> Comparison:
    tolerance = TOLERANCES.get(before.kind, Tolerance())
    files = _differing(before.outputs, after.outputs)
    numbers = _numbers(before.metrics, after.metrics)
    weights = {name: _distance(out_before / name, out_after / name) for name in files if name.endswith(_WEIGHTS)}
    if not files and not numbers:
        count = sum(not name.endswith(CODE) for name in before.outputs)
        return Comparison(Verdict.EQUAL, f"{count} outputs bit-equal" if count else "all numbers equal")
    wrong = [f"{name} by {far:.2g}" for name, far in numbers.items() if not far <= tolerance.numbers]
    intolerable = [name for name in files if not _is_tolerated(name, before.kind, tolerance, weights)]
    wrong += [f"{name} by {weights[name]:.2g}" if name in weights else name for name in intolerable]
    if wrong:
        return Comparison(Verdict.DIFFERENT, f"differs in {_listed(wrong)}", files, numbers, weights)
    reasons = [f"bits differ in {_listed(files)}"] if files else []
    reasons += [_extent("weights", weights, tolerance.weights)] if weights else []
    reasons += [_extent("numbers", numbers, tolerance.numbers)] if tolerance.numbers else []
    return Comparison(Verdict.WITHIN, "; ".join(reasons), files, numbers, weights)


def _extent(what: str, found: Mapping[str, float], allowed: float | None) -> str:
    """How far they are apart at most."""
    limit = "" if allowed is None else f" of {allowed:g} allowed"
    return f"{what} by {max(found.values(), default=0.0):.2g}{limit}"


def _is_tolerated(name: str, kind: str, tolerance: Tolerance, weights: dict[str, float]) -> bool:
    if name in weights:  # infinite: other tensors, or none
        return weights[name] < math.inf if tolerance.weights is None else weights[name] <= tolerance.weights
    return kind == "evaluate" and name.endswith(_SCORES)


def _differing(before: Files, after: Files) -> list[str]:
    missing = FileHash(sha256="", bytes=-1)
    names = dict.fromkeys(name for name in [*before, *after] if not name.endswith(CODE))
    return [name for name in names if before.get(name, missing) != after.get(name, missing)]


def _numbers(before: Iterable[MetricRow], after: Iterable[MetricRow]) -> dict[str, float]:
    old, new = _by_name(before), _by_name(after)
    each = {name: _apart(old.get(name), new.get(name)) for name in dict.fromkeys([*old, *new])}
    return {name: far for name, far in each.items() if far}


def _by_name(rows: Iterable[MetricRow]) -> dict[str, float | None]:
    parts = (
        (row, (row.subtask, row.metric, row.batch, row.context)) for row in rows if not _BY_TIME.search(row.metric)
    )
    return {" ".join(str(part) for part in key if part is not None): row.value for row, key in parts}


def _apart(one: float | None, other: float | None) -> float:
    """Relative difference; infinite where one is not there."""
    if one == other:
        return 0.0
    return math.inf if one is None or other is None else abs(one - other) / max(abs(one), abs(other))


def _distance(one: Path, other: Path) -> float:
    """The largest ‖a − b‖ / ‖a‖ of two files' tensors; infinite where they have other tensors, or one is not there."""
    from safetensors.torch import load_file

    if not (one.is_file() and other.is_file()):
        return math.inf
    a, b = load_file(one), load_file(other)
    if {name: tensor.shape for name, tensor in a.items()} != {name: tensor.shape for name, tensor in b.items()}:
        return math.inf
    pairs = ((a[name].double(), b[name].double()) for name in a)
    return max((float((x - y).norm() / x.norm().clamp_min(1e-30)) for x, y in pairs), default=0.0)


def _listed(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
