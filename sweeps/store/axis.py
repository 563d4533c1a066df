"""The axis that a step's rows are drawn against, over all its attempts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Rows = list[tuple[int, Json]]
"""Growing positions, each with what was logged there."""


@dataclass
class Axis:
    """A resumed attempt repeats what came after its checkpoint; the first word on a position stands, as W&B's history
    cannot be rewritten."""

    prefix: str
    """In front of the names of what is logged."""
    counts_steps: bool = False
    """Whether positions are the optimizer steps that rows name; else they are the numbers of the rows."""
    reached: int = -1
    _line: int = 0

    @property
    def name(self) -> str:
        return f"{self.prefix}/{'global_step' if self.counts_steps else 'row'}"

    def new_attempt(self) -> None:
        self._line = 0

    def rows(self, logged: Iterable[Json]) -> Iterator[tuple[int, Json]]:
        """Rows that move the axis on, under the names that they are shown by."""
        for row in logged:
            self._line += 1
            position = int(row["step"]) if self.counts_steps and "step" in row else self._line
            if position > self.reached:
                self.reached = position
                values = {f"{self.prefix}/{key}": value for key, value in row.items() if key not in ("time", "step")}
                yield position, {self.name: position, **values, **_clock(row)}


def _clock(row: Json) -> Json:
    return {"_timestamp": row["time"]} if "time" in row else {}
