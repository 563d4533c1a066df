"""Losses over the vocabulary without its logits: they exist for some hundred tokens at a time, and none are kept.

A loss over whole logits keeps three tensors of tokens × vocabulary in float32: the logarithms of the probabilities,
their gradient, and that of the logits. Here the gradients of a chunk are computed with its loss, so that a chunk is all
there ever is (as in Liger, arXiv 2410.10989). The backward pass then only scales them. The order of sums is another
than over whole logits, so the bits are too.

Legend: `B` sequences, `T` tokens of a sequence, `N` tokens in all, `C` tokens of a chunk, `D` width, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..layers import capped
from ..model import Decoder
from .dataset import IGNORED
from .memory import CHUNK

ROWS = 8192
"""Of the head's weight whose gradient in bf16 exists at once, on its way to that in float32."""

ChunkLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""From a chunk's logits `[C, V]` in float32, which it may overwrite, and its place among the tokens: the loss of each,
`[C]`, and its gradient for the logits, `[C, V]`."""


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, shares_N: Tensor, cap: float, loss_of: ChunkLoss
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        found = _Gradients(
            torch.empty_like(hidden_ND, memory_format=torch.contiguous_format) if wants_hidden else None,
            torch.zeros_like(weight_VD) if wants_weight else None,
        )
        losses_N = shares_N.new_empty(len(shares_N), dtype=torch.float32)
        x_ND, w_VD = as_computed(hidden_ND), as_computed(weight_VD)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, len(x_ND), CHUNK):
                place = slice(start, start + CHUNK)
                losses_N[place], gradient_CV = _of_chunk(x_ND[place], w_VD, cap, partial(loss_of, place=place))
                found.add(gradient_CV, x_ND[place], w_VD, shares_N[place].unsqueeze(-1), place)
                del gradient_CV  # else it is there beside the next chunk's
        # Not as saved tensors: what those are is held until the backward pass has ended, so that the weight would get a
        # copy of its gradient.
        ctx.found = found
        return (losses_N * shares_N).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        found: _Gradients = ctx.found
        del ctx.found
        for each in (found.hidden_ND, found.weight_VD):
            if each is not None:
                each.mul_(gradients[0])
        return found.hidden_ND, found.weight_VD, None, None, None


def _of_chunk(
    x_CD: Tensor, w_VD: Tensor, cap: float, loss_of: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The tokens' losses and their gradient for the logits before the cap, as products take it."""
    logits_CV = capped((x_CD @ w_VD.T).float(), cap)
    slope_CV = 1 - (logits_CV / cap).square() if cap else None
    losses_C, gradient_CV = loss_of(logits_CV)
    return losses_C, (gradient_CV if slope_CV is None else gradient_CV.mul_(slope_CV)).to(x_CD.dtype)


@dataclass
class _Gradients:
    """Of the hidden states and of the head's weight, where they are wanted."""

    hidden_ND: Tensor | None
    weight_VD: Tensor | None

    def add(self, gradient_CV: Tensor, x_CD: Tensor, w_VD: Tensor, shares_C1: Tensor, place: slice) -> None:
        """Those of a chunk. Shares are multiplied where tensors are as wide as the model, not as the vocabulary."""
        if self.hidden_ND is not None:
            self.hidden_ND[place] = (gradient_CV @ w_VD) * shares_C1
        if self.weight_VD is None:
            return
        shared_CD = (x_CD * shares_C1).to(x_CD.dtype)
        if gradient_CV.dtype == self.weight_VD.dtype:
            self.weight_VD.addmm_(gradient_CV.T, shared_CD)
            return
        for total_RD, gradient_CR in zip(self.weight_VD.split(ROWS), gradient_CV.split(ROWS, -1), strict=True):
            total_RD += gradient_CR.T @ shared_CD


def as_computed(value: Tensor) -> Tensor:
    """As matrix products take it: in autocast's type where that is on."""
    kind = value.device.type
    return value.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else value


@torch.compiler.disable
def chunked(hidden_ND: Tensor, weight_VD: Tensor, shares_N: Tensor, cap: float, loss_of: ChunkLoss) -> Tensor:
    """The sum of the tokens' losses, each times its share. Differentiable once. cap: see `capped`."""
    total: Tensor = _Chunked.apply(hidden_ND, weight_VD, shares_N, cap, loss_of)
    return total


def cross_entropy(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token, `[C]`, and its gradient `[C, V]` in the place of the logits; where a label is ignored, anything
    finite."""
    targets_C1 = targets_C.clamp(min=0).unsqueeze(-1)
    own_C1 = logits_CV.gather(-1, targets_C1)
    p_CV, log_sum_C1 = _probabilities(logits_CV, into=logits_CV)
    losses_C1 = log_sum_C1 - own_C1
    gradient_CV = p_CV.scatter_add_(-1, targets_C1, torch.full_like(losses_C1, -1.0))
    return losses_C1.squeeze(-1), gradient_CV


def chunked_cross_entropy(
    decoder: Decoder, hidden_BTD: Tensor, labels_BT: Tensor, num_items: Tensor | int | None
) -> Tensor:
    """What MLKVForCausalLM computes of whole logits: the mean over labelled tokens, or their sum over `num_items`."""
    targets_N = labels_BT[:, 1:].flatten()
    labelled_N = targets_N != IGNORED
    shares_N = labelled_N / (labelled_N.sum() if num_items is None else num_items)
    hidden_ND, cap = hidden_BTD[:, :-1].flatten(0, 1), decoder.shape.logit_cap
    return chunked(
        hidden_ND, decoder.head.weight, shares_N, cap, lambda logits, place: cross_entropy(logits, targets_N[place])
    )


def divergence(student_CV: Tensor, teacher_CV: Tensor) -> tuple[Tensor, Tensor]:
    """KL from the teacher's distribution to the student's, in nats, `[C]`, and its gradient for the student's logits:
    exactly 0 where both agree (mlkv/train/distillation.py says why that matters). Overwrites the teacher's logits."""
    (q_CV, log_q_C1), (p_CV, log_p_C1) = _probabilities(student_CV), _probabilities(teacher_CV)
    difference_CV = teacher_CV.sub_(student_CV)
    kl_C = torch.linalg.vecdot(p_CV, difference_CV) + (log_q_C1 - log_p_C1).squeeze(-1)
    return kl_C, q_CV.sub_(p_CV)


def _probabilities(logits_CV: Tensor, into: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """And the logarithm of the sum of exponentials, `[C, 1]`: the likeliest token's probability is 1 over the sum
    without its exponent, and never rounds to 0. into: what may be the logits themselves."""
    highest_C1, where_C1 = logits_CV.max(-1, keepdim=True)
    p_CV = torch.softmax(logits_CV, -1, out=into)
    return p_CV, highest_C1 - p_CV.gather(-1, where_C1).log()
