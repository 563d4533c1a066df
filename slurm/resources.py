"""What one job needs. The one class for it: configurations fill it, both executors read it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, get_args, get_type_hints

from annotated_types import Ge
from pydantic import AllowInfNan, BeforeValidator, WithJsonSchema

from .limits import MEMORY_FORMS, MEMORY_PATTERN, TIME_FORMS, TIME_PATTERN, gigabytes_of, minutes_of

Minutes = Annotated[
    int,
    Ge(1),
    BeforeValidator(minutes_of),
    WithJsonSchema(
        {
            "description": TIME_FORMS,
            "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": TIME_PATTERN}],
        }
    ),
]
"""A time limit; configurations may write it in any of SLURM's forms."""
Gigabytes = Annotated[
    float,
    Ge(0),
    AllowInfNan(False),
    BeforeValidator(gigabytes_of),
    WithJsonSchema(
        {
            "description": MEMORY_FORMS,
            "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": MEMORY_PATTERN}],
        }
    ),
]
"""Memory per node; configurations may write it with a unit. 0: all that the node has."""


@dataclass(frozen=True)
class Resources:
    """The resources of one job. Raises ValueError naming the field that is out of its range."""

    gpus: Annotated[int, Ge(0)] = 0
    """Per node."""
    nodes: Annotated[int, Ge(1)] = 1
    tasks_per_node: Annotated[int, Ge(1)] | None = None
    """Processes; unset: one per GPU for steps that train (`one_task_per_gpu`), else one."""
    cpus: Annotated[int, Ge(1)] = 1
    """Per process."""
    memory_gb: Gigabytes | None = None
    """Per node; unset: the executor's default."""
    minutes: Minutes = 60
    """The time limit, on SLURM only."""
    exclusive: bool = False
    """No other job on the node (SLURM) or on this machine (local) at the same time: for timings."""

    def __post_init__(self) -> None:
        for name, bound in _bounds().items():
            value = getattr(self, name)
            if value is not None and value < bound.ge:
                raise ValueError(f"resources.{name} = {value}: must be at least {bound.ge}")

    @property
    def tasks(self) -> int:
        """Processes per node."""
        return self.tasks_per_node or 1

    def one_task_per_gpu(self) -> Resources:
        """The same with a process for each GPU, at least one, where `tasks_per_node` is unset."""
        return replace(self, tasks_per_node=self.tasks_per_node or max(1, self.gpus))


@cache
def _bounds() -> dict[str, Ge]:
    """The lower bounds that the annotations state: pydantic checks the same ones where it reads a configuration."""
    hints = get_type_hints(Resources, include_extras=True)
    return {
        name: bound
        for name, hint in hints.items()
        for part in (hint, *get_args(hint))
        for bound in getattr(part, "__metadata__", ())
        if isinstance(bound, Ge)
    }
