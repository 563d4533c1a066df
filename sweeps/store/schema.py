"""What the store keeps as JSON: a type for each file, and for each line of the files that grow by lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, ClassVar, Literal

from mlkv.context import MetricRow
from mlkv.files import Json
from mlkv.layout import KVLayout
from sweeps.store.typed_json import Fields, check_type, later

# A step


@dataclass(frozen=True, kw_only=True)
class Spec:
    """spec.json: what a step is; its id is the hash of this."""

    REMEDY: ClassVar[str] = "delete it and run the sweep's line again, which writes it anew"
    kind: str
    schema: int
    slice: Json
    parents: dict[str, str]
    """Role → step id."""
    pinned: dict[str, str]

    @property
    def task(self) -> str | None:
        """That of an evaluation."""
        return self.slice.get("task")


@dataclass(frozen=True, kw_only=True)
class Runtime(Fields):
    """how.json: where and how fast a step runs, by the last plan: the runtime fields of its kind's recipe, and what is
    below. None of it changes the result."""

    REMEDY: ClassVar[str] = Spec.REMEDY

    def __post_init__(self) -> None:
        """Raises ValueError that names the field."""
        check_type(self.fields, "work", float, int, NoneType)
        for name in ("source", "tokenizer_source"):
            check_type(self.fields, name, dict, NoneType)
            for key in self.fields.get(name) or ():
                check_type(self.fields[name], key, str)

    @property
    def work(self) -> float | None:
        """The amount of work, in units of the step's kind."""
        return self.fields.get("work")

    @property
    def source(self) -> dict[str, str] | None:
        """Where a base is loaded from: a `path`, or a `hub` model and its `revision`. None: it is trained."""
        return self.fields.get("source")

    @property
    def tokenizer_source(self) -> dict[str, str] | None:
        return self.fields.get("tokenizer_source")


@dataclass(frozen=True, kw_only=True)
class FileHash:
    """Digest (hex) and size of a file."""

    sha256: str
    bytes: int


Files = dict[str, FileHash]
"""Names relative to a step's output → what each file holds."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """done.json, and record.json of an attempt whose output is whole but not yet published."""

    REMEDY: ClassVar[str] = "delete it and run the sweep's line again: an output that is whole is published again"
    id: str
    kind: str
    attempt: int
    started: str
    finished: str
    wall_seconds: float
    device_seconds: float
    peak_memory_bytes: int
    host: str
    device: str
    versions: dict[str, str]
    code: str
    """The hash of all code that the job imported."""
    result_code: str | None = later()
    """The hash of what the part of it does that can change a result of this kind (sweeps/store/result_code.py)."""
    work: float | None
    inputs: dict[str, Files]
    """Parent's id → its outputs."""
    metrics: list[MetricRow]
    facts: Json
    outputs: Files
    seal: str | None = later()
    """A hash of the rest (sweeps/store/seal.py)."""
    set_aside: str | None = later()
    """Why the record was withdrawn; in `done.corrupt-N.json` and `done.pruned-N.json` alone."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """origin.json of a result, or of a plan, that was unpacked: whose it is (`mlkv pack`)."""

    REMEDY: ClassVar[str] = "delete it"
    by: str | None
    """None: whoever packed it gave no name."""
    packed: str
    """The newest time in the pack."""
    record: str | None = later()
    """The SHA-256 of the record that this belongs to; None for a plan."""
    absent: list[str] | None = later()
    """Outputs that were left out of the pack."""

    @property
    def words(self) -> str:
        return f"from {self.by or 'another store'}"


# An attempt


ExitState = Literal["done", "failed", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Exit:
    """exit.json: how an attempt ended. `own`: it ended by itself, not after a signal."""

    REMEDY: ClassVar[str] = "delete it and run the sweep's line again: the attempt counts as lost"
    state: ExitState
    reason: str
    returncode: int | None
    own: bool
    finished: str


@dataclass(frozen=True, kw_only=True)
class Environment:
    """env.json: the machine that an attempt runs on. `job` and `run`: which run of which job of a queue. `group`: where
    the processes that train together meet (torch.distributed's environment of the first). `packages`: the name of the
    list of installed packages (`Store.packages`)."""

    REMEDY: ClassVar[str] = "delete it"
    host: str
    device: str
    versions: dict[str, str]
    job: str | None = later()
    run: int | None = later()
    group: dict[str, str] | None = later()
    packages: str | None = later()


@dataclass(frozen=True, kw_only=True)
class Process:
    """What identifies a process. `ticks`, its start since `boot`, does not change with the clock, as `started` does
    (seconds since the epoch; older code wrote only this). Two containers may share a host name and even a boot, but not
    the `namespace` of their process ids. None: the system does not provide the value."""

    host: str
    pid: int
    started: float | None
    boot: str | None = None
    namespace: str | None = None
    ticks: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClaimHolder(Process):
    """claim.json: the process that may run a step. `token` differs between its claims; older code wrote none."""

    REMEDY: ClassVar[str] = "delete it if no job runs this step"
    token: str | None = None


@dataclass(frozen=True, kw_only=True)
class LoggedRow(Fields):
    """A line of metrics.jsonl: `fields` has all of it, under the names that the step logged it by."""

    MAY_DIVERGE: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raises ValueError that names the field."""
        check_type(self.fields, "time", float, int, NoneType)
        for name in ("step", "steps"):
            check_type(self.fields, name, int, NoneType)

    @property
    def time(self) -> float | None:
        """Seconds since the epoch."""
        return self.fields.get("time")

    @property
    def step(self) -> int | None:
        return self.fields.get("step")

    @property
    def steps(self) -> int | None:
        """How many there are in all, as far as that is known."""
        return self.fields.get("steps")


# A sweep


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """A step in a plan. `variants`: the labels of those that need it."""

    kind: str
    label: str
    parents: dict[str, str]
    variants: list[str]


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """plan.json: what concerns a whole sweep, as it was submitted.

    accuracy: (task, metric) of the scores that the accuracy averages. axis: those of the main quality axis; None: the
    accuracy. cluster: see sweeps.planning.config.ClusterConfig. tracking: see sweeps.tracking.target.TrackingConfig.
    """

    name: str
    number: int
    created: str
    accuracy: list[tuple[str, str]]
    axis: tuple[str, str] | None
    cluster: Json
    tracking: Json | None
    steps: dict[str, PlannedStep]
    """By id, parents before children."""
    command: list[str] | None = later()
    extensions: dict[str, str] | None = later()
    """The extension files that it was planned with: name → SHA-256."""
    stopped: dict[str, str] | None = later()
    """Steps that a rule or a budget decided not to run: id → the reason, in one line."""
    following: int | None = later()
    """How many layouts follow by rule when these steps are done; None where all that the line asks for is planned."""
    driven: bool | None = later()
    """Whether a driver decides while it runs what is run next: what is not begun is not simply to be run."""


CONVERTED = "converted"
"""In place of the kind `evaluate`: a score of the conversion before uptraining."""


@dataclass(frozen=True, kw_only=True)
class VariantSteps:
    """The ids of a variant's steps by kind; None for a kind that is not planned. `evaluate`: task → id. `added`: kind →
    id, of kinds that extensions add. `earlier`: the trainings that `uptrain` continues, the shortest first.
    `converted`: task → id, of what scores the conversion before uptraining; without uptraining that of `evaluate`."""

    corpus: str | None = None
    base: str | None = None
    convert: str | None = None
    uptrain: str | None = None
    measure: str | None = None
    evaluate: dict[str, str] = field(default_factory=dict)
    added: dict[str, str] | None = later()
    calibrate: str | None = later()
    earlier: list[str] | None = later()
    teacher: str | None = later()
    converted: dict[str, str] | None = later()
    elastic: str | None = later()
    similarity: str | None = later()

    @property
    def checkpoint(self) -> str | None:
        """The step that leaves the weights which are scored; None where a layout is only measured."""
        return self.uptrain or self.convert or self.base

    @property
    def ids(self) -> list[str]:
        """Parents before children; evaluations and measurements behind all that trains. Each once."""
        return list(dict.fromkeys(id for _, _, id in self.each()))

    def each(self) -> Iterator[tuple[str, str | None, str]]:
        """(kind, task, id) of every step, in that order; the kind of an evaluation of the conversion is CONVERTED."""
        for kind in ("corpus", "base", "calibrate", "teacher", "elastic", "convert"):
            if id := getattr(self, kind):
                yield kind, None, id
        for id in (*(self.earlier or ()), self.uptrain):
            if id:
                yield "uptrain", None, id
        yield from (("evaluate", task, id) for task, id in self.evaluate.items())
        yield from ((CONVERTED, task, id) for task, id in (self.converted or {}).items())
        for kind in ("measure", "similarity"):
            if id := getattr(self, kind):
                yield kind, None, id
        yield from ((kind, None, id) for kind, id in (self.added or {}).items())


@dataclass(frozen=True, kw_only=True)
class VariantRow:
    """A line of variants.jsonl: a layout with its base and training, and the steps that make and score it."""

    variant: str
    """Its label."""
    baseline: str | None
    overrides: dict[str, Any]
    """The values that the sweep varies, by config key."""
    pattern: str
    family: str
    kv_layers: int
    kv_heads: list[int]
    budget: int | float
    layout: KVLayout
    head_dim: int
    kv_element_bytes: int | None
    """None where the cache holds packed integers."""
    kv_bytes_per_token: int
    parameters: int
    few_shot: dict[str, int | dict[str, int]] | None = later()
    """Task → worked examples before each of its questions, or the same for each member of a task group."""
    config: Json
    """The resolved configuration."""
    steps: VariantSteps
    cache: str | None = later()
    """The format of its cache (mlkv/cache/formats.py); None: as the model computes keys and values."""

    @property
    def model(self) -> str | None:
        return (self.config.get("model") or {}).get("name")

    def examples(self, task: str) -> int | dict[str, int] | None:
        """The task's entry of `few_shot`; None where it has no questions. Before `few_shot` was recorded, all tasks had
        the number in the configuration."""
        if self.few_shot is not None:
            return self.few_shot.get(task)
        count: int | None = self.config.get("evaluate", {}).get("few_shot")
        return count or 0


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """A line of jobs.jsonl: the steps that a job of some name runs for a sweep, written before it is submitted; or the
    sweep that it drives; or the ids of jobs that `mlkv cancel` ended; or the names of jobs that SLURM did not take."""

    name: str | None = later()
    steps: list[str] | None = later()
    sweep: str | None = later()
    cancelled: list[str] | None = later()
    refused: list[str] | None = later()
    drives: str | None = later()
    """The sweep whose trials it chooses and dispatches."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """wandb/address.json: where W&B shows the project that a sweep was last sent to, by its client."""

    project: str


@dataclass(frozen=True, kw_only=True)
class WrittenMark:
    """wandb/written/RUN.json: the fingerprint of the complete run in the same folder."""

    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A line of search.jsonl: a point that `mlkv search` chose, written before any step of it is dispatched. What it
    scored is in the records of its steps alone."""

    trial: int | None
    """Its number, from 1; that of an earlier trial where both points make the same steps. None: there is no such
    variant."""
    point: dict[str, str | int | float]
    """Key → the value that it has here; of `layout number`, which of the layouts that the keys leave."""
    steps: list[list[str]] | None = later()
    """The ids of its steps, parents before children: a list for each rung."""
    impossible: str | None = later()
    """Why there is no such variant, in one line."""
