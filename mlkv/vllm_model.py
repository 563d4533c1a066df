"""The decoder on vLLM's layers, for an export's plugin (mlkv/export/vllm_plugin.py): imported by vLLM alone.

A reader names its owner by `kv_sharing_target_layer_name`: vLLM then gives it no blocks of its own, and attends to the
owner's. Layers are spread over GPUs as vLLM does it: query heads evenly, KV heads too, and where there are fewer of
them than GPUs, several GPUs hold the same one.

Legend: `N` tokens of all sequences of a batch, one after the other, `D` width, `H` query heads, `G` KV heads, `K` head
width; `H` and `G` are those of one GPU.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from .hf import MLKVConfig
from .layers import ACTIVATIONS, norm_of
from .positions import Angles, rotary_angles, rotate
from .shape import DecoderShape


class MLKVForVllm(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: MLKVConfig = vllm_config.model_config.hf_config
        self.config = config
        self.model = _Decoder(vllm_config, f"{prefix}.model" if prefix else "model")
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: Tensor | None) -> Tensor:
        return self.model.embed(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Hidden states `[N, D]` after the last norm, from ids or embeddings at `positions` `[N]`."""
        x_ND = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        return self.model(x_ND, positions)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        return self.logits_processor(self.model.head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """The names of the weights that were loaded, which are named as in the checkpoint."""
        parameters = dict(self.named_parameters())
        loaded = set()
        for name, weight in weights:
            if name not in parameters and self.config.tie_word_embeddings:
                continue  # the head, which is the embedding
            parameter = parameters[name]
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, weight)
            loaded.add(name)
        return loaded


class _Decoder(nn.Module):
    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        shape = vllm_config.model_config.hf_config.shape
        self.shape = shape
        self.embed = VocabParallelEmbedding(shape.vocab_size, shape.width)
        if shape.positions == "learned":
            self.positions = nn.Embedding(shape.context + shape.position_offset, shape.width)
        self.blocks = nn.ModuleList(_Block(vllm_config, i, f"{prefix}.blocks") for i in range(shape.layers))
        self.norm = norm_of(shape)
        self.head = ParallelLMHead(shape.vocab_size, shape.width)
        if shape.tied:
            self.head = self.head.tie_weights(self.embed)

    def forward(self, x_ND: Tensor, positions_N: Tensor) -> Tensor:
        angles = None
        if self.shape.positions == "learned":
            x_ND = x_ND + self.positions(positions_N + self.shape.position_offset)
        else:
            angles = rotary_angles(self.shape, positions_N[None])
        for block in self.blocks:
            x_ND = block(x_ND, angles)
        return self.norm(x_ND)


class _Block(nn.Module):
    def __init__(self, vllm_config: VllmConfig, layer: int, prefix: str) -> None:
        super().__init__()
        shape, layout = (getattr(vllm_config.model_config.hf_config, name) for name in ("shape", "layout"))
        self.parallel = shape.parallel_residual
        self.attention_norm = norm_of(shape)
        if shape.has_kv_norms(layout) and layer in layout.owners:
            self.kv_norm = norm_of(shape)
        self.attention = _Attention(vllm_config, layer, prefix)
        self.mlp_norm = norm_of(shape)
        self.mlp = _MLP(shape)

    def forward(self, x_ND: Tensor, angles: Angles | None) -> Tensor:
        q_input_ND = self.attention_norm(x_ND)
        kv_input_ND = self.kv_norm(x_ND) if hasattr(self, "kv_norm") else q_input_ND
        attended_ND = self.attention(q_input_ND, kv_input_ND, angles)
        if self.parallel:
            return x_ND + attended_ND + self.mlp(self.mlp_norm(x_ND))
        x_ND = x_ND + attended_ND
        return x_ND + self.mlp(self.mlp_norm(x_ND))


class _Attention(nn.Module):
    def __init__(self, vllm_config: VllmConfig, layer: int, prefix: str) -> None:
        super().__init__()
        shape, layout = (getattr(vllm_config.model_config.hf_config, name) for name in ("shape", "layout"))
        owner, self.head_dim = layout.kv_source_layers[layer], shape.head_dim
        self.is_owner = owner == layer
        kv_heads, bias = layout.heads_of(layer), shape.attention_bias
        self.q = ColumnParallelLinear(shape.width, shape.heads * shape.head_dim, bias, return_bias=False)
        if self.is_owner:
            self.k = _KVLinear(shape.width, kv_heads, shape.head_dim, bias)
            self.v = _KVLinear(shape.width, kv_heads, shape.head_dim, bias)
        out_bias = bias and shape.output_bias
        self.o = RowParallelLinear(shape.heads * shape.head_dim, shape.width, out_bias, return_bias=False)
        gpus = get_tensor_model_parallel_world_size()
        self.attn = Attention(
            shape.heads // gpus,
            shape.head_dim,
            shape.head_dim**-0.5,
            num_kv_heads=max(1, kv_heads // gpus),
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.{layer}.attention.attn",
            kv_sharing_target_layer_name=None if self.is_owner else f"{prefix}.{owner}.attention.attn",
        )

    def forward(self, q_input_ND: Tensor, kv_input_ND: Tensor, angles: Angles | None) -> Tensor:
        q = self._rotate(self.q(q_input_ND), angles)
        if not self.is_owner:
            return self.o(self.attn(q, None, None))
        return self.o(self.attn(q, self._rotate(self.k(kv_input_ND), angles), self.v(kv_input_ND)))

    def _rotate(self, flat: Tensor, angles: Angles | None) -> Tensor:
        heads_1HNK = flat.unflatten(-1, (-1, self.head_dim)).transpose(0, 1)[None]
        return rotate(heads_1HNK, angles)[0].transpose(0, 1).flatten(1)


class _KVLinear(nn.Linear):
    """A projection to the KV heads that this GPU holds: GPU `i` of `n` those from `i · G // n` on, of `G` in all."""

    def __init__(self, width: int, kv_heads: int, head_dim: int, bias: bool) -> None:
        self.gpus, self.gpu = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        self.kv_heads = kv_heads
        super().__init__(width, max(1, kv_heads // self.gpus) * head_dim, bias)
        for parameter in self.parameters():
            parameter.weight_loader = self._load  # type: ignore[attr-defined]

    def _load(self, parameter: nn.Parameter, weight: Tensor) -> None:
        first, count = self.gpu * self.kv_heads // self.gpus, max(1, self.kv_heads // self.gpus)
        heads = weight.unflatten(0, (self.kv_heads, -1))[first : first + count]
        with torch.no_grad():
            parameter.copy_(heads.flatten(0, 1))


class _MLP(nn.Module):
    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[shape.activation]
        if shape.gated_mlp:
            self.gate = ColumnParallelLinear(shape.width, shape.mlp_width, shape.mlp_bias, return_bias=False)
        self.up = ColumnParallelLinear(shape.width, shape.mlp_width, shape.mlp_bias, return_bias=False)
        self.down = RowParallelLinear(shape.mlp_width, shape.width, shape.mlp_bias, return_bias=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        if hasattr(self, "gate"):
            return self.down(self.activation(self.gate(x_ND)) * self.up(x_ND))
        return self.down(self.activation(self.up(x_ND)))
