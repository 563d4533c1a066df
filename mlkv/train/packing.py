"""Which kernel attends where the documents of a row are apart. A rule by device, version and shape, and no timing, as
another kernel is other bits. Needs no torch at import: plans count memory with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..layout import KVLayout
from ..shape import DecoderShape

if TYPE_CHECKING:
    import torch

SINCE = (2, 13)
"""torch with varlen_attn for groups of query heads."""
_OLDEST_GPU = (8, 0)
_WIDEST_HEAD = 256
_HEADS_DIVIDE_BY = 8


def takes_documents(shape: DecoderShape, layout: KVLayout, *, bf16: bool) -> bool:
    """Whether torch's kernel for sequences of several lengths computes a decoder's layers, those without a window.
    Elsewhere attention takes a mask."""
    fits = shape.head_dim % _HEADS_DIVIDE_BY == 0 and shape.head_dim <= _WIDEST_HEAD and not shape.attention_cap
    return bf16 and fits and layout.latent is None and not layout.reads_above


def has_kernel(device: torch.device) -> bool:
    """Whether a device and this torch have that kernel."""
    import torch

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return version >= SINCE and device.type == "cuda" and torch.cuda.get_device_capability(device) >= _OLDEST_GPU
