"""The group `search` of conf/: how `mlkv search` chooses what to try next.

Nothing in here is part of a step's identity, so a search shares its steps with every sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlkv.recipes import Seed
from mlkv.shape import Positive

Sampler = Literal["tpe", "nsga2", "gp", "random", "grid"]
Objective = Literal["kv_bytes_per_token", "score", "decode_ms"]
BYTES, SCORE, DECODE = "kv_bytes_per_token", "score", "decode_ms"


@dataclass(frozen=True)
class SearchConfig:
    """A sampler asks for points one after another, by the results of those before it."""

    sampler: Sampler = "tpe"
    """tpe: tree-structured Parzen estimators; nsga2: a genetic algorithm; gp: Gaussian processes; grid: all in turn."""
    seed: Seed = 0
    """Of the sampler. The same seed and the same results ask for the same point."""
    objectives: tuple[Objective, ...] = ("kv_bytes_per_token", "score")
    """What is to be best at once: bytes of the cache per token, the sweep's main score, milliseconds per token."""
    concurrent: Positive | None = None
    """Trials at a time; unset: as many as jobs run on this machine at a time, on SLURM 8."""

    def __post_init__(self) -> None:
        if not self.objectives:
            raise ValueError("objectives = []: name at least one of kv_bytes_per_token, score, decode_ms")
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives = {list(self.objectives)}: each is listed once")
