"""A variant: one row of a paper's table, with its steps and what it is called."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property

from mlkv.cache.formats import AS_COMPUTED, CACHES
from mlkv.evaluate.task_files import TaskFiles
from mlkv.layout import KVLayout
from mlkv.merges import converted_shape
from mlkv.patterns import family_of, name_of
from mlkv.shape import DecoderShape
from sweeps.planning.config import Baseline, Config
from sweeps.planning.plain_config import Values
from sweeps.planning.resolve import (
    LM_EVAL,
    Model,
)
from sweeps.steps.registry import kind_of
from sweeps.steps.step import Step
from sweeps.store.schema import VariantRow, VariantSteps

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_ROLES = ("corpus", "base", "calibrate", "teacher", "elastic", "convert", "uptrain", "measure", "similarity")
"""Roles of which a variant has one step at most; of `evaluate` it has one for each task."""
_OF_THE_SWEEP = ("sweep", "reports", "stopping", "search")
"""Parts of a configuration that say nothing of a single variant."""


@cache
def parameters_of(shape: DecoderShape, layout: KVLayout) -> int:
    """Of a sweep's variants, many have the same."""
    return shape.parameters(layout)


@dataclass(frozen=True)
class Variant:
    """A base with a layout, its training, and the steps that make and score it. `varying`: the override lines in which
    the points of the sweep differ."""

    config: Config
    values: Values
    model: Model
    layout: KVLayout
    baseline: Baseline | None
    varying: tuple[str, ...]
    label: str = ""
    corpus: Step | None = None
    corpus_note: str = ""
    """What the plan found out about the corpus's text."""
    base: Step | None = None
    calibrate: Step | None = None
    teacher: Step | None = None
    elastic: Step | None = None
    convert: Step | None = None
    earlier: tuple[Step, ...] = ()
    """The trainings that its own continues, the shortest first."""
    uptrain: Step | None = None
    evaluate: dict[str, Step] = field(default_factory=dict)
    """By task."""
    converted: dict[str, Step] = field(default_factory=dict)
    """By task, those that score the conversion before uptraining; without uptraining they are those of `evaluate`."""
    task_files: dict[str, TaskFiles] = field(default_factory=dict)
    """Of the tasks that files of the user's define."""
    measure: Step | None = None
    similarity: Step | None = None
    """Of the base. The untouched one alone has it, where there is one."""
    added: dict[str, Step] = field(default_factory=dict)
    """By kind, those of extensions."""

    @property
    def checkpoint(self) -> Step | None:
        """The step that makes what is scored; None where only a shape is measured."""
        return self.uptrain or self.convert or self.base

    @property
    def steps(self) -> list[Step]:
        """Parents before children."""
        chain = [
            self.corpus,
            self.base,
            self.calibrate,
            self.teacher,
            self.elastic,
            self.convert,
            *self.earlier,
            self.uptrain,
        ]
        chain += [*self.converted.values(), *self.evaluate.values(), self.measure, self.similarity]
        chain += self.added.values()
        return list({step.id: step for step in chain if step}.values())

    @cached_property
    def shape(self) -> DecoderShape:
        """The decoder's, converted or from scratch: MLPs as wide as the recipe's widening makes them."""
        return converted_shape(self.model.shape, self.model.layout, self.layout, self.config.convert.widening)

    @property
    def family(self) -> str:
        return family_of(self.layout, self.config.layout.pattern)

    @property
    def name(self) -> str:
        return name_of(self.layout, self.config.layout.pattern)

    @property
    def parameters(self) -> int:
        return parameters_of(self.shape, self.layout)

    @property
    def element_bytes(self) -> int:
        """Bytes of a number as the model computes it."""
        return ELEMENT_BYTES[self.config.measure.dtype]

    @property
    def kv_bytes_per_token(self) -> int:
        """Of the cache that it is scored and measured with."""
        return self.kv_bytes_of(self.element_bytes)

    def kv_bytes_of(self, element_bytes: int) -> int:
        """The same for a model that computes in numbers of so many bytes."""
        return CACHES[self.config.cache].kv_bytes_per_token(self.layout, self.shape.head_dim, element_bytes)

    @property
    def few_shot(self) -> dict[str, int | dict[str, int]]:
        """Examples before each question of a task of lm-eval; what a function scores has no questions."""
        return {task: step.slice["few_shot"] for task, step in self.evaluate.items() if LM_EVAL in step.pinned}

    def work(self, step: Step) -> float:
        """The amount of work in a step: parameters (millions) times what passes through them."""
        work = kind_of(step.kind).work(step, self.parameters / 1e6, self.config.corpus.sequence_length)
        # Layers that wait for each other run several times over a text.
        return work * {"uptrain": self.layout.training_cost, "evaluate": self.layout.prefill_cost}.get(step.kind, 1.0)

    def row(self) -> VariantRow:
        """What the store holds of it, for tables."""
        layout = self.layout
        added = {kind: step.id for kind, step in self.added.items()} or None
        earlier = [step.id for step in self.earlier] or None
        ids = {role: step.id if (step := getattr(self, role)) else None for role in _ROLES}
        return VariantRow(
            variant=self.label,
            baseline=self.baseline,
            overrides=dict(line.split("=", 1) for line in self.varying),
            pattern=self.config.layout.pattern,
            family=self.family,
            kv_layers=layout.kv_layers,
            kv_heads=list(layout.kv_heads),
            budget=layout.budget,
            layout=layout,
            head_dim=self.shape.head_dim,
            kv_element_bytes=self.element_bytes if CACHES[self.config.cache].bits is None else None,
            kv_bytes_per_token=self.kv_bytes_per_token,
            cache=None if self.config.cache == AS_COMPUTED else self.config.cache,
            parameters=self.parameters,
            few_shot=self.few_shot,
            config={key: value for key, value in self.values.items() if key not in _OF_THE_SWEEP},
            steps=VariantSteps(
                **ids,
                evaluate={task: step.id for task, step in self.evaluate.items()},
                added=added,
                earlier=earlier,
                converted={task: step.id for task, step in self.converted.items()} or None,
            ),
        )
