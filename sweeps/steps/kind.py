"""The type of a step kind's row in the table of sweeps/steps/registry.py: all that other code needs of the kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlkv.context import Context, MetricRow, Outcome, Row
from mlkv.files import Json
from mlkv.layout import KVLayout
from mlkv.shape import DecoderShape
from mlkv.signature import Signature
from sweeps.steps.step import Inputs, R, Step, recipe_of
from sweeps.store.schema import LoggedRow

JobRule = Literal["own", "with_child", "with_parent", "together"]
"""Which job a step of a kind runs in. `own`: in one of its own. `with_child`: in that of the step which starts from its
output. `with_parent`: in that of the step whose output it reads, or with the others that read it. `together`: all steps
of the kind share one job, which starts last."""


@dataclass(frozen=True)
class Execution:
    """One execution of a step, as the function of its kind sees it.

    inputs: parent's role → the folder with its output. out: the folder that its own output goes to.
    """

    step: Step
    inputs: Inputs
    out: Path
    ctx: Context

    def recipe(self, schema: type[R], part: str | None = None) -> R:
        """The recipe that the step was planned with, out of its slice or out of one part of that."""
        values = self.step.slice if part is None else self.step.slice[part]
        return recipe_of(schema, values, self.step.how)


@dataclass(frozen=True)
class Ran:
    """What came of a step in a session: its outcome, or its error, and the rows for its attempt to log."""

    result: Outcome | Exception
    rows: list[Row]


@dataclass(frozen=True)
class Session:
    """How steps of a kind run together, in turns.

    run: runs a step and others, whose results it has first and then in their order. What it raises ends the first one.
    key: steps that it gives the same value can be in one session.
    """

    run: Callable[[Execution, Sequence[Step]], list[Ran]]
    key: Callable[[Step], str]


@dataclass(frozen=True)
class Planned:
    """What a variant already has when a further step of it is planned; `label` is the variant's."""

    layout: KVLayout
    shape: DecoderShape
    corpus: Step | None
    checkpoint: Step | None
    label: str


def millions_of_parameters(step: Step, millions: float, sequence_length: int) -> float:
    return millions


@dataclass(frozen=True)
class StepKind:
    """A kind of step.

    run: makes the output and returns what it found.
    recipe: the dataclass that the conf group of the kind's name fills.
    plan: the step of one variant from the recipe; None where the variant needs none. Left out by the built-in kinds,
        whose steps sweeps/planning puts together.
    changes: what each change of the kind's meaning was, in a few words. Every entry gives all its steps new ids.
    trains: it is training: several processes can share it, and its rows count optimizer steps.
    scores: its metrics are scores of a variant, one value each, which tables can show beside the evaluations.
    job, reads: the job that its steps run in; with `with_parent`, the role of the parent that decides it.
    shares_job: other steps may run in the job of one of its steps.
    work: how much a step has to do, from the millions of parameters and the tokens in a sequence. Steps of one kind
        take the same time per unit.
    cost: kinds with the same word here take the same time per unit of work; empty: no other kind does.
    online: whether a step can only run where the internet is.
    task_data: the evaluation task whose data a step reads from the internet or its cache.
    modules: what `run` imports, for the process that imports once for all of a sweep's local jobs.
    fresh_process: it runs in a process that was forked from no other: it measures memory, or a library of it does not
        survive a fork.
    session: for a kind whose steps share a job: how those that are not done run together in one process. Each is then
        claimed, answered and recorded as if it had run by itself, at once where a session has its result.
    numbers: for records of earlier code, which have no seal, the metrics once more: from the output, or from the rows
        that the attempt logged.
    remark: what a reader of a finished step's numbers has to know, in one line; None where there is nothing.
    signatures: what the numbers and facts of a finished step's record say of the run (mlkv/signature.py).
    saves_memory: settings of the kind with which its steps take less memory, for those that find none.
    """

    run: Callable[[Execution], Outcome]
    recipe: type[Any] | None = None
    plan: Callable[[Any, Planned], Step | None] | None = None
    changes: tuple[str, ...] = ()
    trains: bool = False
    scores: bool = False
    job: JobRule = "own"
    reads: str = "checkpoint"
    shares_job: bool = True
    work: Callable[[Step, float, int], float] = millions_of_parameters
    cost: str = ""
    online: Callable[[Step], bool] = lambda _step: False
    task_data: Callable[[Step], str | None] = lambda _step: None
    modules: tuple[str, ...] = ()
    fresh_process: bool = False
    session: Session | None = None
    numbers: Callable[[Path, list[LoggedRow]], list[MetricRow]] | None = None
    remark: Callable[[list[MetricRow]], str | None] = lambda _rows: None
    signatures: Callable[[Sequence[MetricRow], Json], list[Signature]] = lambda _rows, _facts: []
    saves_memory: str = ""

    @property
    def schema(self) -> int:
        """The version of what a step of this kind means."""
        return 1 + len(self.changes)
