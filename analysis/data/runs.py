"""A run of an evaluation that was done elsewhere: its model, its settings and its scores."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Score:
    """`reason` says why there is no value; `n_shot` is the number of worked examples before each question."""

    task: str
    metric: str
    value: float | None
    stderr: float | None = None
    n: int | None = None
    reason: str | None = None
    n_shot: int | None = None


@dataclass
class Run:
    """The contents of one file."""

    file: str
    model: str
    """The model's path or name; the file's name where the file names no model."""
    identity: dict[str, str]
    """Every model argument, and what else makes a run a different one: backend, limit, chat template, system
    instruction."""
    details: dict[str, str] = field(default_factory=dict)
    """What lm-eval recorded of the model (hash of the weights, dtype); a file may lack it."""
    settings: dict[str, dict[str, str]] = field(default_factory=dict)
    """Setting → task → its value: n-shot, task version, samples, seeds. A file may lack these too."""
    scores: list[Score] = field(default_factory=list)
    members: dict[str, set[str]] = field(default_factory=dict)
    """Group → all tasks and groups below it."""
    computed: set[str] = field(default_factory=set)
    """Groups without an aggregate of their own, scored as the mean of their members."""
    falling: set[tuple[str, str]] = field(default_factory=set)
    """(task, metric) that are better when lower, by the file itself."""
    date: float = 0.0
