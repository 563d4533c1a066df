"""Losses over the vocabulary without its logits: they exist for some hundred tokens at a time, and none are kept.

A loss over whole logits keeps three tensors of tokens × vocabulary in float32: the logarithms of the probabilities,
their gradient, and that of the logits. Here the gradients of a chunk are computed with its loss, so that a chunk is all
there ever is (as in Liger, arXiv 2410.10989): one tensor that holds its logits and then their gradient. The backward
pass then only scales what came of them. The order of sums is another than over whole logits, so the bits are too.

Legend: `B` sequences, `T` tokens of a sequence, `N` tokens in all, `C` tokens of a chunk, `D` width, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layers import capped
from ..model import Decoder
from .dataset import IGNORED
from .lean import make_room
from .memory import CHUNK, ROWS

_WEIGHT_ROWS = 8192
"""Of the head's weight whose gradient in bf16 exists at once on a CPU, on its way to that in float32."""

ChunkLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""From logits of a chunk `[C, V]`, or of some rows of it, in float32, which it may overwrite, and their place among the
tokens: the loss of each, `[C]`, and its gradient for the logits, `[C, V]`."""


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, shares_N: Tensor, cap: float, loss_of: ChunkLoss, rows: int
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        make_room(weight_VD)
        found = _Gradients(
            torch.empty_like(hidden_ND, memory_format=torch.contiguous_format) if wants_hidden else None,
            torch.zeros_like(weight_VD) if wants_weight else None,
        )
        losses_N = shares_N.new_empty(len(shares_N), dtype=torch.float32)
        x_ND, w_VD = as_computed(hidden_ND), as_computed(weight_VD)
        logits_CV = x_ND.new_empty(min(CHUNK, len(x_ND)), len(w_VD))
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, len(x_ND), CHUNK):
                place = slice(start, start + CHUNK)
                x_CD = x_ND[place]
                gradient_CV = torch.mm(x_CD, w_VD.T, out=logits_CV[: len(x_CD)])
                losses_N[place] = _to_gradient(gradient_CV, cap, loss_of, start, rows)
                found.add(gradient_CV, x_CD, w_VD, shares_N[place].unsqueeze(-1), place)
        # Not as saved tensors: what those are is held until the backward pass has ended, so that the weight would get a
        # copy of its gradient.
        ctx.found = found
        return (losses_N * shares_N).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        found: _Gradients = ctx.found
        del ctx.found
        for each in (found.hidden, found.weight):
            if each is not None:
                each.mul_(gradients[0])
        return found.hidden, found.weight, None, None, None, None


def _to_gradient(logits_CV: Tensor, cap: float, loss_of: ChunkLoss, start: int, rows: int) -> Tensor:
    """The losses of a chunk's tokens, `[C]`, whose gradients for the logits take the logits' place.

    logits_CV: before the cap, as products leave and take them. start: the chunk's place among the tokens.
    """
    losses = []
    for own_RV in logits_CV.split(rows):
        logits_RV = capped(own_RV.float(), cap)
        slope_RV = 1 - (logits_RV / cap).square() if cap else None
        losses_R, gradient_RV = loss_of(logits_RV, slice(start, start := start + len(own_RV)))
        losses.append(losses_R)
        own_RV.copy_(gradient_RV if slope_RV is None else gradient_RV * slope_RV)
    return torch.cat(losses)


@dataclass
class _Gradients:
    """Of the hidden states and of the head's weight, where they are wanted."""

    hidden: Tensor | None  # [N, D]
    weight: Tensor | None  # [V, D]

    def add(self, gradient_CV: Tensor, x_CD: Tensor, w_VD: Tensor, shares_C1: Tensor, place: slice) -> None:
        """Those of a chunk. Shares are multiplied where tensors are as wide as the model, not as the vocabulary."""
        if self.hidden is not None:
            self.hidden[place] = (gradient_CV @ w_VD) * shares_C1
        if self.weight is None:
            return
        shared_CD = (x_CD * shares_C1).to(x_CD.dtype)
        if gradient_CV.dtype == self.weight.dtype:
            self.weight.addmm_(gradient_CV.T, shared_CD)
            return
        rows = _WEIGHT_ROWS if x_CD.device.type == "cpu" else len(w_VD)
        for total_RD, gradient_CR in zip(self.weight.split(rows), gradient_CV.split(rows, -1), strict=True):
            total_RD += gradient_CR.T @ shared_CD


def as_computed(value: Tensor) -> Tensor:
    """As matrix products take it: in autocast's type where that is on."""
    kind = value.device.type
    return value.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else value


@torch.compiler.disable
def chunked(
    hidden_ND: Tensor, weight_VD: Tensor, shares_N: Tensor, cap: float, loss_of: ChunkLoss, rows: int = CHUNK
) -> Tensor:
    """The sum of the tokens' losses, each times its share. Differentiable once. cap: see `capped`. rows: tokens that
    `loss_of` is given at once."""
    total: Tensor = _Chunked.apply(hidden_ND, weight_VD, shares_N, cap, loss_of, min(rows, CHUNK))
    return total


def cross_entropy(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token, `[C]`, and its gradient `[C, V]`; where a label is ignored, anything finite."""
    targets_C1 = targets_C.clamp(min=0).unsqueeze(-1)
    p_CV, log_sum_C1 = _probabilities(logits_CV)
    losses_C1 = log_sum_C1 - logits_CV.gather(-1, targets_C1)
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
    rows = ROWS if hidden_ND.device.type == "cpu" else CHUNK
    return chunked(
        hidden_ND,
        decoder.head.weight,
        shares_N,
        cap,
        lambda logits, place: cross_entropy(logits, targets_N[place]),
        rows,
    )


def divergence(student_CV: Tensor, teacher_CV: Tensor) -> tuple[Tensor, Tensor]:
    """KL from the teacher's distribution to the student's, in nats, `[C]`, and its gradient for the student's logits:
    exactly 0 where both agree (mlkv/train/distillation.py says why that matters). Overwrites the teacher's logits."""
    (q_CV, log_q_C1), (p_CV, log_p_C1) = _probabilities(student_CV), _probabilities(teacher_CV)
    difference_CV = teacher_CV.sub_(student_CV)
    kl_C = torch.linalg.vecdot(p_CV, difference_CV) + (log_q_C1 - log_p_C1).squeeze(-1)
    return kl_C, q_CV.sub_(p_CV)


def _probabilities(logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """And the logarithm of the sum of exponentials, `[C, 1]`: the likeliest token's probability is 1 over the sum
    without its exponent, and never rounds to 0."""
    highest_C1, where_C1 = logits_CV.max(-1, keepdim=True)
    p_CV = logits_CV.softmax(-1)
    return p_CV, highest_C1 - p_CV.gather(-1, where_C1).log()
