"""Vectors of floating-point numbers to packed bytes and back: integers, then scales, then offsets.

Legend: `…` any leading dimensions, `K` width of a vector, `N` groups of a vector, `S` numbers in a group, `P` packed
bytes of a vector's integers, `Q` all of its bytes.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from ..tokens import Rounding
from .formats import CACHES, SCALE_BYTES, CacheFormat


def pack(x_K: Tensor, form: CacheFormat) -> Tensor:
    """Bytes `[…, Q]` (uint8) of vectors `[…, K]`; Q is `form.vector_bytes(K)`. A group with a number that is not
    finite, or with a range beyond float16's, comes back without a finite number."""
    assert form.bits is not None
    if not x_K.numel():  # no values beside a latent; no keys, or no values, of an owner of the other
        return x_K.new_empty(*x_K.shape[:-1], form.vector_bytes(x_K.shape[-1], 1), dtype=torch.uint8)
    x_K = x_K.to(torch.promote_types(x_K.dtype, torch.float32))
    x_NS = _in_groups(x_K, form)
    largest = 2**form.bits - 1
    if form.offset:
        offsets_N = x_NS.amin(-1).float().half()
        scales_N = ((x_NS.amax(-1) - offsets_N) / largest).float().half()
    else:
        # Integers from 1 to 2^bits - 1 around 2^(bits - 1): as many on either side of zero.
        scales_N = (x_NS.abs().amax(-1) / (largest // 2)).float().half()
        offsets_N = -scales_N.to(x_K.dtype) * (largest // 2 + 1)
    # By the scales as they are stored: their rounding is no further error.
    steps_N = scales_N.to(x_K.dtype).where(scales_N != 0, 1.0)
    q_NS = ((x_NS - offsets_N[..., None]) / steps_N[..., None]).round_().clamp_(0 if form.offset else 1, largest)
    q_K = q_NS.nan_to_num_().to(torch.uint8).flatten(-2)[..., : x_K.shape[-1]]
    parts = [_joined(q_K, form.bits), scales_N.view(torch.uint8)]
    return torch.cat([*parts, offsets_N.view(torch.uint8)] if form.offset else parts, -1)


def unpack(packed_Q: Tensor, form: CacheFormat, width: int, dtype: torch.dtype) -> Tensor:
    """Vectors `[…, K]` of `width` numbers, in `dtype`."""
    assert form.bits is not None
    if not packed_Q.numel():
        return packed_Q.new_empty(*packed_Q.shape[:-1], width, dtype=dtype)
    count, size = form.groups(width)
    integers, scale_bytes = form.packed_bytes(width), count * SCALE_BYTES
    q_P, scales, offsets = packed_Q.split([integers, scale_bytes, packed_Q.shape[-1] - integers - scale_bytes], dim=-1)
    computed = torch.promote_types(dtype, torch.float32)
    x_K = _split(q_P, form.bits)[..., :width].to(computed)
    x_K = functional.pad(x_K, (0, missing)) if (missing := count * size - width) else x_K
    x_NS = x_K.unflatten(-1, (count, size))
    if form.offset:
        x_NS = x_NS.mul_(_halves(scales, computed)).add_(_halves(offsets, computed))
    else:
        x_NS = x_NS.sub_(2 ** (form.bits - 1)).mul_(_halves(scales, computed))
    return x_NS.flatten(-2)[..., :width].to(dtype)


def _halves(bytes_: Tensor, dtype: torch.dtype) -> Tensor:
    """`[…, N, 1]`: float16 numbers of their bytes, which do not lie where such numbers may."""
    return bytes_.clone(memory_format=torch.contiguous_format).view(torch.float16).to(dtype)[..., None]


def pack_keys(k_K: Tensor, form: CacheFormat) -> Tensor:
    return pack(_hadamard(k_K) if form.rotate_keys else k_K, form)


def unpack_keys(packed_Q: Tensor, form: CacheFormat, width: int, dtype: torch.dtype) -> Tensor:
    if not form.rotate_keys:
        return unpack(packed_Q, form, width, dtype)
    # The matrix is its own inverse.
    return _hadamard(unpack(packed_Q, form, width, torch.promote_types(dtype, torch.float32))).to(dtype)


def rounding(name: str) -> Rounding | None:
    """What a cache of this format makes of the keys and values `[…, K]` that are written to it: a function to those
    that are read from it. None where they stay as they are. Raises ValueError for an unknown name."""
    form = CACHES.choose(name)
    if form.bits is None:
        return None

    def rounded(k_K: Tensor, v_K: Tensor) -> tuple[Tensor, Tensor]:
        return (
            unpack_keys(pack_keys(k_K, form), form, k_K.shape[-1], k_K.dtype),
            unpack(pack(v_K, form), form, v_K.shape[-1], v_K.dtype),
        )

    return rounded


def _in_groups(x_K: Tensor, form: CacheFormat) -> Tensor:
    """`[…, N, S]`; the last group is filled up with copies of its last number, which leave its range as it is."""
    width = x_K.shape[-1]
    count, size = form.groups(width)
    if missing := count * size - width:
        x_K = torch.cat([x_K, x_K[..., -1:].expand(*x_K.shape[:-1], missing)], -1)
    return x_K.unflatten(-1, (count, size))


def _joined(q_K: Tensor, bits: int) -> Tensor:
    """`[…, P]`: the integers of 8 / bits numbers in a byte, the first in its lowest bits."""
    in_byte = 8 // bits
    if in_byte == 1:
        return q_K
    q_PI = functional.pad(q_K, (0, -q_K.shape[-1] % in_byte)).unflatten(-1, (-1, in_byte))
    joined = q_PI[..., 0]
    for i in range(1, in_byte):
        joined = joined | (q_PI[..., i] << (bits * i))
    return joined


def _split(q_P: Tensor, bits: int) -> Tensor:
    """`_joined` backwards, with the numbers that filled up the last byte."""
    in_byte = 8 // bits
    if in_byte == 1:
        return q_P
    parts = [(q_P >> (bits * i)) & (2**bits - 1) for i in range(in_byte)]
    return torch.stack(parts, -1).flatten(-2)


def _hadamard(x_K: Tensor) -> Tensor:
    """Every block of 2^n numbers, the largest that divides the width, times a Hadamard matrix: orthogonal and
    symmetric. A vector of odd width stays as it is."""
    width = x_K.shape[-1]
    block = width & -width
    if block == 1:
        return x_K
    computed = torch.promote_types(x_K.dtype, torch.float32)
    # Autocast would multiply in bf16, with an error as large as that of eight bits.
    with torch.autocast(x_K.device.type, enabled=False):
        blocks = x_K.to(computed).unflatten(-1, (-1, block)) @ _matrix(block, computed, x_K.device)
    return blocks.flatten(-2)


@lru_cache(maxsize=16)
def _matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sylvester's construction, scaled to be orthogonal."""
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix * size**-0.5
