"""Attention of an owner, which computes keys and values or one of them, or of a reader, which has queries only.

Legend: `B` batch, `T` query tokens, `S` keys (cached and new), `D` width, `H` query heads, `G` KV heads, `R` query
heads of a KV head, `K` head width.
"""

from __future__ import annotations

from math import lcm
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .layers import capped, qk_norm_of
from .layout import KINDS, KVLayout
from .positions import rotate
from .shape import DecoderShape
from .tokens import Keys, KeysValues, KVCache, Tokens

Kernel = Literal["rows", "products", "fused"]
"""`rows`: the query heads of a KV head are the rows of one query of a fused kernel, so that keys and values are read
once per KV head. `products`: two matrix products, with the weights between them in memory. `fused`: a fused kernel,
which is told of groups."""


class Attention(nn.Module):
    """Causal attention of an owner (computes, caches and shares keys, values or both) or of a reader (has queries).

    owns: what it computes itself.
    """

    k: nn.Linear
    v: nn.Linear
    by_products = False
    """Attend with matrix products, where there is no mask: see `attend_by_products`."""
    keeps = True
    """The weights that those products need, for the backward pass. Else they are computed again."""

    def __init__(self, shape: DecoderShape, layout: KVLayout, layer: int, keys: Keys) -> None:
        super().__init__()
        self.keys, self.head_dim = keys, shape.head_dim
        self.layer = layout.cache_layer(layer)
        self.factor, self.cap, self.norms_heads = shape.attention_factor, shape.attention_cap, shape.qk_norm == "head"
        self.owns = tuple(kind for kind in KINDS if layer in layout.part(kind).owners)
        self.q = nn.Linear(shape.width, shape.heads * shape.head_dim, bias=shape.attention_bias)
        if self.owns:
            for kind, (inputs, outputs, bias) in shape.kv_projections(layout, layer).items():
                self.add_module(kind, nn.Linear(inputs, outputs, bias=bias))
        if "k" in self.owns:
            self.k_norm = qk_norm_of(shape, layout.keys.heads_of(layer))
        self.q_norm = qk_norm_of(shape, shape.heads)
        bias = shape.attention_bias and shape.output_bias
        self.o = nn.Linear(shape.heads * shape.head_dim, shape.width, bias=bias)

    def forward(
        self,
        q_input_BTD: Tensor,
        kv_input_BTD: Tensor,
        shared_kv: tuple[Tensor | None, Tensor | None],
        tokens: Tokens,
    ) -> tuple[Tensor, KeysValues]:
        """Attention's output and the keys and values it used.

        shared_kv: those of their owners; None for what this layer owns, which it computes from `kv_input_BTD`.
        """
        q_BHTK = rotate(self._normed_heads(self.q(q_input_BTD), self.q_norm), tokens.query_angles)
        k_BGSK, v_BGSK = shared_kv
        if k_BGSK is None or v_BGSK is None:
            own_k_BGSK, own_v_BGSK = self._compute_kv(kv_input_BTD, tokens)
            k_BGSK = own_k_BGSK if k_BGSK is None else k_BGSK
            v_BGSK = own_v_BGSK if v_BGSK is None else v_BGSK
        assert k_BGSK is not None
        assert v_BGSK is not None
        used_kv = k_BGSK, v_BGSK
        if self.owns and self.keys == "unrotated":
            # The cache holds these keys unrotated, so all of them are rotated at each step, not the new ones alone.
            k_BGSK = rotate(k_BGSK, tokens.key_angles)
        plain = tokens.mask is None and tokens.attentions is None and tokens.cache is None
        if tokens.starts is not None:
            out_BHTK = attend_in_documents(q_BHTK, k_BGSK, v_BGSK, tokens.starts, self.factor)
        elif self.by_products and plain and not self.cap:
            out_BHTK = self._by_products(q_BHTK, k_BGSK, v_BGSK)
        else:
            out_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, tokens.mask, self.factor, self.cap, tokens.attentions)
        return self.o(out_BHTK.transpose(1, 2).flatten(2)), used_kv

    def _by_products(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
        if self.keeps:
            return attend_by_products(q_BHTK, k_BGTK, v_BGTK, self.factor)
        own = (q_BHTK, k_BGTK, v_BGTK, self.factor)
        out: Tensor = checkpoint(attend_by_products, *own, use_reentrant=False, preserve_rng_state=False)
        return out

    def _compute_kv(self, x_BTD: Tensor, tokens: Tokens) -> KeysValues:
        """All that it owns, cached and new; 0 heads of what it does not own."""
        k_BGTK = v_BGTK = x_BTD.new_empty(len(x_BTD), 0, x_BTD.shape[1], self.head_dim)
        if "k" in self.owns:
            k_BGTK = self._normed_heads(self.k(x_BTD), self.k_norm)
        if "v" in self.owns:
            v_BGTK = self._split_heads(self.v(x_BTD))
        if self.keys == "rotated":
            k_BGTK = rotate(k_BGTK, tokens.query_angles)
        if tokens.rounding is not None:
            k_BGTK, v_BGTK = tokens.rounding(k_BGTK, v_BGTK)
        if tokens.cache is None:
            return k_BGTK, v_BGTK
        return update_cache(tokens.cache, k_BGTK, v_BGTK, self.layer)

    def _normed_heads(self, flat: Tensor, norm: nn.Module) -> Tensor:
        return norm(self._split_heads(flat)) if self.norms_heads else self._split_heads(norm(flat))

    def _split_heads(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def update_cache(cache: KVCache, k_BGTK: Tensor, v_BGTK: Tensor, layer: int) -> KeysValues:
    """Add a layer's new keys and values to a cache; all that it holds of the layer.

    transformers' caches have one head count for both, and take the length from the keys. So where keys and values have
    other head counts, all heads lie side by side in one, and values without keys lie in the place of keys.
    """
    if k_BGTK.shape[1] == v_BGTK.shape[1]:
        return cache.update(k_BGTK, v_BGTK, layer)
    swapped = k_BGTK.shape[1] == 0
    parts = (v_BGTK, k_BGTK) if swapped else (k_BGTK, v_BGTK)
    joined = [part.transpose(1, 2).flatten(2).unsqueeze(1) for part in parts]
    held = cache.update(joined[0], joined[1], layer)
    first, second = (
        both.squeeze(1).unflatten(-1, (part.shape[1], part.shape[-1])).transpose(1, 2)
        for both, part in zip(held, parts, strict=True)
    )
    return (second, first) if swapped else (first, second)


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
    kernel = attention_kernel(q_BHTK, k_BGSK, v_BGSK, explicit=attentions is not None or cap != 0)
    if kernel == "products":
        return scores_and_values(q_BHTK, k_BGSK, v_BGSK, mask_B1TS, scale, cap, attentions)
    if kernel == "rows":
        q_BGRK = q_BHTK.squeeze(2).unflatten(1, (k_BGSK.shape[1], -1))
        out_BGRK = functional.scaled_dot_product_attention(q_BGRK, k_BGSK, v_BGSK, attn_mask=mask_B1TS, scale=scale)
        return out_BGRK.flatten(1, 2).unsqueeze(2)
    if k_BGSK.shape[1] != v_BGSK.shape[1]:
        k_BGSK, v_BGSK = _with_equal_heads(k_BGSK, v_BGSK)
    # `is_causal` aligns its triangle to the first key: right for T = S alone, which `_causal_mask` sees to.
    return functional.scaled_dot_product_attention(
        q_BHTK,
        k_BGSK,
        v_BGSK,
        attn_mask=mask_B1TS,
        is_causal=mask_B1TS is None,
        scale=scale,
        enable_gqa=k_BGSK.shape[1] < q_BHTK.shape[1],
    )


def attention_kernel(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, *, explicit: bool = False) -> Kernel:
    """How these queries attend. A rule, and no timing at run time, as another kernel is other bits; it is what
    benchmarks/attention_kernels.py measured (docs/serving.md has the table).

    explicit: weights are asked for, or logits are capped: no fused kernel does either.
    """
    if explicit:
        return "products"
    if q_BHTK.shape[2] > 1:
        return "fused"
    # Fused kernels want as many heads of keys as of values, and of one width: else heads would be copied, or no kernel
    # be found.
    return "rows" if all(k_BGSK.shape[i] == v_BGSK.shape[i] for i in (1, 3)) else "products"


def scores_and_values(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask_B1TS: Tensor | None = None,
    scale: float | None = None,
    cap: float = 0.0,
    attentions: list[Tensor] | None = None,
) -> Tensor:
    """`attend` by two matrix products. Keys may have other heads than values."""
    (_, heads, length, width), groups = q_BHTK.shape, v_BGSK.shape[1]
    scale = width**-0.5 if scale is None else scale
    weights_BHTS = _weights(capped(_scores(q_BHTK, k_BGSK) * scale, cap), mask_B1TS)
    if attentions is not None:
        attentions.append(weights_BHTS)
    if length > 1:
        return weights_BHTS @ v_BGSK.repeat_interleave(heads // groups, 1)
    return (weights_BHTS.squeeze(2).unflatten(1, (groups, -1)) @ v_BGSK).flatten(1, 2).unsqueeze(2)


def _scores(q_BHTK: Tensor, k_BGSK: Tensor) -> Tensor:
    """`[B, H, T, S]`"""
    (_, heads, length, _), groups = q_BHTK.shape, k_BGSK.shape[1]
    if length > 1:
        return q_BHTK @ k_BGSK.repeat_interleave(heads // groups, 1).mT
    # At one token the heads of a group are columns of one product, and no head is copied. Keys come first, so that they
    # are read as they lie: other libraries would turn them.
    q_BGRK = q_BHTK.squeeze(2).unflatten(1, (groups, -1))
    return (k_BGSK @ q_BGRK.mT).mT.flatten(1, 2).unsqueeze(2)


def _weights(logits_BHTS: Tensor, mask_B1TS: Tensor | None) -> Tensor:
    """`[B, H, T, S]`, each row with the sum 1. Without a mask: causal, to the last query."""
    queries, keys = logits_BHTS.shape[-2:]
    if mask_B1TS is None and queries > 1:
        mask_B1TS = torch.ones(queries, keys, dtype=torch.bool, device=logits_BHTS.device).tril(keys - queries)
    if mask_B1TS is not None and mask_B1TS.dtype == torch.bool:
        logits_BHTS = logits_BHTS.masked_fill(~mask_B1TS, torch.finfo(logits_BHTS.dtype).min)
    elif mask_B1TS is not None:
        logits_BHTS = logits_BHTS + mask_B1TS
    return logits_BHTS.softmax(-1, dtype=torch.promote_types(logits_BHTS.dtype, torch.float32)).type_as(logits_BHTS)


def _with_equal_heads(k_BGSK: Tensor, v_BGSK: Tensor) -> KeysValues:
    """Each head repeated until there are as many of keys as of values, since kernels take one head count for both."""
    heads = lcm(k_BGSK.shape[1], v_BGSK.shape[1])
    return (
        k_BGSK.repeat_interleave(heads // k_BGSK.shape[1], 1),
        v_BGSK.repeat_interleave(heads // v_BGSK.shape[1], 1),
    )


def attend_by_products(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, scale: float | None = None) -> Tensor:
    """Causal softmax attention over the same tokens, `[B, H, T, K]`, as two matrix products and a softmax.

    It keeps `B · H · T²` weights, which no kernel does. But torch's kernel for CPUs does not use their bf16 units: in
    bf16, forwards and backwards, this is 3 times as fast at 256 and 512 tokens, and slower from some 1,024 on
    (measured; in float32 it is slower throughout). Query heads of a KV head become rows of one product.
    """
    if k_BGTK.shape[1] != v_BGTK.shape[1]:
        k_BGTK, v_BGTK = _with_equal_heads(k_BGTK, v_BGTK)
    (batch, heads, length, width), kv_heads = q_BHTK.shape, k_BGTK.shape[1]
    future_TT = q_BHTK.new_full((length, length), -torch.inf).triu(1)
    rows_GQK = q_BHTK.reshape(batch * kv_heads, -1, width)
    logits_GQT = torch.baddbmm(
        future_TT.repeat(heads // kv_heads, 1).expand(len(rows_GQK), -1, -1),
        rows_GQK,
        k_BGTK.flatten(0, 1).mT,
        alpha=width**-0.5 if scale is None else scale,
    )
    return (logits_GQT.softmax(-1) @ v_BGTK.flatten(0, 1)).view(batch, heads, length, -1)


def attend_in_documents(
    q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, starts: Tensor, scale: float | None = None
) -> Tensor:
    """Causal softmax attention within each document, `[B, H, T, K]`, by torch's kernel for sequences of several
    lengths, which reads no keys of another document. starts: see `Documents`."""
    from torch.nn.attention.varlen import varlen_attn

    if k_BGTK.shape[1] != v_BGTK.shape[1]:
        k_BGTK, v_BGTK = _with_equal_heads(k_BGTK, v_BGTK)
    rows, heads, length, _ = q_BHTK.shape
    q_NHK, k_NGK, v_NGK = (each.transpose(1, 2).flatten(0, 1) for each in (q_BHTK, k_BGTK, v_BGTK))
    # The longest document would be a number for the host to wait for; a row's length is a bound that is known.
    out_NHK = varlen_attn(
        q_NHK,
        k_NGK,
        v_NGK,
        starts,
        starts,
        length,
        length,
        scale=scale,
        window_size=(-1, 0),  # all before, none after
        enable_gqa=k_BGTK.shape[1] < heads,
    )
    assert isinstance(out_NHK, Tensor)
    return out_NHK.unflatten(0, (rows, length)).transpose(1, 2)
