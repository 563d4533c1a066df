"""The group `stopping` of conf/: which points of a sweep or a search are trained on, and what all may cost together.

Nothing in here is part of a step's identity: a rule decides which steps are run, and never what a step is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from mlkv.shape import Positive

BUDGETS = ("trials", "tokens", "gpu_hours")


@dataclass(frozen=True)
class StoppingConfig:
    """`halving`: of the points that reach a rung of `uptrain.rungs`, the best are trained on to the next one. Tokens
    and hours are those that this sweep spends: a step that was done before costs nothing."""

    rule: Literal["none", "halving"] = "none"
    eta: Annotated[int, Ge(2), Le(1000)] = 3
    """`halving`: one in so many goes on from each rung (asynchronous successive halving, arXiv 1810.05934)."""
    trials: Positive | None = None
    """So many points at most: of a sweep the first; unset: all that it has, or that the sampler asks for."""
    tokens: Positive | None = None
    """Tokens to uptrain on at most, over all points; a training that would go over it is not begun."""
    gpu_hours: Annotated[float, Gt(0), Le(1e9)] | None = None
    """Hours of a device to spend at most, over all steps; nothing is begun once they are spent."""

    @property
    def active(self) -> bool:
        """Whether there is anything to decide while the sweep runs."""
        return self.rule != "none" or any(getattr(self, name) is not None for name in BUDGETS)

    @property
    def words(self) -> str:
        """`stopping: one point in 3 goes on from each rung; at most 12 trials`."""
        halving = [f"one point in {self.eta} goes on from each rung"] if self.rule == "halving" else []
        given = {"trials": self.trials, "tokens": self.tokens, "hours of a device": self.gpu_hours}
        most = ", ".join(f"{value:,} {name}" for name, value in given.items() if value is not None)
        return f"stopping: {'; '.join([*halving, *([f'at most {most}'] if most else [])])}"
