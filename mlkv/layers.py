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


NORMS: dict[str, Callable[..., nn.Module]] = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}


def norm_of(shape: DecoderShape) -> nn.Module:
    return NORMS[shape.norm](shape.width, eps=shape.norm_eps)
