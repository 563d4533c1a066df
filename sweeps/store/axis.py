"""The axis that a step's rows are drawn against, over all its attempts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Rows = list[tuple[int, Json]]
"""Growing positions, each with what was logged there."""
TRAINING = ("base", "uptrain")


@dataclass
class Axis:
    """A resumed attempt repeats what came after its checkpoint; the first word on a position stands, as W&B's history
    cannot be rewritten."""

    kind: str
    reached: int = -1
    _line: int = 0

    @property
    def prefix(self) -> str:
        return "train" if self.kind in TRAINING else self.kind

    @property
    def name(self) -> str:
        """Training counts optimizer steps; other kinds count the rows they log."""
        return "train/global_step" if self.kind in TRAINING else f"{self.kind}/row"

    def new_attempt(self) -> None:
        self._line = 0

    def rows(self, logged: Iterable[Json]) -> Iterator[tuple[int, Json]]:
        """Rows that move the axis on, under the names that they are shown by."""
        for row in logged:
            self._line += 1
            position = int(row["step"]) if self.kind in TRAINING and "step" in row else self._line
            if position > self.reached:
                self.reached = position
                values = {f"{self.prefix}/{key}": value for key, value in row.items() if key not in ("time", "step")}
                yield position, {self.name: position, **values, **_clock(row)}


def _clock(row: Json) -> Json:
    return {"_timestamp": row["time"]} if "time" in row else {}
