"""The typed schema that conf/ fills: one frozen value per composed configuration.

The recipes of single steps are in mlkv, with the code they configure (mlkv/recipes.py, mlkv/training_recipes.py,
mlkv/shape.py); here they are combined with what only a sweep needs. `parse` (sweeps/planning/parse.py) is the one way
from YAML to a `Config`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from typing import Annotated, Any, Literal, cast

from annotated_types import Ge, MaxLen
from pydantic import TypeAdapter, WithJsonSchema

from mlkv.cache.formats import AS_COMPUTED, CacheName
from mlkv.recipes import (
    CalibrateRecipe,
    ConvertRecipe,
    CorpusRecipe,
    Count,
    EvaluateRecipe,
    MeasureRecipe,
    Seed,
    SimilarityRecipe,
    Threads,
)
from mlkv.registry import NameOf
from mlkv.shape import DecoderShape, Positive
from mlkv.training_recipes import ElasticRecipe, TeacherRecipe, TrainRecipe
from slurm.profile import Profile
from slurm.resources import Gigabytes, Minutes, Resources
from sweeps.planning.layout_config import LayoutConfig
from sweeps.planning.search_config import SearchConfig
from sweeps.planning.stopping_config import StoppingConfig
from sweeps.steps.registry import BUILT_IN, KINDS, kind_of
from sweeps.store.errors import choices
from sweeps.store.names import PATTERN, check_name
from sweeps.tracking.target import TrackingConfig

Baseline = Literal["untouched", "mha"]
DRIVER = "search"
"""In place of a kind of step: the job that drives a search on SLURM."""
Kind = Annotated[str, NameOf(KINDS, (DRIVER,))]
TaskNames = Annotated[tuple[str, ...], WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}})]
"""Composing makes a list of one that is given alone."""
TRAINED = tuple(kind for kind in BUILT_IN if KINDS[kind].trains)
"""What several processes can do together."""
_HASHED = ("model", "layout", "cache", *BUILT_IN)


def is_hashed(group: str) -> bool:
    """Whether a group of conf/ decides what a step is; the others say where and how it runs."""
    return group in _HASHED or (group not in KEYS and group in KINDS)


@dataclass(frozen=True)
class ModelConfig:
    """A base model: `decoder` to train one here, or `hub` / `path` for a published checkpoint."""

    name: Annotated[str, MaxLen(255), WithJsonSchema({"type": ["string", "null"], "maxLength": 255})]
    """What tables call it; null: as its directory, or its repository, is called."""
    decoder: DecoderShape | None = None
    hub: str | None = None
    revision: str = "main"
    path: str | None = None
    config: dict[str, Any] | None = field(default=None, compare=False)
    """What the config.json of `hub` says of the decoder: where the hub is out of reach, a plan can still be shown."""

    def __post_init__(self) -> None:
        if self.decoder and self.pretrained:
            raise ValueError(
                "decoder and hub or path are both set: a base is trained here or loaded (by model.path alone)"
            )
        if not self.decoder and not self.pretrained:
            raise ValueError("set decoder (to train a base here), hub or path (to load one)")

    @property
    def pretrained(self) -> bool:
        return bool(self.hub or self.path)


@dataclass(frozen=True)
class EvaluateConfig:
    """Tasks that every checkpoint is scored on, and which of the scores a paper would average."""

    tasks: TaskNames = ()
    """Names of tasks, or paths of YAML files that define some."""
    include_path: str | None = None
    """A directory with definitions of more tasks."""
    accuracy: tuple[tuple[str, str], ...] = ()
    """(task, metric) pairs; accuracy is their mean."""
    axis: tuple[str, str] | None = None
    """The (task, metric) of the main figure; unset: accuracy."""
    few_shot: Count | dict[str, Count] | None = None
    """Examples before each question: of every task, or task by task; unset: as the task's own definition has it."""
    limit: Positive | None = None
    seed: Seed = 1234
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    batch_size: Positive | Literal["auto"] = 32
    threads: Threads = 1
    lengths: tuple[Positive, ...] = ()
    """Tokens of the questions of RULER's tasks (niah_single_1, …); unset: all that lm-eval has and the context fits."""
    converted: TaskNames = ()
    """Tasks, of `tasks`, that are also scored on every converted checkpoint before it is uptrained."""

    def recipe(
        self, task: str, few_shot: int | dict[str, int], cache: str = AS_COMPUTED, lengths: tuple[int, ...] = ()
    ) -> EvaluateRecipe:
        own = ("task", "few_shot", "cache", "lengths")
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(EvaluateRecipe) if f.name not in own}
        return EvaluateRecipe(task, few_shot, **shared, cache=cache, lengths=lengths)

    def few_shot_of(self, task: str) -> int | None:
        return self.few_shot.get(task) if isinstance(self.few_shot, dict) else self.few_shot

    def __post_init__(self) -> None:
        wanted = [*self.accuracy, *([self.axis] if self.axis else [])]
        for task, _metric in wanted:
            if task not in self.tasks:
                raise ValueError(f"{task} is scored (accuracy, axis) but not among tasks ({', '.join(self.tasks)})")
        for task in self.few_shot if isinstance(self.few_shot, dict) else ():
            if task not in self.tasks:
                raise ValueError(f"few_shot.{task}: not among tasks; {choices(task, self.tasks)}")
        if len(set(self.lengths)) < len(self.lengths):
            raise ValueError(f"lengths = {list(self.lengths)}: a length is scored once")
        for task in self.converted:
            if task not in self.tasks:
                raise ValueError(f"converted = {task}: not among tasks; {choices(task, self.tasks)}")


@dataclass(frozen=True)
class TrainingResources:
    """Short for fields of `cluster.resources.KIND` of every kind that trains together; unset: as they are."""

    gpus: Annotated[int, Ge(0)] | None = None
    nodes: Positive | None = None
    tasks_per_node: Positive | None = None
    cpus: Positive | None = None
    memory_gb: Gigabytes | None = None
    minutes: Minutes | None = None

    def replace_in(self, resources: Resources) -> Resources:
        """`resources` with the fields that are set here."""
        return replace(resources, **{name: value for name, value in asdict(self).items() if value is not None})


@dataclass(frozen=True)
class ClusterConfig(Profile):
    """Where jobs run; on SLURM, a site's profile besides. Nothing in here is part of a step's identity."""

    name: Literal["local", "slurm"] = "local"
    slots: Positive | None = None
    """Jobs at a time; unset: one per GPU, else half the cores."""
    checkpoints_per_job: Positive | None = None
    """Finished checkpoints whose evaluations share a job; unset: 4 on SLURM, and on this machine so many that each
    slot has one job."""
    device: Literal["cpu", "cuda"] = "cpu"
    resources: dict[Kind, Resources] = field(default_factory=dict)
    profiles: dict[Kind, dict[str, Any]] = field(default_factory=dict)
    """What a kind of step has otherwise than the profile: `resources.KIND.partition` and the like; `parse` fills it."""
    offline: bool = False
    """Jobs see no internet: what they need is fetched before they are started."""

    def __post_init__(self) -> None:
        super().__post_init__()
        changed = {
            f.name: value for f in dataclasses.fields(Profile) if (value := getattr(self, f.name)) != _default(f)
        }
        changed |= {f"resources.{kind}.{name}": v for kind, own in self.profiles.items() for name, v in own.items()}
        if self.name == "local" and (name := next(iter(changed), None)):
            raise ValueError(f"{name} = {changed[name]}: cluster local has none (valid with cluster=slurm)")
        wide = (kind for kind, resources in self.resources.items() if resources.nodes > 1)
        if self.name == "local" and (kind := next(wide, None)):
            raise ValueError(f"resources.{kind}.nodes = {self.resources[kind].nodes}: cluster local is one machine")

    def resources_of(self, kind: str) -> Resources:
        """What a job of this kind of step gets: one process per GPU where processes can train together, and the time
        limit that counts."""
        if kind not in self._known_resources:
            own = self.resources.get(kind, Resources())
            own = replace(own, minutes=self.profile_of(kind).minutes(own))
            self._known_resources[kind] = own.one_task_per_gpu() if kind != DRIVER and kind_of(kind).trains else own
        return self._known_resources[kind]

    def with_training(self, training: TrainingResources) -> ClusterConfig:
        """The same with `training` written into the resources of each kind of step that trains."""
        if training not in self._known_trainings:
            trained = {kind: training.replace_in(self.resources.get(kind, Resources())) for kind in TRAINED}
            self._known_trainings[training] = replace(self, resources={**self.resources, **trained})
        return self._known_trainings[training]

    # Asked for anew by every variant of a plan.
    @cached_property
    def _known_resources(self) -> dict[str, Resources]:
        return {}

    @cached_property
    def _known_trainings(self) -> dict[TrainingResources, ClusterConfig]:
        return {}

    def profile_of(self, kind: str) -> Profile:
        """The site's settings for jobs of this kind of step."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(Profile)}
        own = self.profiles.get(kind)
        profile: Profile = adapter(Profile).validate_python(shared | own) if own else Profile(**shared)
        return profile


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


@dataclass(frozen=True)
class SweepConfig:
    """Which variants an experiment consists of; the command line overrides `grid` key by key."""

    grid: dict[str, Any] = field(default_factory=dict)
    zip: tuple[str | tuple[str, ...], ...] = ()
    filter: str | None = None
    baselines: tuple[Baseline, ...] = ("untouched", "mha")

    @property
    def zipped(self) -> list[tuple[str, ...]]:
        """Groups of keys that advance together; a flat list of keys is one group."""
        if all(isinstance(entry, str) for entry in self.zip):
            return [cast(tuple[str, ...], self.zip)] if self.zip else []
        return [(entry,) if isinstance(entry, str) else entry for entry in self.zip]


@dataclass(frozen=True)
class Config:
    """One fully composed configuration."""

    name: Annotated[str, WithJsonSchema({"type": "string", "pattern": PATTERN})]
    reports: str
    model: ModelConfig
    layout: LayoutConfig
    corpus: CorpusRecipe
    base: TrainRecipe
    convert: ConvertRecipe
    uptrain: TrainRecipe
    evaluate: EvaluateConfig
    measure: MeasureRecipe
    cluster: ClusterConfig
    sweep: SweepConfig
    calibrate: CalibrateRecipe = field(default_factory=CalibrateRecipe)
    teacher: TeacherRecipe = field(default_factory=TeacherRecipe)
    elastic: ElasticRecipe = field(default_factory=lambda: ElasticRecipe(steps=0))
    similarity: SimilarityRecipe = field(default_factory=SimilarityRecipe)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    resources: TrainingResources = field(default_factory=TrainingResources)
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    cache: CacheName = AS_COMPUTED
    """The format of the cache that a variant is scored and measured with."""
    added: dict[str, Any] = field(default_factory=dict)
    """The recipes of the kinds of steps that extensions add, by kind; `parse` fills it from groups of that name."""

    def __post_init__(self) -> None:
        check_name("name", self.name)
        if self.base.rungs:
            raise ValueError(f"base.rungs = {list(self.base.rungs)}: a base is trained once; only uptrain has rungs")
        if self.base.train != "all":
            raise ValueError(f"base.train = {self.base.train}: a base begins with random weights, so all are trained")
        for kind in TRAINED:
            recipe, resources = getattr(self, kind), self.cluster.resources_of(kind)
            if recipe.steps == 0:
                continue
            processes = resources.nodes * resources.tasks
            if recipe.train == "lora" and recipe.strategy == "fsdp" and processes > 1:
                raise ValueError(
                    f"{kind}.strategy = fsdp: train = lora keeps all weights in every process, as few of them are "
                    f"trained; set {kind}.strategy=ddp"
                )
            try:
                recipe.micro_batch_size(processes)
            except ValueError as error:
                raise ValueError(f"{kind}.{error} (cluster.resources.{kind})") from None

    def with_resources(self) -> Config:
        """The same with `resources` written into those of each kind of step that trains."""
        return replace(self, cluster=self.cluster.with_training(self.resources))


OF_A_KIND = tuple(f.name for f in dataclasses.fields(Profile) if f.name not in ("memory_gb", "max_submit"))
"""The fields of a profile that `cluster.resources.KIND` takes besides its own. `memory_gb` is one of its own, and
`max_submit` counts the jobs of all kinds."""
FILLED_HERE: dict[Any, set[str]] = {Config: {"added"}, ClusterConfig: {"profiles"}}
"""Fields that no configuration has; `parse` fills them."""
KEYS = frozenset(f.name for f in dataclasses.fields(Config)) - {"added"}


@cache
def adapter(schema: Any) -> TypeAdapter[Any]:
    """pydantic's, made once for each class."""
    return TypeAdapter(schema)
