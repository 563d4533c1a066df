"""Signatures: what numbers of a finished step say of the run that they are from, by fixed rules. Needs no torch.

A score that is no better than no model at all is `collapsed`; a training whose loss jumped or ended far above its best
is `unstable`. A step that found no memory has failed, and its reason begins with OUT_OF_MEMORY.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .context import MetricRow
from .files import Json

COLLAPSED, UNSTABLE, OUT_OF_MEMORY = "collapsed", "unstable", "out of memory"
LOSS_DIVERGED, LOSS_SPIKED = "training diverged", "a spike over the running median"
"""In the reason of a training that failed so."""
CHANCE, SPIKES, DIVERGED = "chance", "spikes", "diverged"
"""Facts of a record."""
REACH = 1.96
"""Standard errors that a score must be better than chance by, or it is within noise of it."""


@dataclass(frozen=True)
class Signature:
    """score: of whose value it is, by its metric (of a group's member: `MEMBER/METRIC`); empty: of the whole step.
    why: the rule and its numbers, in one line."""

    word: str
    why: str
    score: str = ""

    @property
    def line(self) -> str:
        return f"{self.word}: {self.why}"


@dataclass(frozen=True)
class Chance:
    """What a score is without a model. stderr: of the difference between the two on the same samples. by: what gets
    it, in words. lower_is_better: the direction of the score."""

    value: float
    stderr: float
    by: str
    lower_is_better: bool = False

    def as_json(self) -> Json:
        return asdict(self)

    def reaches(self, score: float) -> bool:
        """Whether a score is no better than this, or within noise of it."""
        better = self.value - score if self.lower_is_better else score - self.value
        return better <= REACH * self.stderr


def of_scores(rows: Sequence[MetricRow], facts: Mapping[str, Any]) -> list[Signature]:
    """Of an evaluation. Records of code that did not note what chance is have none."""
    levels = {name: Chance(**level) for name, level in (facts.get(CHANCE) or {}).items()}
    found = []
    for row in rows:
        name = f"{row.subtask}/{row.metric}" if row.subtask else row.metric
        level = levels.get(name)
        if level and row.value is not None and level.reaches(row.value):
            why = f"{name} = {row.value:.4g} is no better than {level.by}, {level.value:.4g}"
            found.append(Signature(COLLAPSED, f"{why} (noise {REACH * level.stderr:.2g})", name))
    return found


def of_training(rows: Sequence[MetricRow], facts: Mapping[str, Any]) -> list[Signature]:
    """Of a training: its worst spike, and how it ended."""
    reasons = []
    if spikes := facts.get(SPIKES):
        worst = max(spikes, key=lambda spike: spike["loss"] - spike["median"])
        count = f"{len(spikes)} logged losses spiked" if len(spikes) > 1 else "a logged loss spiked"
        numbers = f"{worst['loss']:.3g} at step {worst['step']}, over a running median of {worst['median']:.3g}"
        reasons.append(f"{count} ({numbers})")
    if ended := facts.get(DIVERGED):
        numbers = f"{ended['last']:.3g}, over {ended['best']:.3g} at step {ended['step']}"
        reasons.append(f"its loss ended far above its best ({numbers})")
    return [Signature(UNSTABLE, ", ".join(reasons))] if reasons else []
