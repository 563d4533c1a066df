"""How many texts a pass of an evaluation reads: a number, or as many as memory has room for.

Scores do not depend on it beyond rounding. With a number, passes are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from ..device import available_memory, is_out_of_memory
from ..layout import KVLayout
from ..shape import DecoderShape

T = TypeVar("T")

MOST_TOKENS = {"cpu": 2**13, "cuda": 2**18}
"""Of a pass whose size memory decides. On CPUs passes of 1,024 to 8,192 tokens take equally long a token, larger ones
longer (measured)."""


@dataclass
class BatchSize:
    """`rows`: the number, or None for what memory has room for. share: of the free memory, the part that a pass may
    take; halved whenever memory runs out all the same."""

    rows: int | None
    shape: DecoderShape
    layout: KVLayout
    device: torch.device
    share: float = 0.5

    @classmethod
    def of(cls, size: int | Literal["auto"], model: torch.nn.Module) -> BatchSize:
        """For a model as hf.py makes it."""
        shape, layout = model.shape, model.layout
        device = next(model.parameters()).device
        return cls(None if size == "auto" else size, shape, layout, device)  # type: ignore[arg-type]

    def at(self, length: int) -> int:
        """Rows of `length` tokens in one pass."""
        if self.rows is not None:
            return self.rows
        room = int(self.share * _free(self.device)) // (length * token_bytes(self.shape, self.layout))
        return max(1, min(room, MOST_TOKENS[self.device.type] // length))

    def attempt(self, length: int, read: Callable[[], T]) -> T | None:
        """What `read` returns; None where memory ran out, and the next pass is to have fewer rows. Raises the error
        where the number of rows is given, and where a single row is too much."""
        try:
            return read()
        except Exception as error:
            if self.rows is not None or not is_out_of_memory(error) or self.at(length) == 1:
                raise
        # Behind the handler: the error holds the frames, and these what did not fit.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.share /= 2
        return None


def token_bytes(shape: DecoderShape, layout: KVLayout) -> int:
    """An upper bound of the memory that one more token of a text takes in a pass without gradients: what a layer
    computes in float32, the layers' keys and values, and the logits of 1 token (those of more are made in parts)."""
    widths = 8 * shape.width + 4 * shape.heads * shape.head_dim + 4 * shape.mlp_width
    cached = sum(
        heads * width for owner in layout.owners for heads, width in layout.cached_sizes(owner, shape.head_dim)
    )
    weights = 3 * shape.heads * shape.context if shape.attention_cap else 0  # no kernel caps: they are in memory
    return 4 * (widths + cached + 2 * shape.vocab_size + weights)


def _free(device: torch.device) -> int:
    """Bytes that a pass can still take: on a GPU also those that torch holds and does not use."""
    if device.type != "cuda":
        return available_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
