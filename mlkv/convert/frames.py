"""Frames in which KV heads can be averaged: a map `U` per head, folded into the queries and outputs that use the head.

A head's keys `k` become `Uᵀk` and the queries that read them `Uᵀq`; its values become `Uᵀv`, and the columns of the
output projection that read them are multiplied by `U`. Where `U` is orthogonal the function stays as it was, to
rounding, so that heads can be turned towards each other before they are averaged; two heads that compute the same in
different coordinates would cancel each other otherwise. Keys are rotated by their position, so a map of keys must
commute with that: per rotary plane it is one complex number, in the dimensions that do not rotate any matrix
(arXiv 2412.20677 aligns heads in the same way).

Legend: `K` head width, `M` heads of the base that become one, over all layers, `N` calibration tokens. `…` are any
leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Frames = Callable[[Tensor], Tensor]
"""From what the heads compute, `[…, M, N, K]`, real or complex, to a map for each, `[…, M, K, K]`."""

ITERATIONS = 10


def aligned(heads: Tensor) -> Tensor:
    """The orthogonal maps that bring the heads closest to their mean (generalised Procrustes analysis)."""
    reference = heads[..., 0, :, :]
    for _ in range(ITERATIONS):  # each lowers the distance to the mean
        # The orthogonal U with the least |kU − reference| is A Bᵀ, where kᵀ·reference = A S Bᵀ.
        left, _, right = torch.linalg.svd(heads.mH @ reference.unsqueeze(-3))
        maps = left @ right
        reference = (heads @ maps).mean(-3)
    return maps


def low_rank(heads: Tensor) -> Tensor:
    """The maps whose common head, the mean of `kU`, gives back all heads by `Uᵀ` with the least squared error."""
    members, tokens, width = heads.shape[-3:]
    stacked = heads.movedim(-3, -2).flatten(-2)
    if width <= tokens < stacked.shape[-1]:  # the heads of many layers: their second moments would not fit in memory
        vectors = torch.linalg.svd(stacked, full_matrices=False).Vh.mH[..., :width]
    else:
        vectors = torch.linalg.eigh(stacked.mH @ stacked).eigenvectors[..., -width:]  # of the largest eigenvalues
    # With the factor the common head is as large as one of the heads.
    return vectors.unflatten(-2, (members, width)) * members**0.5


FRAMES: dict[str, Frames] = {"orthogonal": aligned, "any": low_rank}


def key_frames(frames: Frames, heads: Tensor, rotated: int) -> Tensor:
    """Maps of keys as they are before rotation, whose first `rotated` dimensions rotate, `i` with `i + rotated / 2`."""
    half = rotated // 2
    maps = heads.new_zeros(*heads.shape[:-2], heads.shape[-1], heads.shape[-1])
    if half:
        planes = torch.complex(heads[..., :half].contiguous(), heads[..., half:rotated].contiguous())
        numbers = frames(planes.movedim(-1, 0).unsqueeze(-1))[..., 0, 0].movedim(0, -1)
        i, j = torch.arange(half), torch.arange(half, rotated)
        maps[..., i, i] = maps[..., j, j] = numbers.real
        maps[..., i, j], maps[..., j, i] = numbers.imag, -numbers.imag
    if rotated < heads.shape[-1]:
        maps[..., rotated:, rotated:] = frames(heads[..., rotated:])
    return maps
