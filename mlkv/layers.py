"""The parts of a layer beside attention: norms and the MLP. Legend: `B` batch, `T` tokens, `D` width."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from .shape import DecoderShape


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
