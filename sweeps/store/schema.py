"""What the store keeps as JSON: a type for each file, and for each line of the files that grow by lines.

Reading is strict about types and lenient about keys: a key of later code is ignored, and one that earlier code did not
write yet has a default. What does not fit raises DamagedFileError, which names the file, the field and what to do.
Writing gives the keys in the order of the fields, so that a file that is read and written again has the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from mlkv.context import MetricRow
from mlkv.files import Json
from mlkv.layout import KVLayout
from sweeps.store.errors import DamagedFileError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def later() -> Any:
    """A field that earlier code did not write, and that is left out of a file where it has no value."""
    return field(default=None, metadata={"later": True})


# Reading and writing


def load(kind: type[T], path: Path) -> T | None:
    """What a file holds; None where there is no file. Raises DamagedFileError and OSError."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return parsed(kind, content)
    except ValueError as error:
        raise DamagedFileError(f"{path}: {error}; {getattr(kind, 'REMEDY', 'delete it')}") from None


def from_json(kind: type[T], value: Json) -> T:
    """The same of JSON that is parsed already. Raises ValueError that names the field."""
    return parsed(kind, json.dumps(value).encode())


def as_json(value: Any) -> Any:
    """What JSON holds of a value: objects with the fields in their order, without those that have no value and that
    earlier code did not write."""
    if isinstance(value, MetricRow):
        return value.as_json()
    if isinstance(value, Runtime | LoggedRow):
        return as_json(value.fields)
    if dataclasses.is_dataclass(value):
        fields = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {f.name: as_json(held) for f, held in fields if held is not None or "later" not in f.metadata}
    if isinstance(value, Mapping):
        return {key: as_json(held) for key, held in value.items()}
    return [as_json(held) for held in value] if isinstance(value, list | tuple) else value


def parsed(kind: type[T], content: bytes) -> T:
    """What some JSON text says. Raises ValueError that names the field."""
    from pydantic import ValidationError

    raw = _loaded(content)
    if not isinstance(raw, dict):
        raise ValueError("is no JSON object")
    if issubclass(kind, Runtime | LoggedRow):
        return kind(fields=raw)
    try:
        value: T = _adapter(kind).validate_json(_respelled(_completed(kind, raw)), strict=True)
    except ValidationError as error:
        raise ValueError(_first_fault(error)) from None
    if isinstance(value, Stored):
        value.clear()
        value.update(raw)
    return value


def _respelled(value: Json) -> bytes:
    """As UTF-8, with ? for what is no text: a reason may quote the name of a file that is none."""
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


def _loaded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error})") from None


_adapters: dict[Any, TypeAdapter[Any]] = {}
"""Each is made once, as that takes a hundred times as long as reading a file."""


def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def _first_fault(error: ValidationError) -> str:
    """`metrics.0.value: should be a valid number, not 'x'`."""
    fault = error.errors()[0]
    place, message = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if fault["type"] == "missing":
        return f"has no {place}"
    return f"{place}: {message}, not {str(fault['input'])[:40]}"


_BLANKS: dict[type, Json] = {}
"""Temporary: what tests leave out of what they write."""


def _completed(kind: type, raw: Json) -> Json:
    """Temporary, as _BLANKS."""
    whole = {**_BLANKS.get(kind, {}), **raw}
    if kind is PlanFile and isinstance(steps := whole.get("steps"), dict):
        blank = _BLANKS[PlannedStep]
        whole["steps"] = {id: {**blank, **step} if isinstance(step, dict) else step for id, step in steps.items()}
    return whole


class Stored(dict[str, Any]):
    """Temporary: string keys beside attributes, until every reader uses attributes."""

    def __post_init__(self) -> None:
        self.update(as_json(self))


def _check(fields: Json, name: str, *types: type) -> None:
    """Raises ValueError for a value of another type; True and False are no numbers."""
    value = fields.get(name)
    if name in fields and type(value) not in types:
        raise ValueError(f"{name}: should be {types[0].__name__}, not {str(value)[:40]}")


# A step


@dataclass(frozen=True, kw_only=True)
class Spec(Stored):
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
class Runtime(Stored):
    """how.json: where and how fast a step runs, as the last plan said. None of it changes the result."""

    REMEDY: ClassVar[str] = Spec.REMEDY
    fields: Json = field(default_factory=dict)
    """The runtime fields of the kind's recipe, and what is below."""

    def __post_init__(self) -> None:
        """Raises ValueError that names the field."""
        super().__post_init__()
        _check(self.fields, "work", float, int, NoneType)
        for name in ("source", "tokenizer_source"):
            _check(self.fields, name, dict, NoneType)
            for key in self.fields.get(name) or ():
                _check(self.fields[name], key, str)

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
class FileHash(Stored):
    """Digest (hex) and size of a file."""

    sha256: str
    bytes: int


Files = dict[str, FileHash]
"""Names relative to a step's output → what each file holds."""


@dataclass(frozen=True, kw_only=True)
class Record(Stored):
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
    """The hash of what the part of it does that can change a result (sweeps/store/code.py)."""
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


# An attempt


ExitState = Literal["done", "failed", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Exit(Stored):
    """exit.json: how an attempt ended. `own`: it ended by itself, and was not asked to."""

    REMEDY: ClassVar[str] = "delete it; the attempt then counts as lost"
    state: ExitState
    reason: str
    returncode: int | None
    own: bool
    finished: str


@dataclass(frozen=True, kw_only=True)
class Environment(Stored):
    """env.json: the machine that an attempt runs on. `job` and `run`: which run of which job of a queue. `group`: where
    the processes that train together meet (torch.distributed's environment of the first)."""

    REMEDY: ClassVar[str] = "delete it"
    host: str
    device: str
    versions: dict[str, str]
    job: str | None = later()
    run: int | None = later()
    group: dict[str, str] | None = later()


@dataclass(frozen=True, kw_only=True)
class Process:
    """What tells a process from every other: `ticks`, its start since `boot`, does not change with the clock as
    `started` does (seconds since the epoch, all that older code wrote), and two containers may share a host name and
    even a boot but not the `namespace` of their process ids. None: its system does not tell."""

    host: str
    pid: int
    started: float | None
    boot: str | None = None
    namespace: str | None = None
    ticks: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClaimHolder(Process):
    """claim.json: the process that may run a step. `token` tells its claims apart; older code wrote none."""

    REMEDY: ClassVar[str] = "delete it if no job runs this step"
    token: str | None = None


@dataclass(frozen=True, kw_only=True)
class LoggedRow(Stored):
    """A line of metrics.jsonl: `fields` has all of it, under the names that the step logged it by."""

    fields: Json

    def __post_init__(self) -> None:
        """Raises ValueError that names the field."""
        super().__post_init__()
        _check(self.fields, "time", float, int, NoneType)
        for name in ("step", "steps"):
            _check(self.fields, name, int, NoneType)

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
class PlannedStep(Stored):
    """A step in a plan. `variants`: the labels of those that need it."""

    kind: str
    label: str
    parents: dict[str, str]
    variants: list[str]


@dataclass(frozen=True, kw_only=True)
class PlanFile(Stored):
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


@dataclass(frozen=True, kw_only=True)
class VariantSteps(Stored):
    """The ids of a variant's steps by kind; None for a kind that is not planned. `evaluate`: task → id. `added`: kind →
    id, of kinds that extensions add."""

    corpus: str | None = None
    base: str | None = None
    convert: str | None = None
    uptrain: str | None = None
    measure: str | None = None
    evaluate: dict[str, str] = field(default_factory=dict)
    added: dict[str, str] | None = later()

    @property
    def ids(self) -> list[str]:
        """Parents before children; evaluations and measurements behind all that trains."""
        return [id for _, _, id in self.each()]

    def each(self) -> Iterator[tuple[str, str | None, str]]:
        """(kind, task, id) of every step, in that order."""
        for kind in ("corpus", "base", "convert", "uptrain"):
            if id := getattr(self, kind):
                yield kind, None, id
        yield from (("evaluate", task, id) for task, id in self.evaluate.items())
        if self.measure:
            yield "measure", None, self.measure
        yield from ((kind, None, id) for kind, id in (self.added or {}).items())


@dataclass(frozen=True, kw_only=True)
class VariantRow(Stored):
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
    budget: int
    layout: KVLayout
    head_dim: int
    kv_element_bytes: int
    kv_bytes_per_token: int
    parameters: int
    few_shot: dict[str, int | dict[str, int]] | None = later()
    """Task → worked examples before each of its questions, or the same for each member of a task group."""
    config: Json
    """The resolved configuration."""
    steps: VariantSteps

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
class JobRow(Stored):
    """A line of jobs.jsonl: the steps that a job of some name runs for a sweep, written before it is submitted; or the
    ids of jobs that `mlkv cancel` ended."""

    name: str | None = later()
    steps: list[str] | None = later()
    sweep: str | None = later()
    cancelled: list[str] | None = later()


@dataclass(frozen=True, kw_only=True)
class WrittenMark(Stored):
    """wandb/written/RUN.json: the fingerprint of the run that lies whole beside it."""

    fingerprint: str


_BLANKS |= {
    Spec: {"kind": "", "schema": 1, "slice": {}, "parents": {}, "pinned": {}},
    Record: {
        **dict.fromkeys(("id", "kind", "started", "finished", "host", "device", "code"), ""),
        **dict.fromkeys(("wall_seconds", "device_seconds"), 0.0),
        **{key: {} for key in ("inputs", "facts", "outputs", "versions")},
        "peak_memory_bytes": 0,
        "work": None,
        "metrics": [],
    },
    Exit: {"returncode": None, "own": True, "finished": ""},
    Environment: {"host": "", "device": "", "versions": {}},
    PlanFile: {"name": "", "number": 0, "created": "", "accuracy": [], "axis": None, "cluster": {}, "tracking": None},
    PlannedStep: {"kind": "", "label": "", "parents": {}, "variants": []},
    VariantRow: {
        **dict.fromkeys(("pattern", "family"), ""),
        **dict.fromkeys(("kv_layers", "budget", "head_dim", "kv_element_bytes", "kv_bytes_per_token", "parameters"), 0),
        "baseline": None,
        "overrides": {},
        "kv_heads": [],
        "layout": {"kv_source_layers": [0], "kv_heads": [1], "heads": 1},
        "config": {},
        "steps": {},
    },
}
