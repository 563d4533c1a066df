"""How far a running step is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sweeps.store.schema import LoggedRow
from sweeps.store.stepdir import State


@dataclass(frozen=True)
class Position:
    """How far a running step is, by the newest row that it logged. What a row lacks, or has as something else than a
    finite number, is None: a measurement logs a speed and no count of tokens, training that diverged no loss."""

    step: int | None
    steps: int | None
    loss: float | None
    tokens: float | None
    """Trained on so far."""
    tokens_per_second: float | None

    @classmethod
    def of(cls, state: State) -> Position:
        row = state.progress or LoggedRow(fields={})
        loss, tokens, rate = (_number(row.fields.get(name)) for name in ("loss", "tokens", "tokens_per_second"))
        return cls(row.step, row.steps, loss, tokens, rate)

    @property
    def share(self) -> float | None:
        """The part that is done, from 0 to 1."""
        return min(self.step / self.steps, 1.0) if self.step is not None and self.steps else None

    @property
    def seconds_left(self) -> float | None:
        """By the step's own pace, for steps that count tokens."""
        if not (self.step and self.steps and self.tokens and self.tokens_per_second):
            return None
        return max(self.steps - self.step, 0) * self.tokens / self.step / self.tokens_per_second

    def text(self) -> str:
        """`30/40  loss 2.345  100 tok/s`."""
        parts = [f"{self.step}/{self.steps}"] if self.step is not None and self.steps else []
        parts += [f"loss {self.loss:.3f}"] if self.loss is not None else []
        parts += [f"{self.tokens_per_second:,.0f} tok/s"] if self.tokens_per_second is not None else []
        return "  ".join(parts)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
