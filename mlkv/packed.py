"""Several documents in one row of tokens, each of which attends to itself alone, at positions of its own.

Legend: `B` rows, `T` tokens of a row, `N` documents of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Where documents begin.

    starts: the number of each document's first token, counted over the rows end to end, and after the last that of all
    tokens, `[N + 1]` in int32. A row begins with a document.
    by_kernel: attention takes the starts themselves where it can, and no mask.
    """

    starts: Tensor
    by_kernel: bool = False

    def positions(self, rows: int, length: int) -> Tensor:
        """`[B, T]`: the number of tokens before each in its document."""
        places = torch.arange(rows * length, device=self.starts.device)
        return (places - self.starts[self._numbers(places)]).view(rows, length)

    def mask(self, rows: int, length: int) -> Tensor:
        """`[B, 1, T, T]`: true at the token itself and those before it in its document."""
        numbers_BT = self._numbers(torch.arange(rows * length, device=self.starts.device)).view(rows, length)
        causal_TT = torch.ones(length, length, dtype=torch.bool, device=numbers_BT.device).tril()
        return ((numbers_BT[:, :, None] == numbers_BT[:, None]) & causal_TT).unsqueeze(1)

    def _numbers(self, places: Tensor) -> Tensor:
        return torch.searchsorted(self.starts[1:], places.int(), right=True)


def starts_of(begins_BT: Tensor) -> Tensor:
    """`Documents.starts` of rows, from where documents begin in them, besides at their first tokens."""
    first_T = torch.arange(begins_BT.shape[1], device=begins_BT.device) == 0
    starts = (begins_BT | first_T).flatten().nonzero().flatten()
    return torch.cat([starts, starts.new_tensor([begins_BT.numel()])]).int()


def some_rows(starts: Tensor, rows_R: Tensor, length: int) -> Tensor:
    """`Documents.starts` of the rows of these numbers alone, in this order."""
    rows = int(starts[-1]) // length
    begins_BT = torch.zeros(rows * length, dtype=torch.bool, device=starts.device)
    begins_BT[starts[:-1].long()] = True
    return starts_of(begins_BT.view(rows, length)[rows_R])
