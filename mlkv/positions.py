"""Rotary positions: angles, and the rotation of queries and keys by them.

Legend: `B` batch, `H` heads, `T` tokens, `K` head width, `R` rotated dimensions of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .shape import DecoderShape, Rotation

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


def rotary_angles(shape: DecoderShape, positions_BT: Tensor, rotation: Rotation = "global") -> Angles | None:
    """None for layers that do not rotate."""
    if rotation == "none":
        return None
    base, scaled = (shape.local_rotary_base, False) if rotation == "local" else (shape.rotary_base, True)
    frequencies = rotary_frequencies(shape, base, positions_BT.device)
    if scaled:
        frequencies = frequencies * slowing(shape, frequencies)
    angles = positions_BT[:, None, :, None].float() * frequencies
    if scaled and shape.rotary_size != 1.0:
        return angles.cos() * shape.rotary_size, angles.sin() * shape.rotary_size
    return angles.cos(), angles.sin()


def rotary_frequencies(shape: DecoderShape, base: float, device: torch.device | None = None) -> Tensor:
    """By how much each plane turns from one token to the next, `[R/2]`, before it is slowed."""
    exponents = torch.arange(0, shape.rotated_dims, 2, device=device, dtype=torch.float32) / shape.rotated_dims
    return 1.0 / base**exponents


def slowing(shape: DecoderShape, frequencies: Tensor) -> Tensor | float:
    """What each plane's frequency is multiplied by: 1 where it turns often in the first training's context, 1 / factor
    where it turns seldom, and in between what is between, by the number of turns (Llama 3.1) or by the plane's number
    (yarn, arXiv 2309.00071). `linear`: 1 / factor everywhere (arXiv 2306.15595)."""
    if shape.rotary_scaling == "none":
        return 1.0
    if shape.rotary_scaling == "linear":
        return 1.0 / shape.rotary_factor
    if shape.rotary_scaling == "llama3":
        turns = shape.rotary_context * frequencies / (2 * math.pi)
        unslowed = ((turns - shape.rotary_low) / (shape.rotary_high - shape.rotary_low)).clamp(0, 1)
    else:
        first, last = (_plane_that_turns(shape, turns) for turns in (shape.rotary_high, shape.rotary_low))
        if shape.rotary_truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, shape.rotated_dims - 1)
        planes = torch.arange(len(frequencies), device=frequencies.device, dtype=torch.float32)
        unslowed = 1 - ((planes - first) / ((last - first) or 0.001)).clamp(0, 1)
    return unslowed + (1 - unslowed) / shape.rotary_factor


def _plane_that_turns(shape: DecoderShape, turns: float) -> float:
    """The number of the plane, with a fraction, that turns so often in the first training's context."""
    rotated, base = shape.rotated_dims, shape.rotary_base
    return rotated * math.log(shape.rotary_context / (turns * 2 * math.pi)) / (2 * math.log(base))
