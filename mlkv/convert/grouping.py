"""Which heads of a base become one: neighbours as they are, or those that lose least when they merge.

A permutation of a layer's KV heads, with the queries that read them and the output's columns, leaves the function as it
is, so neighbours can be made of any heads. Within a layer heads are put into groups of equal size, and the groups of
the other layers are then matched with the owner's (the same question: QCQA, arXiv 2406.10247, DHA, arXiv 2406.06567,
and arXiv 2412.20677).

Legend: `A`, `B` heads of two layers, `G` KV heads of the new owner, `K` head width, `N` calibration tokens, `R` heads
of one layer that become one. `…` are any leading dimensions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .calibration import Calibration
from .heads import Group, State, apply, fitted_heads, projection, written

if TYPE_CHECKING:
    from ..merges import FrameKind

Order = list[int]
"""Heads of a layer in the order in which their neighbours merge."""
Distances = NDArray[np.float64]


def grouped(
    state: State, group: Group, frames: FrameKind | None, calibration: Calibration
) -> tuple[State, Calibration]:
    """What changes in a group's layers, and in their calibration, when the heads that lose least by merging become
    neighbours: nothing where all heads become one. The model computes the same as before.

    frames: the maps that the merge applies to the heads first; how much two heads lose depends on them.
    """
    changed: State = {}
    fisher = dict(calibration.fisher)
    if group.kv_heads == 1:
        return changed, calibration
    for source, order in similar_orders(state, group, frames, calibration).items():
        changed |= _permuted(state, group, source, order)
        fisher[source] = (fisher[source][0][order], fisher[source][1][order])
    return changed, replace(calibration, fisher=fisher)


def similar_orders(state: State, group: Group, frames: FrameKind | None, calibration: Calibration) -> dict[int, Order]:
    """For each layer whose heads merge here, the order in which those that lose least are neighbours."""
    from scipy.optimize import linear_sum_assignment

    outputs = {layer: _outputs(state, group, layer, frames, calibration) for layer in group.sources}
    first, *others = group.sources
    chosen = {first: clusters(_distances(outputs[first], outputs[first], group, frames), group.kv_heads)}
    for layer in others:
        own = clusters(_distances(outputs[layer], outputs[layer], group, frames), group.kv_heads)
        between = _distances(outputs[first], outputs[layer], group, frames)
        costs = [[between[np.ix_(mine, theirs)].mean() for theirs in own] for mine in chosen[first]]
        _, matched = linear_sum_assignment(np.array(costs))
        chosen[layer] = [own[index] for index in matched]
    return {layer: [head for cluster in found for head in cluster] for layer, found in chosen.items()}


def _outputs(
    state: State, group: Group, layer: int, frames: FrameKind | None, calibration: Calibration
) -> tuple[Tensor, Tensor]:
    """Keys before rotation and values, `[heads, N, K]`, of the input that the merged head will see where heads are
    fitted to it."""
    refit = frames == "any"
    inputs = calibration.inputs[group.owner if refit else layer]
    keys, values = (
        apply(fitted_heads(state, group, layer, kind, calibration, refit), inputs).double() for kind in ("k", "v")
    )
    return keys, values


def _distances(
    ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], group: Group, frames: FrameKind | None
) -> Distances:
    """What every two heads lose when they become one, keys and values as shares of their size, `[A, B]`."""
    total = torch.zeros(len(ours[0]), len(theirs[0]), dtype=torch.float64)
    for kind, a_ANK, b_BNK in zip(("k", "v"), ours, theirs, strict=True):
        rotated = group.rotated if kind == "k" else 0
        size = a_ANK.square().sum((1, 2)).mean() + b_BNK.square().sum((1, 2)).mean()
        total += pair_losses(a_ANK, b_BNK, rotated, frames) / size.clamp(min=torch.finfo(torch.float64).tiny)
    return total.numpy()


def pair_losses(a_ANK: Tensor, b_BNK: Tensor, rotated: int, frames: FrameKind | None) -> Tensor:
    """The squared error of every two heads against the best head that they can have in common, up to a factor,
    `[A, B]`. The first `rotated` dimensions turn with the position, `i` with `i + rotated / 2`, and are mapped as one
    complex number."""
    half = rotated // 2
    losses = _losses(a_ANK[..., rotated:], b_BNK[..., rotated:], frames)
    if half:
        a, b = (
            torch.complex(x[..., :half].contiguous(), x[..., half:rotated].contiguous()).movedim(-1, 0).unsqueeze(-1)
            for x in (a_ANK, b_BNK)
        )
        losses = losses + _losses(a, b, frames).sum(0)
    return losses


def _losses(a: Tensor, b: Tensor, frames: FrameKind | None) -> Tensor:
    """From `[…, A, N, K]` and `[…, B, N, K]` to `[…, A, B]`."""
    own_a, own_b = a.mH @ a, b.mH @ b
    crossed = torch.einsum("...anx,...bny->...abxy", a.conj(), b)
    traces = _trace(own_a).unsqueeze(-1) + _trace(own_b).unsqueeze(-2)
    if frames is None:
        return traces - 2 * _trace(crossed)
    if frames == "orthogonal":  # min over U of |aU − b|²
        return traces - 2 * torch.linalg.svdvals(crossed).sum(-1)
    width = a.shape[-1]
    upper = torch.cat([own_a.unsqueeze(-3).expand_as(crossed), crossed], -1)
    lower = torch.cat([crossed.mH, own_b.unsqueeze(-4).expand_as(crossed)], -1)
    values = torch.linalg.eigvalsh(torch.cat([upper, lower], -2))  # ascending
    return values[..., :width].sum(-1)


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1).real


def clusters(distances: Distances, count: int) -> list[Order]:
    """`count` clusters of equally many heads with a small sum of the distances within them, each and all in ascending
    order. That sum is never larger than with neighbours as clusters."""
    heads, distances = len(distances), distances * (1 - np.eye(len(distances)))
    starts = np.arange(heads) // (heads // count), _nearest_first(distances, count)
    labels = min((_improved(distances, start) for start in starts), key=lambda found: _within(distances, found))
    return sorted(np.flatnonzero(labels == label).tolist() for label in range(count))


def _nearest_first(distances: Distances, count: int) -> NDArray[np.int_]:
    """Labels where the first head that is free takes those nearest to it, one cluster after another."""
    free, size = list(range(len(distances))), len(distances) // count
    labels = np.empty(len(distances), int)
    for label in range(count):
        nearest = sorted(free, key=lambda head: (head != free[0], distances[free[0], head]))[:size]
        labels[nearest] = label
        free = [head for head in free if head not in nearest]
    return labels


def _improved(distances: Distances, labels: NDArray[np.int_]) -> NDArray[np.int_]:
    """With two heads of different clusters exchanged as long as that makes the sum smaller."""
    labels = labels.copy()
    while True:
        members = labels == np.arange(labels.max() + 1)[:, None]
        to_cluster = distances @ members.T.astype(float)
        to_each = to_cluster[:, labels]  # from head i to the cluster of head j
        own = to_each.diagonal()
        changes = to_each + to_each.T - own[:, None] - own[None, :] - 2 * distances
        changes[labels[:, None] == labels[None, :]] = 0.0
        i, j = np.unravel_index(changes.argmin(), changes.shape)
        if changes[i, j] >= -1e-9 * max(1e-300, np.abs(distances).max()):
            return labels
        labels[[i, j]] = labels[[j, i]]


def _within(distances: Distances, labels: NDArray[np.int_]) -> float:
    return float(distances[labels[:, None] == labels[None, :]].sum())


def _permuted(state: State, group: Group, source: int, order: Order) -> State:
    """One layer's keys and values in this order, and the queries and outputs of the group's layers that read it."""
    changed: State = {}
    for kind in ("k", "v"):
        heads = projection(state, source, kind).unflatten(0, (len(order), -1))
        changed |= written(state, source, kind, heads[order].flatten(0, 1))
    for layer in group.readers_of(source):
        queries = projection(state, layer, "q").unflatten(0, (len(order), -1))
        changed |= written(state, layer, "q", queries[order].flatten(0, 1))
        name = f"blocks.{layer}.attention.o.weight"
        changed[name] = state[name].float().unflatten(1, (len(order), -1))[:, order].flatten(1)
    return changed | _permuted_norms(state, group, source, order)


def _permuted_norms(state: State, group: Group, source: int, order: Order) -> State:
    """Norms that have weights for every head."""
    norms = [f"blocks.{source}.attention.k_norm.weight"]
    norms += [f"blocks.{layer}.attention.q_norm.weight" for layer in group.readers_of(source)]
    width = len(state[f"blocks.{source}.attention.k.weight"]) // len(order)
    return {
        name: state[name].unflatten(0, (len(order), -1))[order].flatten()
        for name in norms
        if name in state and len(state[name]) > width
    }
