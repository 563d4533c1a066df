"""Attention to a latent vector in place of keys and values (multi-head latent attention, arXiv 2405.04434).

For each token an owner caches `C = E + R` numbers: the rotated part of its keys (`E`), and a latent vector (`R`) from
which the values of all its KV heads and the rest of their keys can be computed. Nothing computes them: queries are
multiplied into the latent space instead, and what they find there is multiplied out (section 2.1.2 there). So all query
heads attend to one head, whose values are the last `R` numbers of its keys. Readers have queries and outputs of their
own, and use the owner's vectors and its maps out of the latent.

Legend: `B` batch, `T` query tokens, `S` keys (cached and new), `D` width, `H` query heads, `G` KV heads, `Q` query
heads of a KV head, `K` head width, `P` rotated dimensions of a head, `N = K − P` others, `F` rotary planes of a head,
`W` rotated parts (`G`, or 1 if shared), `E = W · P`, `R` rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention import attend
from .layout import KVLayout
from .positions import Angles, rotate
from .shape import DecoderShape
from .tokens import Tokens


class SharedLatent(NamedTuple):
    """What an owner gives to its readers."""

    vectors: Tensor
    """`[B, 1, S, C]`"""
    k_up: Tensor
    """`[G, N, R]`"""
    v_up: Tensor
    """`[G, K, R]`"""
    v_bias: Tensor
    """`[G, K]`"""
    planes: Tensor | None
    """`[W, P/2]`: in which of a head's planes its `P` dimensions are rotated; None: in all."""


class LatentAttention(nn.Module):
    """Causal attention of an owner (computes, caches and shares a latent) or of a reader (has queries only).

    The first `P` dimensions of each query are rotated, in the planes that the owner kept.
    """

    latent: nn.Linear
    k: nn.Linear
    k_up: nn.Linear
    v_up: nn.Linear
    planes: Tensor | None

    def __init__(self, shape: DecoderShape, layout: KVLayout, layer: int) -> None:
        super().__init__()
        assert layout.latent
        self.layer, self.head_dim, self.kv_heads = layer, shape.head_dim, layout.heads_of(layer)
        self.rotary_dims, self.rank = layout.latent.rotary_dims, layout.rank_of(layer)
        self.shared_rotary = layout.latent.shared or self.kv_heads == 1
        self.owner = layout.kv_source_layers[layer] == layer
        self.factor, self.cap = shape.attention_factor, shape.attention_cap
        self.q = nn.Linear(shape.width, shape.heads * shape.head_dim, bias=shape.attention_bias)
        if self.owner:
            for name, (inputs, outputs, bias) in shape.kv_projections(layout, layer).items():
                self.add_module(name, nn.Linear(inputs, outputs, bias=bias))
            parts, planes = layout.latent.planes_size(self.kv_heads)
            first = torch.arange(planes).repeat(parts, 1) if shape.chooses_planes(layout.latent) else None
            self.register_buffer("planes", first)
        bias = shape.attention_bias and shape.output_bias
        self.o = nn.Linear(shape.heads * shape.head_dim, shape.width, bias=bias)

    def forward(
        self, q_input_BTD: Tensor, kv_input_BTD: Tensor, shared_kv: tuple[SharedLatent | None, None], tokens: Tokens
    ) -> tuple[Tensor, tuple[SharedLatent, None]]:
        """Attention's output and the latent it used, in the place of keys.

        shared_kv: the owner's, for a reader; None for an owner, which computes its own from `kv_input_BTD`.
        """
        shared = shared_kv[0] or self._compute_latent(kv_input_BTD, tokens)
        q_BHTC = self._absorbed_queries(self.q(q_input_BTD), shared, tokens)
        latent_B1SR = shared.vectors[..., -self.rank :]
        found_BHTR = attend(q_BHTC, shared.vectors, latent_B1SR, tokens.mask, self.factor, self.cap, tokens.attentions)
        out_BGQTK = self._by_kv_head(found_BHTR) @ shared.v_up.mT[:, None] + shared.v_bias[:, None, None]
        return self.o(out_BGQTK.flatten(1, 2).transpose(1, 2).flatten(2)), (shared, None)

    def _absorbed_queries(self, flat: Tensor, shared: SharedLatent, tokens: Tokens) -> Tensor:
        q_BHTK = flat.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        rotated_BHTP, rest_BHTN = q_BHTK.tensor_split([self.rotary_dims], dim=-1)
        absorbed_BHTR = (self._by_kv_head(rest_BHTN) @ shared.k_up[:, None]).flatten(1, 2)
        if not self.rotary_dims:
            return absorbed_BHTR
        rotated_BHTP = rotate(rotated_BHTP, _angles(tokens.query_angles, shared.planes, q_BHTK.shape[1]))
        return torch.cat([self._at_own_part(rotated_BHTP), absorbed_BHTR], -1)

    def _at_own_part(self, rotated_BHTP: Tensor) -> Tensor:
        """`[B, H, T, E]`: at the rotated part of its own KV head, and zeros at those of the others."""
        if self.shared_rotary:
            return rotated_BHTP
        own_GW = torch.eye(self.kv_heads, dtype=rotated_BHTP.dtype, device=rotated_BHTP.device)
        placed_BGQTWP = torch.einsum("bgqtp,gw->bgqtwp", self._by_kv_head(rotated_BHTP), own_GW)
        return placed_BGQTWP.flatten(-2).flatten(1, 2)

    def _by_kv_head(self, x_BHTX: Tensor) -> Tensor:
        """`[B, G, Q, T, …]`"""
        return x_BHTX.unflatten(1, (self.kv_heads, -1))

    def _compute_latent(self, x_BTD: Tensor, tokens: Tokens) -> SharedLatent:
        vectors = self.latent(x_BTD).unsqueeze(1)
        if self.rotary_dims:
            k_BWTP = self.k(x_BTD).unflatten(-1, (-1, self.rotary_dims)).transpose(1, 2)
            k_BWTP = rotate(k_BWTP, _angles(tokens.query_angles, self.planes, k_BWTP.shape[1]))
            vectors = torch.cat([k_BWTP.transpose(1, 2).flatten(2).unsqueeze(1), vectors], -1)
        if tokens.rounding is not None:
            vectors, _ = tokens.rounding(vectors, vectors[..., :0])
        if tokens.cache is not None:
            # All is in the cache's keys: its length is theirs, and where nothing rotates there is only the latent. Its
            # values are 0 numbers wide.
            vectors, _ = tokens.cache.update(vectors, vectors[..., :0], self.layer)
        # Copies: FSDP frees an owner's own weights before its readers run.
        v_up, v_bias = (weight.clone().unflatten(0, (self.kv_heads, -1)) for weight in self.v_up.parameters())
        k_up = v_up[:, :0]
        if self.rotary_dims < self.head_dim:
            k_up = self.k_up.weight.clone().unflatten(0, (self.kv_heads, -1))
        return SharedLatent(vectors, k_up, v_up, v_bias, self.planes)


def _angles(angles: Angles | None, planes_WF: Tensor | None, heads: int) -> Angles | None:
    """Of the planes in which each head is rotated, `[B, heads, T, P/2]`; heads of one rotated part are neighbours."""
    if angles is None or planes_WF is None:
        return angles
    repeats = heads // len(planes_WF)
    cos, sin = (each.squeeze(1)[..., planes_WF].transpose(1, 2).repeat_interleave(repeats, 1) for each in angles)
    return cos, sin
