"""The parts of a layer beside attention: norms and the MLP. Legend: `B` batch, `T` tokens, `D` width."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from .shape import DecoderShape


class MLP(nn.Module):
    keeps = True
    """What comes out of the activation, for the backward pass. Else it is computed again from what went in."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[shape.activation]
        self.gated = shape.gated_mlp
        if self.gated:
            self.gate = nn.Linear(shape.width, shape.mlp_width, bias=shape.mlp_bias)
        self.up = nn.Linear(shape.width, shape.mlp_width, bias=shape.mlp_bias)
        self.down = nn.Linear(shape.mlp_width, shape.width, bias=shape.mlp_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        inputs = (self.gate(x_BTD), self.up(x_BTD)) if self.gated else (self.up(x_BTD),)
        active_BTF = self._active(*inputs)
        if self.keeps:
            return self.down(active_BTF)
        with computed_again(active_BTF, self._active, inputs):
            return self.down(active_BTF)

    def _active(self, up_BTF: Tensor, *gated: Tensor) -> Tensor:
        active_BTF = self.activation(up_BTF)
        return active_BTF * gated[0] if gated else active_BTF


def computed_again(
    value: Tensor, compute: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> AbstractContextManager[None]:
    """Here the backward pass does not get `value`, nor another view of the whole of it, but computes it from `inputs`,
    to the same bits. Spares memory where the inputs are kept for other reasons."""
    place, numbers, given = value.data_ptr(), value.numel(), [each.detach() for each in inputs]

    def pack(saved: Tensor) -> Tensor | torch.Size:
        return saved.shape if saved.data_ptr() == place and saved.numel() == numbers else saved

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            return compute(*given).view(packed)

    return saved_tensors_hooks(pack, unpack)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


class HeadsRMSNorm(nn.RMSNorm):
    """As wide as its weight, which may be that of fewer heads (mlkv/train/elastic.py)."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class OffsetRMSNorm(nn.RMSNorm):
    """Multiplies by 1 + its weight, all in float32."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps).type_as(x)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "layernorm": nn.LayerNorm,
    "rmsnorm": nn.RMSNorm,
    "rmsnorm_offset": OffsetRMSNorm,
}


def norm_of(shape: DecoderShape) -> nn.Module:
    return NORMS[shape.norm](shape.width, eps=shape.norm_eps)


def qk_norm_of(shape: DecoderShape, heads: int) -> nn.Module:
    """Of the queries or keys of so many heads; nothing where they have none."""
    if shape.qk_norm == "none":
        return nn.Identity()
    kind = OffsetRMSNorm if shape.norm == "rmsnorm_offset" else HeadsRMSNorm
    return kind(shape.head_dim * (heads if shape.qk_norm == "width" else 1), eps=shape.norm_eps)


class Embedding(nn.Embedding):
    """Embeddings times the shape's scale, which is rounded as the weights are."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(shape.vocab_size, shape.width)
        self.scale = shape.embedding_scale

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = super().forward(ids_BT)
        return x_BTD if self.scale == 1.0 else x_BTD * x_BTD.new_full((), self.scale)


def capped(logits: Tensor, cap: float) -> Tensor:
    """`cap · tanh(logits / cap)`; as they are where the cap is 0."""
    return cap * (logits / cap).tanh() if cap else logits
