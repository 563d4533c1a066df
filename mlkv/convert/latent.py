"""An owner's keys and values → a latent vector, and the maps out of it, with the least error for what reads them.

The stacked keys (the part that is not rotated) and values of all KV heads are replaced by their best approximation of
rank `R` on calibration inputs, as MHA2MLA (arXiv 2502.14837), TransMLA (2502.07864) and X-EcoMLA (2503.11132) do by
singular value decompositions. Here an error of a key counts by the queries that meet it, an error of a value by the
output projections that read it, and keys count as much as values in all (TransMLA balances their norms). A constant in
the keys adds the same to all logits of a query, and one in the values is `v_up`'s bias: both are left out of the fit.

At full rank the function stays as it was, to rounding, if each head keeps its own rotated part and all of it.

Legend: `C` width of the input, and one more for the bias; `D` width, `G` KV heads, `F` rotary planes of a head, `J`
numbers to approximate, `K` head width, `N` calibration tokens, `Q` query heads of a KV head, `R` rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..layout import KVLayout, Latent
from ..shape import DecoderShape
from .frames import key_frames, low_rank
from .heads import RIDGE, State, apply, projection, with_bias, written

if TYPE_CHECKING:
    from .calibration import Calibration

FLOOR = 1e-3
"""The least that a direction counts in which no query looks, or which no output reads, as a share of the mean."""
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Group:
    """An owner and the layers that attend to it, lowest first, in float64.

    keys, values: `[G, K, C]`. inputs: what they are computed from, `[N, D]`.
    queries, outputs, moments: of each layer, `[G, Q, K, C]`, `[D, G, Q, K]`, and the second moments of what its queries
    are computed from, `[C, C]`.
    """

    keys: Tensor
    values: Tensor
    inputs: Tensor
    queries: list[Tensor]
    outputs: list[Tensor]
    moments: list[Tensor]

    @classmethod
    def of(cls, state: State, layout: KVLayout, owner: int, calibration: Calibration) -> Group:
        heads, layers = layout.heads_of(owner), (owner, *layout.readers(owner))
        keys, values = (projection(state, owner, kind).double().unflatten(0, (heads, -1)) for kind in ("k", "v"))
        width = keys.shape[1]
        queries = [projection(state, i, "q").double().unflatten(0, (heads, -1, width)) for i in layers]
        outputs = [state[f"blocks.{i}.attention.o.weight"].double().unflatten(1, (heads, -1, width)) for i in layers]
        inputs = [with_bias(calibration.inputs[i].double(), queries[0].shape[-1]) for i in layers]
        moments = [x_NC.mT @ x_NC / len(x_NC) for x_NC in inputs]
        return cls(keys, values, calibration.inputs[owner].double(), queries, outputs, moments)

    def query_moments(self) -> Tensor:
        """Second moments of the queries that meet a KV head's keys, summed over layers and query heads: `[G, K, K]`."""
        each = [(heads @ moments @ heads.mT).sum(1) for heads, moments in zip(self.queries, self.moments, strict=True)]
        return torch.stack(each).sum(0)

    def mapped(self, keys_GKK: Tensor, queries_GKK: Tensor) -> Group:
        """With each KV head's keys through one map, and the queries that meet them through another."""
        return replace(self, keys=keys_GKK @ self.keys, queries=[queries_GKK[:, None] @ each for each in self.queries])


def with_latent(state: State, shape: DecoderShape, layout: KVLayout, calibration: Calibration) -> State:
    """The weights of a decoder with `layout` from those of one that has the same owners and heads and caches keys and
    values. Queries change where heads share a rotated part, or lose some of it."""
    changed: State = {}
    for owner in layout.owners:
        changed |= _converted(state, shape, layout, owner, calibration)
    return {name: weight for name, weight in (state | changed).items() if name in shape.weights(layout)}


def _converted(state: State, shape: DecoderShape, layout: KVLayout, owner: int, calibration: Calibration) -> State:
    assert layout.latent
    dims, block = layout.latent.rotary_dims, f"blocks.{owner}.attention"
    group, planes = _with_rotated_first(Group.of(state, layout, owner, calibration), shape, layout.latent)
    changed: State = {}
    for layer, queries in zip((owner, *layout.readers(owner)), group.queries, strict=True):
        changed |= written(state, layer, "q", queries.flatten(0, 2))
    rotated = group.keys[:, :dims]
    changed |= written(state, owner, "k", rotated.mean(0) if layout.latent.shared else rotated.flatten(0, 1))
    changed |= {f"{block}.{name}": weight for name, weight in fitted(group, dims, layout.rank_of(owner)).items()}
    return {name: weight.float() for name, weight in changed.items()} | {f"{block}.planes": planes}


def _with_rotated_first(group: Group, shape: DecoderShape, latent: Latent) -> tuple[Group, Tensor]:
    """The same with those dimensions first that stay rotated, and the planes that they are, `[G, F]`, `[1, F]` if they
    are shared. Kept are the planes whose part of the logits is largest, as in MHA2MLA.

    A shared part is the mean over heads; they are mapped so that it gives back each of them with the least error.
    """
    keys = apply(group.keys, group.inputs)[..., : shape.rotated_dims]
    squares = group.query_moments().diagonal(dim1=-2, dim2=-1)[..., : shape.rotated_dims]
    sizes_GF = torch.stack(squares.chunk(2, -1)).sum(0).sqrt().clamp(min=TINY)
    if latent.shared:
        scale = torch.cat([sizes_GF, sizes_GF], -1)[:, None]
        maps = key_frames(low_rank, keys * scale, shape.rotated_dims)
        planes = _strongest(_lengths((keys * scale @ maps).mean(0, keepdim=True)), latent)
        rotated = torch.cat([planes[0], planes[0] + shape.rotated_dims // 2])
        group = group.mapped(*(_within(rotated, each, shape.head_dim) for each in (maps.mT * scale, maps.mT / scale)))
    else:
        planes = _strongest(_lengths(keys) * sizes_GF, latent)
    first = torch.cat([planes, planes + shape.rotated_dims // 2], -1).expand(len(keys), -1)
    is_rest = torch.ones(len(keys), shape.head_dim, dtype=torch.bool).scatter(1, first, False)
    rest = is_rest.nonzero()[:, 1].view(len(keys), -1)
    order = torch.eye(shape.head_dim, dtype=torch.float64)[torch.cat([first, rest], -1)]
    return group.mapped(order, order), planes


def _lengths(rotated: Tensor) -> Tensor:
    """The root mean square over tokens in each rotary plane, of which dimensions `i` and `i + rotated / 2` are one."""
    a, b = rotated.chunk(2, -1)
    return (a.square() + b.square()).mean(-2).sqrt()


def _strongest(strength: Tensor, latent: Latent) -> Tensor:
    return strength.topk(latent.rotary_dims // 2).indices.sort(-1).values


def _within(dims: Tensor, maps: Tensor, width: int) -> Tensor:
    """These maps in some dimensions alone, and the identity in the others."""
    whole = torch.eye(width, dtype=maps.dtype).repeat(len(maps), 1, 1)
    whole[:, dims[:, None], dims] = maps[:, dims[:, None], dims]
    return whole


def fitted(group: Group, rotary_dims: int, rank: int) -> State:
    """`latent`, `k_up` and `v_up` of an owner the first `rotary_dims` dimensions of whose keys are cached beside it."""
    x_ND = group.inputs
    mean_D, spread = x_ND.mean(0), torch.linalg.cholesky(_covariance(x_ND))
    heads = [each[..., : len(mean_D)] for each in (group.keys[:, rotary_dims:], group.values)]
    read = torch.stack([torch.einsum("dgqk,dgql->gkl", each, each) for each in group.outputs]).sum(0)
    weights = [_roots(group.query_moments()[:, rotary_dims:, rotary_dims:]), _roots(read)]
    weighed = [(root @ each).flatten(0, 1) for each, (root, _) in zip(heads, weights, strict=True)]
    sizes = [(each @ spread).norm().clamp(min=TINY) for each in weighed]
    wanted_JD = torch.cat([each / size for each, size in zip(weighed, sizes, strict=True)])
    basis_JR = torch.linalg.svd(wanted_JD @ spread, full_matrices=False).U[:, :rank]
    down_RD = basis_JR.mT @ wanted_JD
    # Its weights are as large as those that it stands for, so that one learning rate fits all.
    factor = torch.cat([each.flatten() for each in heads]).square().mean().sqrt() / down_RD.square().mean().sqrt()
    up_k, up_v = (
        inverse @ (part * size / factor).unflatten(0, (len(inverse), -1))
        for part, size, (_, inverse) in zip(basis_JR.split([*map(len, weighed)]), sizes, weights, strict=True)
    )
    down_RD = down_RD * factor
    bias_GK = apply(group.values, mean_D[None])[:, 0] - up_v @ (down_RD @ mean_D)
    ups = {"k_up.weight": up_k.flatten(0, 1), "v_up.weight": up_v.flatten(0, 1), "v_up.bias": bias_GK.flatten()}
    return {"latent.weight": down_RD, **ups}


def _covariance(x_ND: Tensor) -> Tensor:
    centred = x_ND - x_ND.mean(0)
    covariance = centred.mT @ centred / len(x_ND)
    return covariance + RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)


def _roots(moments_GKK: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of each of these matrices, and its inverse."""
    values, vectors = torch.linalg.eigh(moments_GKK)
    mean = values.mean(-1, keepdim=True) if values.shape[-1] else values
    roots = (values.clamp(min=0) + FLOOR * mean.clamp(min=TINY)).sqrt()
    return vectors * roots[..., None, :] @ vectors.mT, vectors / roots[..., None, :] @ vectors.mT
