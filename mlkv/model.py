"""The one decoder: GPT-NeoX, Llama, GPT-2 and OPT are settings of it, and it is built for any KV layout.

Legend: `B` batch, `T` query tokens, `S` keys (cached and new), `D` width, `F` MLP width, `H` query heads, `G` KV heads,
`K` head width, `V` vocabulary. Nothing here knows transformers: a cache is anything with `KVCache`'s three methods.

An owner's keys and values go to its readers inside the forward pass, in a dict by owner. They do not go through the
cache object: without a cache (training) there is none, and with one it holds the owners' alone, which is the memory
that sharing saves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .layout import KVLayout
from .shape import DecoderShape, check_choice

Keys = Literal["rotated", "unrotated"]
KeysValues = tuple[Tensor, Tensor]
"""`k_BGSK` and `v_BGSK` of one owner."""
SharedKV = tuple[Tensor | None, ...]
"""What an owner gives to its readers: KeysValues, or SharedLatent of mlkv/latent.py."""
Rounding = Callable[[Tensor, Tensor], KeysValues]
"""New keys and values `[B, G, T, K]` → what a cache that holds them in fewer bits gives back."""


class KVCache(Protocol):
    """The methods that the decoder needs of a cache; transformers' DynamicCache and StaticCache have them."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, /) -> tuple[Tensor, Tensor]: ...

    def get_seq_length(self) -> int: ...

    def get_mask_sizes(self, query_length: int, layer_idx: int, /) -> tuple[int, int]: ...


class Decoder(nn.Module):
    """Token ids to final hidden states; `head` turns those into logits.

    Keys are rotated before they are cached and shared, so training, scoring and decoding with a cache see the same
    keys. `keys="unrotated"` is for the published MLKV checkpoints alone (arXiv 2406.09297): their readers attend to
    their owner's keys as they are before rotation, and only the owner itself to rotated ones.
    """

    def __init__(self, shape: DecoderShape, layout: KVLayout, keys: Keys = "rotated") -> None:
        super().__init__()
        check_choice("keys", keys, get_args(Keys))
        _check_fit(shape, layout, keys)
        self.shape, self.layout, self.keys = shape, layout, keys
        self.embed = nn.Embedding(shape.vocab_size, shape.width)
        if shape.positions == "learned":
            self.positions = nn.Embedding(shape.context + shape.position_offset, shape.width)
        self.blocks = nn.ModuleList(Block(shape, layout, i, keys) for i in range(shape.layers))
        self.norm = _norm(shape)
        self.head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        if shape.tied:
            self.head.weight = self.embed.weight
        self.gradient_checkpointing = False
        self.rounding: Rounding | None = None
        """Attention reads what this makes of keys and values, with a cache and without: scores then are those of a
        quantised cache, however a text is cut into passes."""

    def forward(
        self,
        ids_BT: Tensor,
        mask: Tensor | None = None,
        positions_BT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states `[B, T, D]` after the last norm.

        mask: `[B, past + T]` (0 at padding), or a complete `[B, 1, T, S]` one.
        positions_BT: default: the number of real tokens before each token.
        """
        tokens = _prepare_tokens(self.shape, self.keys, ids_BT, mask, positions_BT, cache, self.rounding)
        x_BTD = self.embed(ids_BT)
        if self.shape.positions == "learned":
            x_BTD = x_BTD + self.positions(tokens.positions + self.shape.position_offset)
        shared: dict[int, SharedKV] = {}
        last_use = {source: i for i, source in enumerate(self.layout.kv_source_layers)}
        for i, block in enumerate(self.blocks):
            owner = self.layout.kv_source_layers[i]
            x_BTD, shared[owner] = self._run_block(block, x_BTD, shared.get(owner), tokens)
            if i == last_use[owner]:
                del shared[owner]  # a quantised cache made them for this pass alone
        return self.norm(x_BTD)

    def _run_block(self, block: nn.Module, *inputs: object) -> tuple[Tensor, SharedKV]:
        # Reentrant checkpointing gives wrong gradients where a layer's keys and values are used outside of it (relative
        # error 0.9, measured; no error is raised).
        if self.gradient_checkpointing and self.training:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


class Block(nn.Module):
    """Norm, attention, norm, MLP: one after the other, or both from the same input (`parallel_residual`)."""

    def __init__(self, shape: DecoderShape, layout: KVLayout, layer: int, keys: Keys) -> None:
        super().__init__()
        self.parallel = shape.parallel_residual
        self.attention_norm = _norm(shape)
        if shape.has_kv_norms(layout) and layer in layout.owners:
            self.kv_norm = _norm(shape)
        self.attention = _attention(shape, layout, layer, keys)
        self.mlp_norm = _norm(shape)
        self.mlp = MLP(shape)

    def forward(self, x_BTD: Tensor, shared_kv: SharedKV | None, tokens: Tokens) -> tuple[Tensor, SharedKV]:
        q_input_BTD = self.attention_norm(x_BTD)
        kv_input_BTD = self.kv_norm(x_BTD) if hasattr(self, "kv_norm") else q_input_BTD
        attended_BTD, shared_kv = self.attention(q_input_BTD, kv_input_BTD, shared_kv, tokens)
        if self.parallel:
            return x_BTD + attended_BTD + self.mlp(self.mlp_norm(x_BTD)), shared_kv
        x_BTD = x_BTD + attended_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), shared_kv


def _attention(shape: DecoderShape, layout: KVLayout, layer: int, keys: Keys) -> Attention:
    if layout.latent is None:
        return Attention(shape, layout, layer, keys)
    from .latent import LatentAttention  # which is made of this file's functions

    return LatentAttention(shape, layout, layer)  # type: ignore[return-value]  # has the same attributes for others


class Attention(nn.Module):
    """Causal attention of an owner (computes, caches and shares keys and values) or of a reader (has queries only)."""

    def __init__(self, shape: DecoderShape, layout: KVLayout, layer: int, keys: Keys) -> None:
        super().__init__()
        self.layer, self.keys, self.head_dim = layer, keys, shape.head_dim
        self.owner = layout.kv_source_layers[layer] == layer
        self.q = nn.Linear(shape.width, shape.heads * shape.head_dim, bias=shape.attention_bias)
        if self.owner:
            kv_width = layout.heads_of(layer) * shape.head_dim
            self.k = nn.Linear(shape.width, kv_width, bias=shape.attention_bias)
            self.v = nn.Linear(shape.width, kv_width, bias=shape.attention_bias)
        self.o = nn.Linear(shape.heads * shape.head_dim, shape.width, bias=shape.attention_bias)

    def forward(
        self, q_input_BTD: Tensor, kv_input_BTD: Tensor, shared_kv: KeysValues | None, tokens: Tokens
    ) -> tuple[Tensor, KeysValues]:
        """Attention's output and the keys and values it used.

        shared_kv: the owner's, for a reader; None for an owner, which computes its own from `kv_input_BTD`.
        """
        q_BHTK = rotate(self._split_heads(self.q(q_input_BTD)), tokens.query_angles)
        if shared_kv is None:
            shared_kv = self._compute_kv(kv_input_BTD, tokens)
        k_BGSK, v_BGSK = shared_kv
        if self.owner and self.keys == "unrotated":
            # The cache holds these keys unrotated, so all of them are rotated at each step, not the new ones alone.
            k_BGSK = rotate(k_BGSK, tokens.key_angles)
        out_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, tokens.mask)
        return self.o(out_BHTK.transpose(1, 2).flatten(2)), shared_kv

    def _compute_kv(self, x_BTD: Tensor, tokens: Tokens) -> KeysValues:
        k_BGTK, v_BGTK = self._split_heads(self.k(x_BTD)), self._split_heads(self.v(x_BTD))
        if self.keys == "rotated":
            k_BGTK = rotate(k_BGTK, tokens.query_angles)
        if tokens.rounding is not None:
            k_BGTK, v_BGTK = tokens.rounding(k_BGTK, v_BGTK)
        if tokens.cache is None:
            return k_BGTK, v_BGTK
        return tokens.cache.update(k_BGTK, v_BGTK, self.layer)

    def _split_heads(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[shape.activation]
        self.gated = shape.gated_mlp
        if self.gated:
            self.gate = nn.Linear(shape.width, shape.mlp_width, bias=shape.mlp_bias)
        self.up = nn.Linear(shape.width, shape.mlp_width, bias=shape.mlp_bias)
        self.down = nn.Linear(shape.mlp_width, shape.width, bias=shape.mlp_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gated:
            return self.down(self.activation(self.gate(x_BTD)) * self.up(x_BTD))
        return self.down(self.activation(self.up(x_BTD)))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


NORMS: dict[str, Callable[..., nn.Module]] = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}


def _norm(shape: DecoderShape) -> nn.Module:
    return NORMS[shape.norm](shape.width, eps=shape.norm_eps)


def _check_fit(shape: DecoderShape, layout: KVLayout, keys: Keys) -> None:
    if (layout.layers, layout.heads) != (shape.layers, shape.heads):
        raise ValueError(
            f"layout has {layout.layers} layers of {layout.heads} heads, the decoder {shape.layers} of {shape.heads}"
        )
    if layout.latent:
        shape.check_latent(layout.latent)
        if keys == "unrotated":
            raise ValueError("keys = unrotated: a latent needs rotated ones")


def attend(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask_B1TS: Tensor | None, scale: float | None = None
) -> Tensor:
    """Softmax attention `[B, H, T, K]`; no mask means causal over `T = S` tokens, or one token that sees all `S`.

    scale: of the logits; 1/√K unless given.
    """
    (_, heads, query_length, _), kv_heads = q_BHTK.shape, k_BGSK.shape[1]
    if query_length == 1:
        # The query heads of a KV head become the rows of one matrix product, so keys and values are read once per KV
        # head. At batch 8 and more on CPUs this is 1.06 to 1.4 times as fast as `enable_gqa` in fp32 and 2.9 to 8
        # times in bf16 (measured).
        q_BGRK = q_BHTK.squeeze(2).unflatten(1, (kv_heads, heads // kv_heads))
        out_BGRK = functional.scaled_dot_product_attention(q_BGRK, k_BGSK, v_BGSK, attn_mask=mask_B1TS, scale=scale)
        return out_BGRK.flatten(1, 2).unsqueeze(2)
    # `is_causal` aligns its triangle to the first key: right for T = S alone, which `_causal_mask` sees to.
    return functional.scaled_dot_product_attention(
        q_BHTK,
        k_BGSK,
        v_BGSK,
        attn_mask=mask_B1TS,
        is_causal=mask_B1TS is None,
        scale=scale,
        enable_gqa=kv_heads < heads,
    )


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


@dataclass(frozen=True)
class Tokens:
    """What every layer of one forward pass needs to know about its tokens; computed once for all layers."""

    positions: Tensor
    """`[B, T]`"""
    mask: Tensor | None
    """`[B, 1, T, S]`, see `attend`"""
    query_angles: Angles | None
    key_angles: Angles | None
    """Of all `S` keys; only where they are cached unrotated."""
    cache: KVCache | None
    rounding: Rounding | None = None


def _prepare_tokens(
    shape: DecoderShape,
    keys: Keys,
    ids_BT: Tensor,
    mask: Tensor | None,
    positions_BT: Tensor | None,
    cache: KVCache | None,
    rounding: Rounding | None,
) -> Tokens:
    query_length = ids_BT.shape[1]
    past = cache.get_seq_length() if cache is not None else 0
    cached = cache.get_mask_sizes(query_length, 0)[0] if cache is not None else query_length
    if positions_BT is None:
        positions_BT = _positions(ids_BT, mask, past)
    mask_B1TS = _causal_mask(ids_BT, mask, past, cached)
    rotary = shape.positions == "rotary"
    query_angles = rotary_angles(shape, positions_BT) if rotary else None
    key_angles = None
    if rotary and keys == "unrotated":
        key_angles = rotary_angles(shape, _key_positions(positions_BT, mask_B1TS, cached))
    return Tokens(positions_BT, mask_B1TS, query_angles, key_angles, cache, rounding)


def _positions(ids_BT: Tensor, mask: Tensor | None, past: int) -> Tensor:
    """Positions `[B, T]`: the number of real tokens before each token.

    Sequences of a batch are padded on the left, so counting columns would give the first real token of a short sequence
    a position above 0: learned embeddings would be wrong, and scores would depend on what else is in the batch.
    """
    if mask is not None and mask.dim() == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
    return past + torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]


def _causal_mask(ids_BT: Tensor, mask: Tensor | None, past: int, cached: int) -> Tensor | None:
    """`[B, 1, T, S]`, true where a query attends to a key; None where attention needs no mask (see `attend`), as it
    then may use a faster kernel."""
    if mask is not None and mask.dim() == 4:
        return mask
    query_length = ids_BT.shape[1]
    # A static cache needs a mask, as it returns its empty places too. Its length is a tensor: comparing that would
    # break a compiled forward. Several tokens after cached ones need a mask, as their triangle starts at key `past`.
    if mask is None and isinstance(past, int) and cached == past + query_length and (past == 0 or query_length == 1):
        return None
    key_S = torch.arange(cached, device=ids_BT.device)
    query_T1 = past + torch.arange(query_length, device=ids_BT.device)[:, None]
    allowed_B1TS = (key_S <= query_T1)[None, None]
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
