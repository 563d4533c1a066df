"""The choices of a conversion: one entry is all that a new merge or widening takes. No torch: plans read the names.

Legend: `G` KV heads of an owner, `R` base heads that become one, `K` head width, `F` MLP width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING

from ..layout import KVLayout
from ..registry import Registry
from ..shape import DecoderShape

if TYPE_CHECKING:
    from torch import Tensor

    Merge = Callable[[Sequence[Tensor], Tensor], Tensor]


def mean(layers: Sequence[Tensor], fresh: Tensor) -> Tensor:
    """Of all heads of all layers."""
    return sum((layer.mean(1) for layer in layers), fresh.new_zeros(())) / len(layers)


def pairwise(layers: Sequence[Tensor], fresh: Tensor) -> Tensor:
    """The published code walks upward and halves at every layer, so the topmost layer weighs most."""
    return reduce(lambda running, layer: (running + layer) / 2, (layer.mean(1) for layer in layers))


def first(layers: Sequence[Tensor], fresh: Tensor) -> Tensor:
    """The owner's first head of each run."""
    return layers[0][:, 0]


def random(layers: Sequence[Tensor], fresh: Tensor) -> Tensor:
    """The base's heads are forgotten."""
    return fresh


MERGES: Registry[Merge] = Registry("merge", {"mean": mean, "pairwise": pairwise, "first": first, "random": random})
"""How heads become one: from float32 `[G, R, K, …]` of each layer that is merged, lowest first, and freshly initialised
ones `[G, K, …]`, to `[G, K, …]`."""


@dataclass(frozen=True)
class Widening:
    """What becomes of the parameters that merging saves."""

    width: Callable[[DecoderShape, KVLayout, KVLayout], int]
    """`F` after conversion to a layout from the base's."""
    parts: Callable[[Tensor], Tensor]
    """By what the outgoing weights of each unit are divided, from how many units are copies of the same one, `[F]`."""


def _as_it_is(shape: DecoderShape, layout: KVLayout, base: KVLayout) -> int:
    return shape.mlp_width


def _undivided(copies_F: Tensor) -> Tensor:
    return copies_F.new_ones(copies_F.shape)


def _equal_parts(copies_F: Tensor) -> Tensor:
    return copies_F


WIDENINGS = Registry(
    "widening",
    {
        "none": Widening(_as_it_is, _undivided),
        "copy": Widening(DecoderShape.widened_mlp, _undivided),
        "split": Widening(DecoderShape.widened_mlp, _equal_parts),
    },
)
"""`copy` (arXiv 2406.09297) changes the function, `split` does not."""


def converted_shape(base: DecoderShape, base_layout: KVLayout, layout: KVLayout, widening: str) -> DecoderShape:
    """The shape of a base after its conversion to `layout`: only the MLP width can change. The one rule for it: plans,
    steps and their checks all ask here. A model that is made from scratch gets the shape that conversion would give."""
    return replace(base, mlp_width=WIDENINGS.choose(widening).width(base, layout, base_layout))
