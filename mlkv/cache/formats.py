"""In which numbers a cache holds keys and values: as the model computes them, or as packed integers with their scales.

The rule for bytes is here, without torch: plans, tables and figures count with it, and the caches of quantised.py hold
exactly so many. A new format is one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..layout import KVLayout
from ..registry import NameOf, Registry

AS_COMPUTED = "model"
"""The cache of a model that nothing is changed about."""
SCALE_BYTES = 2
"""Of a scale or an offset, in float16."""


@dataclass(frozen=True)
class CacheFormat:
    """What a cache makes of a vector: the keys, or the values, of one token in one KV head.

    bits: of each integer; None: the vector stays as the model computes it, and the other fields mean nothing.
    group: at most so many numbers of a vector have a scale of their own; None: one scale for the vector.
    offset: whether a group has its smallest number besides its scale (else zero is in the middle of its range).
    rotate_keys: keys are multiplied by a Hadamard matrix first, and by its inverse when they are read (arXiv
        2404.00456): one large channel then no longer sets the scale of the others.
    Raises ValueError for integers that cannot be packed, and for an empty group.

    A vector's integers depend on nothing but the vector. Scales for a channel of the keys over several tokens (KIVI,
    arXiv 2402.02750) lose less, but only the tokens that fill a group can be packed: what a query reads then depends on
    how many tokens follow, and scoring a text in one pass would not be what decoding does.
    """

    bits: int | None = None
    group: int | None = None
    offset: bool = False
    rotate_keys: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (None, 2, 4, 8):
            raise ValueError(f"bits = {self.bits}: must be 2, 4 or 8, as whole integers fill a byte")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group = {self.group}: must be at least 1")

    def groups(self, width: int) -> tuple[int, int]:
        """(number of groups, numbers in each) of a vector of `width` numbers; the last group may have fewer."""
        count = -(-width // (self.group or width))
        size = -(-width // count)
        return -(-width // size), size

    def packed_bytes(self, width: int) -> int:
        """Bytes of the integers of such a vector."""
        return -(-width * (self.bits or 0) // 8)

    def vector_bytes(self, width: int, element_bytes: int) -> int:
        """Bytes that a vector of `width` numbers takes. `element_bytes`: of a number as the model computes it."""
        if self.bits is None or not width:
            return width * element_bytes
        scales = self.groups(width)[0] * (2 if self.offset else 1)
        return self.packed_bytes(width) + scales * SCALE_BYTES

    def kv_bytes_per_token(self, layout: KVLayout, head_dim: int, element_bytes: int = 2) -> int:
        """Bytes that one token leaves in the cache: the keys and the values of every KV head of every owner."""
        sizes = (size for owner in layout.owners for size in layout.cached_sizes(owner, head_dim))
        return sum(heads * self.vector_bytes(width, element_bytes) for heads, width in sizes)


CACHES = Registry(
    "cache",
    {
        AS_COMPUTED: CacheFormat(),
        "int8": CacheFormat(bits=8),
        "int4": CacheFormat(bits=4, group=32, offset=True, rotate_keys=True),
    },
)
"""Measured on the quickstart's base: docs/caches.md."""
CacheName = Annotated[str, NameOf(CACHES)]
