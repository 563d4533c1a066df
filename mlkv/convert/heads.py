"""The attention heads of a base that become one owner's: read, mapped into common frames, and written back.

Legend: `C` width of the input, and one more for the bias; `D` width, `G` KV heads of the new owner, `K` head width,
`M` heads of the base that become one, over all layers, `N` calibration tokens, `Q` query heads of a KV head, `R` heads
of one layer that become one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..layout import KINDS, Kind, KVLayout
from .frames import Frames, key_frames

if TYPE_CHECKING:
    from .calibration import Calibration

State = dict[str, Tensor]


RIDGE = 1e-3
"""Added to the inputs' second moments, as a share of their mean, where projections are fitted: it keeps a fit on few
tokens from following their noise."""


@dataclass(frozen=True)
class Group:
    """An owner of a new layout and the layers that will read it, in the base that it is made from.

    rotated: how many dimensions of a key its position rotates.
    kinds: what they read of the owner. Where K and V are apart an owner of both has a group for each, and `base` and
        `layout` are those of the one kind.
    """

    base: KVLayout
    layout: KVLayout
    owner: int
    rotated: int
    kinds: tuple[Kind, ...] = KINDS

    @property
    def kv_heads(self) -> int:
        """`G`"""
        return self.layout.heads_of(self.owner)

    @property
    def layers(self) -> tuple[int, ...]:
        """The owner and its readers, lowest first."""
        return (self.owner, *self.layout.readers(self.owner))

    @property
    def sources(self) -> tuple[int, ...]:
        """Layers of the base whose keys and values they read there, lowest first."""
        return tuple(dict.fromkeys(self.base.kv_source_layers[layer] for layer in self.layers))

    def readers_of(self, source: int) -> list[int]:
        """The group's layers that read this layer of the base."""
        return [layer for layer in self.layers if self.base.kv_source_layers[layer] == source]

    @property
    def run_lengths(self) -> list[int]:
        """`R` of each source."""
        return [self.base.heads_of(layer) // self.kv_heads for layer in self.sources]

    @property
    def merges(self) -> bool:
        """Whether any heads become one here; else the base's stay as they are."""
        return len(self.sources) > 1 or self.base.heads_of(self.sources[0]) != self.kv_heads


def groups_of(base: KVLayout, layout: KVLayout, rotated: int) -> Iterator[Group]:
    """A group for each owner of a layout; for each owner of keys and each of values where the two are apart."""
    if not (base.apart or layout.apart):
        yield from (Group(base, layout, owner, rotated) for owner in layout.owners)
        return
    for kind in KINDS:
        own, part = base.part(kind), layout.part(kind)
        yield from (Group(own, part, owner, rotated, (kind,)) for owner in part.owners)


def projection(state: State, layer: int, kind: str) -> Tensor:
    """Weight and bias of `q`, `k` or `v` side by side, `[heads · K, C]`, in float32."""
    name = f"blocks.{layer}.attention.{kind}"
    weight, bias = state[f"{name}.weight"].float(), state.get(f"{name}.bias")
    return weight if bias is None else torch.cat([weight, bias.float()[:, None]], 1)


def written(state: State, layer: int, kind: str, values: Tensor) -> State:
    """`projection` backwards."""
    name = f"blocks.{layer}.attention.{kind}"
    if f"{name}.bias" not in state:
        return {f"{name}.weight": values}
    return {f"{name}.weight": values[:, :-1], f"{name}.bias": values[:, -1]}


def with_bias(inputs_ND: Tensor, width: int) -> Tensor:
    """Inputs `[N, C]` of a projection that is `width` wide: with a column of ones where it has a bias."""
    if width == inputs_ND.shape[1]:
        return inputs_ND
    return torch.cat([inputs_ND, inputs_ND.new_ones(len(inputs_ND), 1)], 1)


def apply(heads_HKC: Tensor, inputs_ND: Tensor) -> Tensor:
    """What heads compute from these inputs, before any rotation: `[heads, N, K]`."""
    return with_bias(inputs_ND, heads_HKC.shape[-1]) @ heads_HKC.mT


def computed(state: State, layer: int, kind: str, inputs_ND: Tensor, heads: int) -> Tensor:
    """What the heads of a layer compute from these inputs, before any rotation: `[heads, N, K]`."""
    return apply(projection(state, layer, kind).unflatten(0, (heads, -1)), inputs_ND)


def in_frames(state: State, group: Group, frames: Frames, calibration: Calibration, refit: bool = False) -> State:
    """The projections of a group's layers with every head mapped into a frame that it has in common with those it will
    be averaged with. With orthogonal maps the model computes the same as before.

    refit: a reader's heads are first replaced by what comes closest to them when computed from the owner's input, which
    is what the merged head will see.
    """
    changed: State = {}
    for kind in group.kinds:
        heads = {layer: fitted_heads(state, group, layer, kind, calibration, refit) for layer in group.sources}
        if kind == "k" and f"blocks.{group.sources[0]}.attention.k_norm.weight" in state:
            # Behind the norm nothing undoes a map of the keys (mlkv/convert/key_norms.py).
            for layer in group.sources if refit else ():
                changed |= written(state, layer, kind, heads[layer].flatten(0, 1))
            continue
        inputs = {layer: calibration.inputs[group.owner if refit else layer] for layer in group.sources}
        outputs = [apply(heads[layer], inputs[layer]).unflatten(0, (group.kv_heads, -1)) for layer in group.sources]
        heads_GMNK = torch.cat(outputs, 1).double()  # in float32 the maps themselves would not be orthogonal enough
        maps_GMKK = key_frames(frames, heads_GMNK, group.rotated) if kind == "k" else frames(heads_GMNK)
        for layer, maps_GRKK in zip(group.sources, maps_GMKK.split(group.run_lengths, 1), strict=True):
            changed |= _mapped(state, group, layer, kind, heads[layer], maps_GRKK.flatten(0, 1).float())
    return changed


def fitted_heads(state: State, group: Group, layer: int, kind: str, calibration: Calibration, refit: bool) -> Tensor:
    """A layer's projection head by head, `[heads, K, C]`; `refit` as in `in_frames`."""
    own = projection(state, layer, kind).unflatten(0, (group.base.heads_of(layer), -1))
    if not refit or layer == group.owner:
        return own
    wanted_NP = apply(own, calibration.inputs[layer]).transpose(0, 1).flatten(1).double()
    inputs_NC = with_bias(calibration.inputs[group.owner], own.shape[-1]).double()
    moments_CC = inputs_NC.T @ inputs_NC
    ridge = RIDGE * moments_CC.diagonal().mean() * torch.eye(len(moments_CC), dtype=moments_CC.dtype)
    fitted_CP = torch.linalg.solve(moments_CC + ridge, inputs_NC.T @ wanted_NP)
    return fitted_CP.T.float().unflatten(0, own.shape[:2])


def _mapped(state: State, group: Group, source: int, kind: str, heads_HKC: Tensor, maps_HKK: Tensor) -> State:
    """One layer's keys or values through these maps, and what uses them in each of the group's layers that read it."""
    heads = len(maps_HKK)
    changed = written(state, source, kind, (maps_HKK.mT @ heads_HKC).flatten(0, 1))
    for layer in group.readers_of(source):
        if kind == "k":
            queries_HQKC = projection(state, layer, "q").unflatten(0, (heads, -1, maps_HKK.shape[-1]))
            changed |= written(state, layer, "q", (maps_HKK.mT[:, None] @ queries_HQKC).flatten(0, 2))
        else:
            name = f"blocks.{layer}.attention.o.weight"
            outputs_DHQK = state[name].float().unflatten(1, (heads, -1, maps_HKK.shape[-1]))
            changed[name] = (outputs_DHQK @ maps_HKK).flatten(1)
    return changed


def weighed(state: State, group: Group, calibration: Calibration) -> State:
    """Keys and values of a group, each head times its share of the Fisher information of those it is averaged with, so
    that their mean is the mean weighed by it (arXiv 2111.09832)."""
    changed: State = {}
    for kind in group.kinds:
        index = KINDS.index(kind)
        fisher = [calibration.fisher[layer][index].unflatten(0, (group.kv_heads, -1)) for layer in group.sources]
        mean_G1 = torch.cat(fisher, 1).mean(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        for layer, weight_GR in zip(group.sources, fisher, strict=True):
            share = (weight_GR / mean_G1).flatten()[:, None, None]
            heads = projection(state, layer, kind).unflatten(0, (len(share), -1))
            changed |= written(state, layer, kind, (heads * share).flatten(0, 1))
    return changed


def restored_norms(merged: State, old: State, group: Group, calibration: Calibration) -> State:
    """The owner's merged projections, each head scaled so that what it computes from the owner's input has the root
    mean square of the heads that it was made from: an average of heads that differ is smaller than they are."""
    changed: State = {}
    for kind in group.kinds:
        squares = [
            computed(old, layer, kind, calibration.inputs[layer], group.base.heads_of(layer))
            .square()
            .mean((1, 2))
            .unflatten(0, (group.kv_heads, -1))
            for layer in group.sources
        ]
        wanted_G = torch.cat(squares, 1).mean(1)
        given_G = (
            computed(merged, group.owner, kind, calibration.inputs[group.owner], group.kv_heads).square().mean((1, 2))
        )
        scale_G = (wanted_G / given_G.clamp(min=torch.finfo(given_G.dtype).tiny)).sqrt()
        values = projection(merged, group.owner, kind).unflatten(0, (group.kv_heads, -1)) * scale_G[:, None, None]
        changed |= written(merged, group.owner, kind, values.flatten(0, 1))
    return changed
