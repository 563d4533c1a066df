"""The choices of a conversion: a new merge or widening is one row. No torch: plans read the names.

Legend: `G` KV heads of an owner, `R` base heads that become one, `K` head width, `F` MLP width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import gcd
from typing import TYPE_CHECKING, Literal

from .layout import KVLayout
from .patterns import name_of
from .registry import Registry
from .shape import DecoderShape

if TYPE_CHECKING:
    from torch import Tensor

    Combine = Callable[[Sequence[Tensor], Tensor], Tensor]


def mean(layers: Sequence[Tensor], fresh: Tensor) -> Tensor:
    """Of all heads of all layers."""
    return sum((layer.mean(1) for layer in layers), fresh.new_zeros(())) / len(layers)


def pairwise(layers: Sequence[Tensor], fresh: Tensor) -> Tensor:
    """A running mean from the lowest layer up, halved at every layer, so the topmost layer weighs most (the published
    code of arXiv 2406.09297)."""
    return reduce(lambda running, layer: (running + layer) / 2, (layer.mean(1) for layer in layers))


def first(layers: Sequence[Tensor], fresh: Tensor) -> Tensor:
    """The owner's first head of those that become one."""
    return layers[0][:, 0]


def random(layers: Sequence[Tensor], fresh: Tensor) -> Tensor:
    """Newly initialised heads instead of the base's."""
    return fresh


FrameKind = Literal["orthogonal", "any"]
"""Which matrices may map heads into a common frame."""


@dataclass(frozen=True)
class Merge:
    """How heads of a base become one.

    combine: from float32 `[G, R, K, …]` of each layer that is merged, lowest first, and freshly initialised ones
        `[G, K, …]`, to `[G, K, …]`.
    frames: heads are first mapped into one frame by orthogonal matrices, or by any (mlkv/convert/frames.py).
    weighed: each head first counts as much as its Fisher information (arXiv 2111.09832).
    restores_norms: each merged head is scaled to the size of those that it was made from.
    """

    combine: Combine
    frames: FrameKind | None = None
    weighed: bool = False
    restores_norms: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether it needs to know what the base computes."""
        return self.frames is not None or self.weighed or self.restores_norms


MERGES: Registry[Combine | Merge] = Registry(
    "merge",
    {
        "mean": mean,
        "pairwise": pairwise,
        "first": first,
        "random": random,
        "aligned": Merge(mean, frames="orthogonal", restores_norms=True),
        "svd": Merge(mean, frames="any"),
        "fisher": Merge(mean, weighed=True),
    },
)
"""A function alone is a merge that combines the base's heads as they are. `aligned`: arXiv 2412.20677, with the norms
restored. `svd`: the projection of the owner's input from which all heads are reconstructed best. `fisher`: the mean
weighed by Fisher information (arXiv 2111.09832)."""


def merge_named(name: str) -> Merge:
    """Raises ValueError for an unknown one."""
    row = MERGES.choose(name)
    return row if isinstance(row, Merge) else Merge(row)


def counted_grouping(grouping: str, merge: str, base: KVLayout, layout: KVLayout) -> str:
    """The grouping that a conversion can show: `adjacent` where there is nothing to choose. That is where an owner has
    one head, made of all, or those of the base; and where heads are newly initialised. The one rule for it, for plans
    and steps."""
    if merge == "random" or not any(
        part.heads_of(owner) > 1 and _merges_into(owner, own, part)
        for own, part in ((base.keys, layout.keys), (base.values, layout.values))
        for owner in part.owners
    ):
        return "adjacent"
    return grouping


def _merges_into(owner: int, base: KVLayout, layout: KVLayout) -> bool:
    sources = {base.kv_source_layers[layer] for layer in (owner, *layout.readers(owner))}
    return len(sources) > 1 or base.heads_of(owner) != layout.heads_of(owner)


def approximations(shape: DecoderShape, base: KVLayout, layout: KVLayout, merge: str) -> list[str]:
    """Why a conversion changes what the base computes before any heads are averaged, a line each; empty where it does
    not. Averaging itself, and the rank of a latent, are no part of it."""
    found = []
    merges_keys = any(_merges_into(owner, base.keys, layout.keys) for owner in layout.keys.owners)
    if merge_named(merge).frames and shape.qk_norm != "none" and merges_keys:
        found.append(f"keys merge as they are, as nothing folds through their norm (qk_norm = {shape.qk_norm})")
    sources = zip(base.keys.kv_source_layers, layout.keys.kv_source_layers, strict=True)
    turned = [i for i, (old, new) in enumerate(sources) if shape.rotation_of(old) != shape.rotation_of(new)]
    if turned:
        layers = f"layer{'s' if turned[1:] else ''} {', '.join(map(str, turned))}"
        found.append(f"{layers} rotate{'' if turned[1:] else 's'} queries as the owner's keys are, not as in the base")
    if layout.latent and layout != base and not shape.keeps_rotation(layout):
        found.append("heads lose a part of their rotation (latent)")
    return found


def is_trainable(name: str) -> bool:
    """Whether a merge is a function of the base's weights alone, so that a training of the merged heads reaches them:
    not with a calibration, which is of other weights, nor with newly initialised heads."""
    return name != "random" and not merge_named(name).calibrated


@dataclass(frozen=True)
class Widening:
    """How the MLPs use the parameters that merging saves."""

    width: Callable[[DecoderShape, KVLayout, KVLayout], int]
    """`F` after conversion to a layout from the base's."""
    parts: Callable[[Tensor], Tensor]
    """The divisor of each unit's outgoing weights, from the number of copies that the unit has, `[F]`."""


def _same_width(shape: DecoderShape, layout: KVLayout, base: KVLayout) -> int:
    return shape.mlp_width


def _undivided(copies_F: Tensor) -> Tensor:
    return copies_F.new_ones(copies_F.shape)


def _equal_parts(copies_F: Tensor) -> Tensor:
    return copies_F


WIDENINGS = Registry(
    "widening",
    {
        "none": Widening(_same_width, _undivided),
        "copy": Widening(DecoderShape.widened_mlp, _undivided),
        "split": Widening(DecoderShape.widened_mlp, _equal_parts),
    },
)
"""`copy` (arXiv 2406.09297) changes the function, `split` does not."""


def converted_shape(base: DecoderShape, base_layout: KVLayout, layout: KVLayout, widening: str) -> DecoderShape:
    """The shape of a base after its conversion to `layout`: only the MLP width can change. The one rule for it, for
    plans, steps and their checks. A model made from scratch has the shape that conversion would give."""
    return replace(base, mlp_width=WIDENINGS.choose(widening).width(base, layout, base_layout))


def check_conversion(base: KVLayout, layout: KVLayout) -> None:
    """Raises ValueError where the base's heads cannot be merged into `layout`: an owner's head count divides that of
    every layer that its group attends to in the base, and there are no more heads in all. The one rule for it, for
    plans and steps."""
    if (layout.layers, layout.heads) != (base.layers, base.heads):
        raise ValueError(
            f"layout has {layout.layers} layers of {layout.heads} heads, the decoder {base.layers} of {base.heads}"
        )
    if base.latent and layout != base:
        raise ValueError(f"layout {name_of(layout)}: the base caches a latent, which converts to no other layout")
    for name, own, part in (("kv_heads", base.keys, layout.keys), ("value_heads", base.values, layout.values)):
        for layer, source in enumerate(part.kv_source_layers):
            have, want = own.heads_of(layer), part.heads_of(layer)
            if have % want:
                raise ValueError(f"{name} = {want} at layer {source}: must divide the {have} of the base")
    for kind, own, part in (("key", base.keys, layout.keys), ("value", base.values, layout.values)):
        if part.budget > own.budget:
            heads = f"{kind} heads" if base.apart or layout.apart else "KV heads"
            raise ValueError(f"layout {name_of(layout)}: the base has {own.budget} {heads}, conversion cannot add any")


def most_heads(base: KVLayout, sources: Sequence[int]) -> tuple[int, ...]:
    """For each owner in `sources`, the most KV heads that the heads of `base` can be merged into: where each of its
    layers has equally many in the base, so many."""
    owners = [i for i, source in enumerate(sources) if source == i]
    return tuple(gcd(*(base.heads_of(i) for i, source in enumerate(sources) if source == owner)) for owner in owners)
