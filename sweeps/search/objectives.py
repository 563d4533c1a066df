"""What a search makes best: numbers of a variant, read from the records of its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlkv.context import MetricRow
from sweeps.planning.config import Config
from sweeps.planning.search_config import BYTES, DECODE, SCORE, Objective
from sweeps.planning.variant import Variant
from sweeps.store.errors import UserError
from sweeps.store.states import StepState
from sweeps.store.stepdir import State
from sweeps.store.store import Store

Score = tuple[str, str]
"""A task and a metric."""
_SPEED = "tokens_per_second"
"""What a measurement calls the tokens of all sequences of a batch together."""


@dataclass(frozen=True)
class Objectives:
    """names: in the order of the numbers. scores: their mean is the score. higher_is_better: of the score."""

    names: tuple[Objective, ...]
    scores: tuple[Score, ...]
    higher_is_better: bool

    @classmethod
    def of(cls, config: Config, higher_is_better: bool) -> Objectives:
        """Raises UserError for an objective that nothing of the plan tells."""
        names, evaluate = config.search.objectives, config.evaluate
        scores = (evaluate.axis,) if evaluate.axis else evaluate.accuracy
        if SCORE in names and not scores:
            raise UserError("search.objectives: score needs a main score; set evaluate.axis, or evaluate.accuracy")
        if DECODE in names and not (config.measure.batch_sizes and config.measure.contexts):
            raise UserError("search.objectives: decode_ms needs measurements; set measure=cpu or measure=gpu")
        return cls(names, tuple(scores), higher_is_better)

    def read(self, store: Store, variant: Variant) -> tuple[float, ...] | None:
        """Each the smaller the better; None as long as one is missing. What is done and has no number is infinite."""
        values = [self._value(name, store, variant) for name in self.names]
        return None if any(value is None for value in values) else tuple(value for value in values if value is not None)

    def shown(self, objectives: Sequence[float]) -> list[float]:
        """As people read them: a score in its own direction."""
        return [
            -value if name == SCORE and self.higher_is_better else value
            for name, value in zip(self.names, objectives, strict=True)
        ]

    def steps(self, variant: Variant) -> list[str]:
        """The ids of the steps that tell them."""
        tasks = {task for task, _ in self.scores} if SCORE in self.names else set()
        measure = variant.measure if DECODE in self.names else None
        found = [variant.evaluate.get(task) for task in sorted(tasks)] + [measure]
        return [step.id for step in found if step]

    def _value(self, name: Objective, store: Store, variant: Variant) -> float | None:
        if name == BYTES:
            return float(variant.kv_bytes_per_token)
        if name == DECODE:
            rows = _rows(store, variant.measure.id) if variant.measure else []
            speeds = [row.value for row in rows or () if row.metric == _SPEED and row.value]
            return None if rows is None else 1000 / max(speeds) if speeds else math.inf
        each = [self._score(store, variant, score) for score in self.scores]
        known = [value for value in each if value is not None]
        if len(known) < len(each):
            return None
        mean = sum(known) / len(known)
        return -mean if self.higher_is_better and math.isfinite(mean) else mean

    def _score(self, store: Store, variant: Variant, score: Score) -> float | None:
        task, metric = score
        rows = _rows(store, step.id) if (step := variant.evaluate.get(task)) else []
        if rows is None:
            return None
        found = [row.value for row in rows if row.metric == metric and row.subtask is None]
        return found[0] if found and found[0] is not None else math.inf


def _rows(store: Store, id: str) -> list[MetricRow] | None:
    """What a step found; None as long as it is not done."""
    record = store.step(id).record()
    return record.metrics if record else None


def front(points: Mapping[int, tuple[float, ...]]) -> list[int]:
    """Those that no other is at least as good as in everything; of equal ones the first. By the first number."""
    best = [
        key
        for key, own in points.items()
        if not any(
            all(a <= b for a, b in zip(other, own, strict=True)) and (other != own or each < key)
            for each, other in points.items()
            if each != key
        )
    ]
    return sorted(best, key=lambda key: points[key])


def has_failed(variant: Variant, states: Mapping[str, State], blocked: Mapping[str, str]) -> bool:
    """Whether the variant's numbers will not come: a step that makes or scores it has failed."""
    return any(states[step.id].name is StepState.FAILED or step.id in blocked for step in variant.steps)
