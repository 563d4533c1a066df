"""The axis that a step's rows are drawn against, over all its attempts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mlkv.files import Json
from sweeps.store.schema import LoggedRow

Rows = list[tuple[int, Json]]
"""Growing positions, each with what was logged there."""


@dataclass
class Axis:
    """A resumed attempt repeats the rows after its checkpoint. The first row at a position is used, because W&B's
    history cannot be rewritten."""

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

    def rows(self, logged: Iterable[LoggedRow]) -> Iterator[tuple[int, Json]]:
        """Rows that move the axis on, under the names that they are shown by."""
        for row in logged:
            self._line += 1
            position = row.step if self.counts_steps and row.step is not None else self._line
            if position > self.reached:
                self.reached = position
                named = {shown_name(key): value for key, value in row.fields.items() if key not in _NOT_SHOWN}
                shown = {f"{self.prefix}/{key}": value for key, value in named.items()}
                clock = {} if row.time is None else {"_timestamp": row.time}
                yield position, {self.name: position, **shown, **clock}


_NOT_SHOWN = ("time", "step")
_SHOWN_AS = {"lr": "learning_rate"}
"""What W&B's users, and Trainer's own callback, call what is logged here under another name."""


def shown_name(key: str) -> str:
    """The name by which W&B shows what is logged, with or without a prefix: `train/lr` of earlier code, too."""
    prefix, slash, name = key.rpartition("/")
    return f"{prefix}{slash}{_SHOWN_AS.get(name, name)}"
