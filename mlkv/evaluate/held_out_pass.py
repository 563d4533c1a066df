"""What a model computes over the held-out windows: read once for all tasks that need it.

Bits per byte and agreement with the base read the same windows of the same checkpoint, and every checkpoint of a sweep
is compared with the same base. Final hidden states are kept, which are narrow beside logits; logits are made of them in
parts.

Legend: `N` windows, `B` windows of a pass, `T` tokens of a window, `D` width, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from .likelihoods import LOGITS_AT_ONCE
from .tasks import Scoring

Role = Literal["checkpoint", "base"]
KEPT_BYTES = 2**28
"""Hidden states of more than this are computed anew by each task."""


@dataclass
class HeldOutPass:
    """Of one model over windows `ids` `[N, T]`."""

    model: Any
    ids: NDArray[Any]
    hidden_states: Tensor | None = None
    done: int = 0
    """Windows whose hidden states it has."""

    def hidden(self, batch: slice) -> Tensor:
        """`[B, T, D]` of these windows."""
        if self.hidden_states is not None and batch.stop <= self.done:
            return self.hidden_states[batch]
        hidden_BTD: Tensor = self.model.model(torch.from_numpy(self.ids[batch]).to(self.model.device))
        if batch.start == self.done:
            self._keep(hidden_BTD)
        return hidden_BTD

    def _keep(self, hidden_BTD: Tensor) -> None:
        count, size = len(hidden_BTD), hidden_BTD[0].numel() * hidden_BTD.element_size()
        if len(self.ids) * size > KEPT_BYTES:
            return
        if self.hidden_states is None:
            self.hidden_states = hidden_BTD.new_empty(len(self.ids), *hidden_BTD.shape[1:])
        self.hidden_states[self.done : self.done + count] = hidden_BTD
        self.done += count

    def windows_at_once(self) -> int:
        """Of how many windows the logits may be in memory."""
        logits = self.ids.shape[1] * self.model.shape.vocab_size
        return max(1, int(LOGITS_AT_ONCE[self.model.device.type]) // logits)


_last: dict[Role, tuple[Hashable, HeldOutPass]] = {}


def pass_of(role: Role, scoring: Scoring, model: Any, ids: NDArray[Any]) -> HeldOutPass:
    """The pass of the checkpoint, or of the base that it is compared with; the last one of each is kept."""
    folder = scoring.checkpoint if role == "checkpoint" else scoring.base
    assert folder is not None
    recipe, corpus = scoring.recipe, scoring.corpus
    where = (_written(folder), corpus and corpus.resolve(), model.device)
    key = (*where, scoring.precision, recipe.cache if role == "checkpoint" else None, recipe.limit, recipe.batch_size)
    found = _last.get(role)
    if found is None or found[0] != key:
        _last.pop(role, None)  # its memory is needed
        found = key, HeldOutPass(model, ids)
    _last[role] = found
    found[1].model = model
    return found[1]


def _written(checkpoint: Path) -> Hashable:
    return checkpoint.resolve(), (checkpoint / "config.json").stat().st_mtime_ns
