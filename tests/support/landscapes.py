"""Results of every grouping of a base's layers, as a sweep would have them, from a function for their damage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.data import frame
from analysis.statistics.sources import Source
from mlkv.evaluate.outcomes import Outcomes
from mlkv.groupings import groupings, of_sizes
from sweeps.store.schema import CONVERTED

WINDOWS, BYTES = 40, 100.0
BASE = 2.0
"""Bits per byte of the base's own layout."""
Groups = tuple[int, ...]


@dataclass
class Answers:
    """Bits of every window, by step."""

    parts: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def outcomes(self, step: str, task: str, metric: str) -> Outcomes:
        return Outcomes(np.arange(WINDOWS), self.parts[step], np.full(WINDOWS, BYTES))


def measured(
    damage: Callable[[Groups, int], float],
    layers: int = 4,
    heads: Sequence[int] = (1, 2, 4),
    seeds: Sequence[int] = (1, 2),
    noise: float = 0.0,
    converted: Callable[[Groups, int], float] | None = None,
    without: Callable[[Groups, int], bool] = lambda groups, heads: False,
    samples: bool = True,
) -> Source:
    """`noise`: standard deviation of a seed's score, and of a window's; the last number of `heads` is the base's."""
    random, answers, rows = np.random.default_rng(7), Answers(), []
    hard = random.normal(0, 0.3, WINDOWS)
    hard -= hard.mean()
    for groups in groupings(layers):
        for number in heads:
            for seed in seeds:
                if without(groups, number):
                    continue
                name, whole = f"{'+'.join(map(str, groups))} × {number}", (len(groups), number) == (layers, heads[-1])
                label = f"{name} uptrain.seed={seed}"
                score = BASE + (0.0 if whole else damage(groups, number)) + random.normal(0, noise)
                window = random.normal(0, noise, WINDOWS)
                answers.parts[label] = (score + hard + window - window.mean()) * BYTES
                row = _row(label, name, groups, number, seed, len(seeds), whole)
                row |= {"baseline": "mha"} if whole else {"mha": f"{'+'.join('1' * layers)} × {heads[-1]} {seed}"}
                rows.append(row | _cell("evaluate", float(answers.parts[label].mean() / BYTES), label))
                if converted:
                    rows.append(row | _cell(CONVERTED, BASE + converted(groups, number), None))
    return Source("s", frame.make(rows), samples=answers if samples else None)


def _row(label: str, name: str, groups: Groups, heads: int, seed: int, seeds: int, whole: bool) -> dict[str, Any]:
    return {
        "sweep": "s",
        "variant": label if seeds > 1 else name,
        "replicate_of": name if seeds > 1 else None,
        "kv_layers": len(groups),
        "kv_heads": str(heads),
        "budget": len(groups) * heads,
        "kv_bytes_per_token": 64 * len(groups) * heads,
        "sources": " ".join(map(str, of_sizes(groups))),
        "overrides": f"uptrain.seed={seed} layout.kv_heads={heads}",
        "seed": seed,
        "state": "DONE",
    }


def _cell(kind: str, value: float, step: str | None) -> dict[str, Any]:
    score = {"kind": kind, "task": "bits_per_byte", "metric": "bits_per_byte", "value": value, "step": step}
    return {**score, "in_axis": kind == "evaluate"}
