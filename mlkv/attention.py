"""Attention of an owner, which computes keys and values, or of a reader, which has queries only.

Legend: `B` batch, `T` query tokens, `S` keys (cached and new), `D` width, `H` query heads, `G` KV heads, `R` query
heads of a KV head, `K` head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import capped, qk_norm_of
from .layout import KVLayout
from .positions import rotate
from .shape import DecoderShape
from .tokens import Keys, KeysValues, Tokens


class Attention(nn.Module):
    """Causal attention of an owner (computes, caches and shares keys and values) or of a reader (has queries only)."""

    def __init__(self, shape: DecoderShape, layout: KVLayout, layer: int, keys: Keys) -> None:
        super().__init__()
        self.layer, self.keys, self.head_dim = layer, keys, shape.head_dim
        self.factor, self.cap, self.norms_heads = shape.attention_factor, shape.attention_cap, shape.qk_norm == "head"
        self.owner = layout.kv_source_layers[layer] == layer
        self.q = nn.Linear(shape.width, shape.heads * shape.head_dim, bias=shape.attention_bias)
        if self.owner:
            kv_width = layout.heads_of(layer) * shape.head_dim
            self.k = nn.Linear(shape.width, kv_width, bias=shape.attention_bias)
            self.v = nn.Linear(shape.width, kv_width, bias=shape.attention_bias)
            self.k_norm = qk_norm_of(shape, layout.heads_of(layer))
        self.q_norm = qk_norm_of(shape, shape.heads)
        bias = shape.attention_bias and shape.output_bias
        self.o = nn.Linear(shape.heads * shape.head_dim, shape.width, bias=bias)

    def forward(
        self, q_input_BTD: Tensor, kv_input_BTD: Tensor, shared_kv: KeysValues | None, tokens: Tokens
    ) -> tuple[Tensor, KeysValues]:
        """Attention's output and the keys and values it used.

        shared_kv: the owner's, for a reader; None for an owner, which computes its own from `kv_input_BTD`.
        """
        q_BHTK = rotate(self._normed_heads(self.q(q_input_BTD), self.q_norm), tokens.query_angles)
        if shared_kv is None:
            shared_kv = self._compute_kv(kv_input_BTD, tokens)
        k_BGSK, v_BGSK = shared_kv
        if self.owner and self.keys == "unrotated":
            # The cache holds these keys unrotated, so all of them are rotated at each step, not the new ones alone.
            k_BGSK = rotate(k_BGSK, tokens.key_angles)
        out_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, tokens.mask, self.factor, self.cap, tokens.attentions)
        return self.o(out_BHTK.transpose(1, 2).flatten(2)), shared_kv

    def _compute_kv(self, x_BTD: Tensor, tokens: Tokens) -> KeysValues:
        k_BGTK, v_BGTK = self._normed_heads(self.k(x_BTD), self.k_norm), self._split_heads(self.v(x_BTD))
        if self.keys == "rotated":
            k_BGTK = rotate(k_BGTK, tokens.query_angles)
        if tokens.rounding is not None:
            k_BGTK, v_BGTK = tokens.rounding(k_BGTK, v_BGTK)
        if tokens.cache is None:
            return k_BGTK, v_BGTK
        return tokens.cache.update(k_BGTK, v_BGTK, self.layer)

    def _normed_heads(self, flat: Tensor, norm: nn.Module) -> Tensor:
        return norm(self._split_heads(flat)) if self.norms_heads else self._split_heads(norm(flat))

    def _split_heads(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def attend(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask_B1TS: Tensor | None,
    scale: float | None = None,
    cap: float = 0.0,
    attentions: list[Tensor] | None = None,
) -> Tensor:
    """Softmax attention `[B, H, T, K]`; no mask means causal over `T = S` tokens, or one token that sees all `S`.

    scale: of the logits; 1/√K unless given. cap: see `capped`.
    attentions: if given, the weights `[B, H, T, S]` are appended. No kernel keeps them, and none caps.
    """
    (_, heads, query_length, _), kv_heads = q_BHTK.shape, k_BGSK.shape[1]
    if attentions is not None or cap:
        weights_BHTS = _attention_weights(q_BHTK, k_BGSK, mask_B1TS, scale, cap)
        if attentions is not None:
            attentions.append(weights_BHTS)
        return weights_BHTS @ v_BGSK.repeat_interleave(heads // kv_heads, 1)
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


def _attention_weights(
    q_BHTK: Tensor, k_BGSK: Tensor, mask_B1TS: Tensor | None, scale: float | None, cap: float
) -> Tensor:
    """`[B, H, T, S]`, each row with the sum 1."""
    k_BHSK = k_BGSK.repeat_interleave(q_BHTK.shape[1] // k_BGSK.shape[1], 1)
    logits_BHTS = capped(q_BHTK @ k_BHSK.mT * (q_BHTK.shape[-1] ** -0.5 if scale is None else scale), cap)
    if mask_B1TS is None:
        queries, keys = logits_BHTS.shape[-2:]
        mask_B1TS = torch.ones(queries, keys, dtype=torch.bool, device=q_BHTK.device).tril(keys - queries)
    if mask_B1TS.dtype == torch.bool:
        logits_BHTS = logits_BHTS.masked_fill(~mask_B1TS, torch.finfo(logits_BHTS.dtype).min)
    else:
        logits_BHTS = logits_BHTS + mask_B1TS
    return logits_BHTS.softmax(-1, dtype=torch.promote_types(q_BHTK.dtype, torch.float32)).type_as(q_BHTK)
