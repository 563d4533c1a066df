"""The step kinds, each with the version of its meaning and the function that runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlkv.context import Context, Outcome
from mlkv.files import Json
from sweeps.steps import base, convert, corpus, evaluate, measure, uptrain
from sweeps.steps.step import Inputs


@dataclass(frozen=True)
class StepKind:
    """`schema` is the version of what a step of this kind means; `run` makes the output.

    `numbers`: for records of earlier code, which have no seal, the metrics once more: from the output, or from the rows
    that the attempt logged."""

    schema: int
    run: Callable[[Json, Json, Inputs, Path, Context], Outcome]
    numbers: Callable[[Path, list[Json]], list[Json]] | None = None


KINDS = {
    "corpus": StepKind(1, corpus.run, corpus.numbers),
    "base": StepKind(1, base.run),
    "convert": StepKind(1, convert.run),
    "uptrain": StepKind(1, uptrain.run),
    "evaluate": StepKind(1, evaluate.run, evaluate.numbers),
    "measure": StepKind(1, measure.run, measure.numbers),
}
