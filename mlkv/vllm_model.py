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
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from .hf import MLKVConfig
from .layers import ACTIVATIONS, norm_of, qk_norm_of
from .model import Block
from .positions import Angles, rotary_angles, rotate
from .shape import DecoderShape


class MLKVForVllm(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: MLKVConfig = vllm_config.model_config.hf_config
        self.config = config
        self.model = _Decoder(vllm_config, f"{prefix}.model" if prefix else "model")
        self.logits_processor = LogitsProcessor(config.vocab_size, soft_cap=config.shape.logit_cap or None)

    def embed_input_ids(self, input_ids: Tensor | None) -> Tensor:
        x_ND = self.model.embed(input_ids)
        return x_ND * x_ND.new_full((), self.config.shape.embedding_scale)

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
        config: MLKVConfig = vllm_config.model_config.hf_config
        shape, layout = config.shape, config.layout
        self.shape = shape
        self.rotations = [shape.rotation_of(owner) for owner in layout.kv_source_layers]
        self.embed = VocabParallelEmbedding(shape.vocab_size, shape.width)
        if shape.positions == "learned":
            self.positions = nn.Embedding(shape.context + shape.position_offset, shape.width)
        self.blocks = nn.ModuleList(
            Block(shape, layout, i, _Attention(vllm_config, i, f"{prefix}.blocks"), _MLP(shape))  # type: ignore[arg-type]
            for i in range(shape.layers)
        )
        self.norm = norm_of(shape)
        self.head = ParallelLMHead(shape.vocab_size, shape.width)
        if shape.tied:
            self.head = self.head.tie_weights(self.embed)

    def forward(self, x_ND: Tensor, positions_N: Tensor) -> Tensor:
        if self.shape.positions == "learned":
            x_ND = x_ND + self.positions(positions_N + self.shape.position_offset)
        angles = {each: rotary_angles(self.shape, positions_N[None], each) for each in set(self.rotations)}
        for block, rotation in zip(self.blocks, self.rotations, strict=True):
            x_ND, _ = block(x_ND, None, angles[rotation])
        return self.norm(x_ND)


class _Attention(nn.Module):
    """As mlkv/attention.py's, for blocks: vLLM hands keys and values from owners to readers itself, in its cache."""

    def __init__(self, vllm_config: VllmConfig, layer: int, prefix: str) -> None:
        super().__init__()
        config: MLKVConfig = vllm_config.model_config.hf_config
        shape, layout = config.shape, config.layout
        owner, self.head_dim, self.norms_heads = layout.kv_source_layers[layer], shape.head_dim, shape.qk_norm == "head"
        self.is_owner = owner == layer
        kv_heads, bias = layout.heads_of(layer), shape.attention_bias
        self.q = ColumnParallelLinear(shape.width, shape.heads * shape.head_dim, bias, return_bias=False)
        if self.is_owner:
            self.k = _KVLinear(shape.width, kv_heads, shape.head_dim, bias)
            self.v = _KVLinear(shape.width, kv_heads, shape.head_dim, bias)
            self.k_norm = _qk_norm(shape, kv_heads)
        self.q_norm = _qk_norm(shape, shape.heads)
        out_bias = bias and shape.output_bias
        self.o = RowParallelLinear(shape.heads * shape.head_dim, shape.width, out_bias, return_bias=False)
        gpus = get_tensor_model_parallel_world_size()
        self.attn = Attention(
            shape.heads // gpus,
            shape.head_dim,
            shape.attention_factor,
            num_kv_heads=max(1, kv_heads // gpus),
            cache_config=vllm_config.cache_config,
            logits_soft_cap=shape.attention_cap or None,
            per_layer_sliding_window=shape.window_of(layer) or None,
            prefix=f"{prefix}.{layer}.attention.attn",
            kv_sharing_target_layer_name=None if self.is_owner else f"{prefix}.{owner}.attention.attn",
        )
        if not all(shape.window_of(reader) for reader in layout.readers(owner)):
            # vLLM frees what lies before the window of this layer, but a reader attends to all of it. The kernel has
            # the window all the same (`attn.impl`).
            self.attn.sliding_window = None

    def forward(
        self, q_input_ND: Tensor, kv_input_ND: Tensor, shared: None, angles: Angles | None
    ) -> tuple[Tensor, None]:
        q = self._rotated(self.q(q_input_ND), self.q_norm, angles)
        if not self.is_owner:
            return self.o(self.attn(q, None, None)), shared
        k = self._rotated(self.k(kv_input_ND), self.k_norm, angles)
        return self.o(self.attn(q, k, self.v(kv_input_ND))), shared

    def _rotated(self, flat: Tensor, norm: nn.Module, angles: Angles | None) -> Tensor:
        heads_NHK = (flat if self.norms_heads else norm(flat)).unflatten(-1, (-1, self.head_dim))
        if self.norms_heads:
            heads_NHK = norm(heads_NHK)
        return rotate(heads_NHK.transpose(0, 1)[None], angles)[0].transpose(0, 1).flatten(1)


def _qk_norm(shape: DecoderShape, heads: int) -> nn.Module:
    return _WidthNorm(shape, heads) if shape.qk_norm == "width" else qk_norm_of(shape, heads)


class _WidthNorm(nn.Module):
    """An RMS norm over all heads of a layer, of which this GPU has a part."""

    def __init__(self, shape: DecoderShape, heads: int) -> None:
        super().__init__()
        self.share, self.eps = _Share(heads), shape.norm_eps
        self.offset = float(shape.norm == "rmsnorm_offset")
        self.weight = nn.Parameter(torch.empty(self.share.count * shape.head_dim))
        self.weight.weight_loader = self.share.load  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        mean_square = wide.square().mean(-1, keepdim=True)
        if self.share.gpus > 1:
            # Each head is on equally many GPUs, so the mean over GPUs is the mean over heads.
            mean_square = tensor_model_parallel_all_reduce(mean_square) / self.share.gpus
        return (wide * (mean_square + self.eps).rsqrt() * (self.offset + self.weight.float())).type_as(x)


class _Share:
    """Which of `heads` KV heads, or query heads, this GPU has: GPU `i` of `n` those from `i · heads // n` on.

    Raises ValueError where neither number divides the other: some heads would be on more GPUs than others.
    """

    def __init__(self, heads: int) -> None:
        self.heads, self.gpus = heads, get_tensor_model_parallel_world_size()
        if heads % self.gpus and self.gpus % heads:
            raise ValueError(f"tensor_parallel_size = {self.gpus}: must divide the {heads} KV heads, or be a multiple")
        self.count = max(1, heads // self.gpus)
        self.first = get_tensor_model_parallel_rank() * heads // self.gpus

    def load(self, parameter: nn.Parameter, weight: Tensor) -> None:
        heads = weight.unflatten(0, (self.heads, -1))[self.first : self.first + self.count]
        with torch.no_grad():
            parameter.copy_(heads.flatten(0, 1))


class _KVLinear(nn.Linear):
    """A projection to the KV heads that this GPU holds."""

    def __init__(self, width: int, kv_heads: int, head_dim: int, bias: bool) -> None:
        share = _Share(kv_heads)
        super().__init__(width, share.count * head_dim, bias)
        for parameter in self.parameters():
            parameter.weight_loader = share.load  # type: ignore[attr-defined]


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
