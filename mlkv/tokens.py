"""What every layer of a forward pass needs to know about its tokens: positions, mask, angles, cache.

Legend: `B` batch, `T` query tokens, `S` keys (cached and new), `G` KV heads, `K` head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from .layout import KVLayout
from .packed import Documents
from .positions import Angles, rotary_angles
from .shape import DecoderShape, Rotation

Keys = Literal["rotated", "unrotated"]
KeysValues = tuple[Tensor, Tensor]
"""`k_BGSK` and `v_BGSK` of one owner."""
Rounding = Callable[[Tensor, Tensor], KeysValues]
"""New keys and values `[B, G, T, K]` → what a cache that holds them in fewer bits gives back."""


class KVCache(Protocol):
    """The methods that the decoder needs of a cache; transformers' DynamicCache and StaticCache have them."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, /) -> tuple[Tensor, Tensor]: ...

    def get_seq_length(self) -> int: ...

    def get_mask_sizes(self, query_length: int, layer_idx: int, /) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Tokens:
    """What a layer of one forward pass needs to know about its tokens; computed once for all layers of a kind."""

    positions: Tensor
    """`[B, T]`"""
    mask: Tensor | None
    """`[B, 1, T, S]`, see `attend`"""
    query_angles: Angles | None
    key_angles: Angles | None
    """Of all `S` keys; only where they are cached unrotated."""
    cache: KVCache | None
    rounding: Rounding | None = None
    attentions: list[Tensor] | None = None
    """Takes each layer's attention weights `[B, H, T, S]`, if they are asked for."""
    starts: Tensor | None = None
    """Of documents, for the kernel that takes them in place of a mask (mlkv/packed.py)."""


def prepare_tokens(
    shape: DecoderShape,
    layout: KVLayout,
    keys: Keys,
    inputs: Tensor,
    mask: Tensor | None,
    positions_BT: Tensor | None,
    cache: KVCache | None,
    rounding: Rounding | None,
    attentions: list[Tensor] | None = None,
    documents: Documents | None = None,
) -> list[Tokens]:
    """One entry per layer; layers with the same window and rotation have the same.

    documents: those that rows are packed of. Raises ValueError for a mask, positions or a cache beside them.
    """
    if documents is not None:
        if any(other is not None for other in (mask, positions_BT, cache)):
            raise ValueError("documents: say which tokens attend to which, and where they are; no mask, no cache")
        positions_BT = documents.positions(*inputs.shape[:2])
    query_length = inputs.shape[1]
    past = cache.get_seq_length() if cache is not None else 0
    cached = cache.get_mask_sizes(query_length, 0)[0] if cache is not None else query_length
    if positions_BT is None:
        positions_BT = _positions(inputs, mask, past)
    found: dict[tuple[int, Rotation], Tokens] = {}
    # A reader has its owner's rotation, but its own window: caches hold all tokens of an owner.
    kinds = [(shape.window_of(i), shape.rotation_of(owner)) for i, owner in enumerate(layout.kv_source_layers)]
    for window, rotation in dict.fromkeys(kinds):
        starts = documents.starts if documents and documents.by_kernel and not 0 < window < query_length else None
        if documents and starts is None and mask is None:
            mask = documents.mask(*inputs.shape[:2])
        mask_B1TS = None if starts is not None else _causal_mask(inputs, mask, past, cached, window)
        query_angles = rotary_angles(shape, positions_BT, rotation)
        key_angles = None
        if query_angles is not None and keys == "unrotated":
            key_angles = rotary_angles(shape, _key_positions(positions_BT, mask_B1TS, cached), rotation)
        found[window, rotation] = Tokens(
            positions_BT, mask_B1TS, query_angles, key_angles, cache, rounding, attentions, starts
        )
    return [found[kind] for kind in kinds]


def _positions(inputs: Tensor, mask: Tensor | None, past: int) -> Tensor:
    """Positions `[B, T]`: the number of real tokens before each token.

    Sequences of a batch are padded on the left, so counting columns would give the first real token of a short sequence
    a position above 0: learned embeddings would be wrong, and scores would depend on what else is in the batch.
    """
    if mask is not None and mask.dim() == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
    return past + torch.arange(inputs.shape[1], device=inputs.device)[None]


def _causal_mask(inputs: Tensor, mask: Tensor | None, past: int, cached: int, window: int) -> Tensor | None:
    """`[B, 1, T, S]`, true where a query attends to a key; None where attention needs no mask (see `attend`), as it
    then may use a faster kernel. window: of its newest tokens a query attends to so many; 0: to all."""
    query_length = inputs.shape[1]
    key_S = torch.arange(cached, device=inputs.device)
    query_T1 = past + torch.arange(query_length, device=inputs.device)[:, None]
    if mask is not None and mask.dim() == 4:
        if not window:
            return mask
        near_TS = key_S > query_T1 - window
        return mask & near_TS if mask.dtype == torch.bool else mask.masked_fill(~near_TS, torch.finfo(mask.dtype).min)
    # A static cache needs a mask, as it returns its empty places too. Its length is a tensor: comparing that would
    # break a compiled forward. Several tokens after cached ones need a mask, as their triangle starts at key `past`.
    is_whole = isinstance(past, int) and cached == past + query_length and not 0 < window < cached
    if mask is None and is_whole and (past == 0 or query_length == 1):
        return None
    allowed_B1TS = (key_S <= query_T1)[None, None]
    if window:
        allowed_B1TS = allowed_B1TS & (key_S > query_T1 - window)
    if mask is not None:
        real_BS = functional.pad(mask.bool(), (0, cached - mask.shape[1]))
        # Padding attends to itself: the softmax of a row without any key is NaN in some kernels.
        allowed_B1TS = allowed_B1TS & (real_BS[:, None, None] | (key_S == query_T1))
    return allowed_B1TS


def _key_positions(positions_BT: Tensor, mask_B1TS: Tensor | None, cached: int) -> Tensor:
    """Positions `[B, S]` of all keys. The cache does not store them: a key's is the number of real keys before it, and
    real are those that the newest token attends to."""
    if positions_BT.shape[1] == cached:
        return positions_BT
    if mask_B1TS is None:
        return torch.arange(cached, device=positions_BT.device)[None]
    seen_BS = mask_B1TS[:, 0, -1] if mask_B1TS.dtype == torch.bool else mask_B1TS[:, 0, -1] == 0
    return (seen_BS.long().cumsum(-1) - 1).clamp(min=0)
