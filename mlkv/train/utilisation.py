"""What a training uses of a processor's arithmetic: model FLOP/s utilisation, MFU (arXiv 2204.02311, appendix B)."""

from __future__ import annotations

from math import prod

import torch

from ..gpus import PEAKS
from ..layout import KVLayout
from ..shape import DecoderShape


def flops_per_token(shape: DecoderShape, layout: KVLayout, length: int) -> float:
    """Of a training step, forwards and backwards: 6 for each weight of a matrix product, and 12 for each number of the
    queries and each key, for the two products of attention, over the half of the keys that a causal mask leaves. What
    is computed again does not count."""
    sizes, looked_up = shape.weights(layout).items(), ("embed.", "positions.")
    matrices = sum(prod(size) for name, size in sizes if len(size) == 2 and not name.startswith(looked_up))
    if shape.tied and "head.weight" not in dict(sizes):
        matrices += shape.vocab_size * shape.width
    return 6.0 * matrices + 6.0 * shape.layers * shape.heads * shape.head_dim * length


def peak_flops(device: torch.device) -> float | None:
    """Of a GPU that PEAKS has, in bf16; None for any other processor."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((PEAKS[part] for part in sorted(PEAKS, key=len, reverse=True) if part in name), None)


def mfu(tokens_per_second: float | None, flops: float, device: torch.device, devices: int = 1) -> float | None:
    """The share of the peak of all devices together; None where that is unknown."""
    peak = peak_flops(device)
    return tokens_per_second * flops / (peak * devices) if peak and tokens_per_second else None
