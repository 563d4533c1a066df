"""The sequences of a training run, in their order: it depends on the seed and the step alone.

Legend: `B` sequences, `T` tokens of a sequence.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..corpus.blocks import Blocks
from ..packed import starts_of
from .arguments import epoch_order

IGNORED = -100
"""The label that the loss leaves out."""


class BlockDataset(Dataset[Tensor]):
    """Every sequence of a run in the order of training: a fresh seeded permutation of the rows for each epoch.

    apart: batches say where documents begin, so that each attends to itself alone.
    """

    def __init__(self, blocks: Blocks, sequences: int, seed: int, *, apart: bool = False) -> None:
        self.blocks, self.sequences, self.seed, self.apart = blocks, sequences, seed, apart
        self._order = lru_cache(maxsize=2)(self._permutation)

    def __len__(self) -> int:
        return self.sequences

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(self.blocks.rows[self.row(i)].astype(np.int64))

    def row(self, i: int) -> int:
        """Which row the run's sequence number `i` is."""
        epoch, place = divmod(i, len(self.blocks.rows))
        return int(self._order(epoch)[place])

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        return epoch_order(self.seed, epoch).permutation(len(self.blocks.rows))

    def collate(self, rows: list[Tensor]) -> dict[str, Tensor]:
        """Padding and a row's first token, which nothing predicts, get the label that the loss leaves out."""
        rows_BT = torch.stack(rows)
        padding_BT = rows_BT == self.blocks.padding
        labels_BT = rows_BT.masked_fill(padding_BT, IGNORED)
        labels_BT[:, 0] = IGNORED
        batch = {"input_ids": rows_BT.masked_fill(padding_BT, 0), "labels": labels_BT}
        if self.apart:
            assert self.blocks.end_of_text is not None, "a corpus knows its end-of-text token"
            # A document begins with the end-of-text token before it, as where it is scored (mlkv/evaluate/bits.py): its
            # first token is predicted from that, and that from the document which it ends. So all labels stay.
            batch["documents"] = starts_of(rows_BT == self.blocks.end_of_text)
        return batch
