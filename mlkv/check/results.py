"""What a check found, as values, JSON and words. Needs the standard library alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["pass", "FAIL", "skipped"]

SCHEMA = 1
"""Rises when a field of the JSON changes its meaning or goes; new fields may come without."""


@dataclass(frozen=True)
class Found:
    """What a check measured: a difference, which passes up to a bound, and words about it."""

    difference: float
    note: str = ""
    bound: float | None = None
    """None: the bound of the model's number format."""


class Skipped(Exception):
    """A check that does not apply to this model; the message says why."""


@dataclass(frozen=True)
class Result:
    """One check of one model.

    difference, bound: None where nothing was measured.
    """

    name: str
    subject: str
    state: State
    difference: float | None = None
    bound: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """All checks of one model, and what they were made with."""

    model: str
    model_type: str
    weights: Literal["checkpoint", "random"]
    compared: Literal["logits", "hidden states"]
    dtype: str
    device: str
    seed: int
    tokens: int
    versions: dict[str, str]
    checks: tuple[Result, ...]

    @property
    def faults(self) -> int:
        return sum(result.state == "FAIL" for result in self.checks)

    def as_dict(self) -> dict[str, object]:
        """For JSON; its keys stay."""
        return {"schema": SCHEMA, **asdict(self), "faults": self.faults}
