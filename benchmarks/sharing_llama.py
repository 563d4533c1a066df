"""transformers' own Llama with layers that share keys and values, as a user would write it: its attention interface,
its rotation, its masks and its caches. Ours with the same weights is beside it.

A reader has queries, and attends to what its owner left in `shared` in the same pass; `kv_sharing_modes` of the config
has the caches hold the owners alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout
from mlkv.shape import DecoderShape

SharedKV = dict[int, tuple[Tensor, Tensor]]


class SharingAttention(LlamaAttention):
    """LlamaAttention, except that a reader takes its owner's keys and values."""

    def __init__(self, config: LlamaConfig, layer: int, owner: int, shared: SharedKV) -> None:
        super().__init__(config, layer)
        self.owner, self.shared = owner, shared
        if owner != layer:
            del self.k_proj, self.v_proj

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)
        if self.owner == self.layer_idx:
            key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
            value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
            self.shared[self.owner] = past_key_values.update(key, value, self.layer_idx)
        else:
            query, _ = apply_rotary_pos_emb(query, query, *position_embeddings)
        key, value = self.shared[self.owner]
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        attended, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(attended.flatten(2)), weights


class SharingLlama(LlamaForCausalLM):
    """Llama of a layout in which every owner has equally many heads."""

    def __init__(self, config: LlamaConfig, sources: tuple[int, ...]) -> None:
        super().__init__(config)
        shared: SharedKV = {}
        for layer, owner in enumerate(sources):
            self.model.layers[layer].self_attn = SharingAttention(config, layer, owner, shared)


def sharing_pair(
    shape: DecoderShape, layout: KVLayout, dtype: torch.dtype, device: str = "cpu"
) -> tuple[MLKVForCausalLM, LlamaForCausalLM]:
    """Our model, and transformers' with the same weights. The shape is a Llama's."""
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=layout.kv_heads[0],
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_eps,
        rope_theta=shape.rotary_base,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    sources = layout.kv_source_layers
    shares = any(owner != layer for layer, owner in enumerate(sources))
    if shares:
        config.kv_sharing_modes = [None if owner == layer else "reuse" for layer, owner in enumerate(sources)]
    ours = MLKVForCausalLM.from_shape(shape, layout, seed=0, dtype=dtype).to(device).eval()
    theirs = SharingLlama(config, sources) if shares else LlamaForCausalLM(config)
    nn.Module.to(theirs, device=device, dtype=dtype).eval()
    theirs.load_state_dict({_NAMES.get(name, name): value for name, value in _renamed(ours).items()})
    return ours, theirs


_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_PARTS = {
    "blocks.": "model.layers.",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{f"attention.{kind}.": f"self_attn.{kind}_proj." for kind in "qkvo"},
    **{f"mlp.{kind}.": f"mlp.{kind}_proj." for kind in ("gate", "up", "down")},
}


def _renamed(ours: MLKVForCausalLM) -> dict[str, Tensor]:
    """Its weights, those of layers by Llama's names."""
    weights = {}
    for name, value in ours.model.state_dict().items():
        for part, other in _PARTS.items():
            name = name.replace(part, other)
        weights[name] = value
    return weights
