"""Rotary positions: angles, and the rotation of queries and keys by them.

Legend: `B` batch, `H` heads, `T` tokens, `K` head width, `R` rotated dimensions of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .shape import DecoderShape

Angles = tuple[Tensor, Tensor]
"""Cosine and sine `[B, 1, T, R/2]` of each token's rotation, always float32; the first `R` of `K` dimensions rotate."""


def rotate(x_BHTK: Tensor, angles: Angles | None) -> Tensor:
    """Rotary embedding of the first `R` of `K` dimensions, dimension `i` paired with `i + R/2` (GPT-NeoX order)."""
    if angles is None:
        return x_BHTK
    cos, sin = angles
    half = cos.shape[-1]
    a, b, rest = x_BHTK.split([half, half, x_BHTK.shape[-1] - 2 * half], dim=-1)
    # Angles are float32: with bf16 weights they would make q and k float32, and attention refuses those with a bf16 v.
    return torch.cat([(a * cos - b * sin).type_as(rest), (b * cos + a * sin).type_as(rest), rest], dim=-1)


def rotary_angles(shape: DecoderShape, positions_BT: Tensor) -> Angles:
    rotated = shape.rotated_dims
    exponents = torch.arange(0, rotated, 2, device=positions_BT.device, dtype=torch.float32) / rotated
    angles = positions_BT[:, None, :, None].float() * (1.0 / shape.rotary_base**exponents)
    return angles.cos(), angles.sin()
