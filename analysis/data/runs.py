"""A run of an evaluation that somebody else did: whose it is, under which settings, and its scores."""

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
    """What one file tells."""

    file: str
    model: str
    """The model's path or name; of a file that names none, the file itself."""
    identity: dict[str, str]
    """Every model argument, and what else makes it another run: backend, limit, chat template, system instruction."""
    details: dict[str, str] = field(default_factory=dict)
    """What lm-eval found out about the model (hash of the weights, dtype): a file may lack it."""
    settings: dict[str, dict[str, str]] = field(default_factory=dict)
    """Setting → task → its value there: n-shot, task version, samples, seeds. May lack too."""
    scores: list[Score] = field(default_factory=list)
    members: dict[str, set[str]] = field(default_factory=dict)
    """Group → all tasks and groups below it."""
    computed: set[str] = field(default_factory=set)
    """Groups without an aggregate of their own: the mean of their members stands for them."""
    falling: set[tuple[str, str]] = field(default_factory=set)
    """(task, metric) that it calls better when lower."""
    date: float = 0.0
