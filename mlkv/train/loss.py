"""Losses over the vocabulary without its logits: they exist for some hundred tokens at a time, and none are kept.

A loss over whole logits keeps three tensors of tokens × vocabulary in float32: the logarithms of the probabilities,
their gradient, and that of the logits. Here the gradients of a chunk are computed with its loss, so that a chunk is all
there ever is (as in Liger, arXiv 2410.10989). The backward pass then only scales them. The order of sums is another
than over whole logits, so the bits are too.

Legend: `B` sequences, `T` tokens of a sequence, `N` tokens in all, `C` tokens of a chunk, `D` width, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..layers import capped
from ..model import Decoder
from .dataset import IGNORED
from .memory import CHUNK

ChunkLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""From a chunk's logits `[C, V]` in float32, which it may overwrite, and its place among the tokens: the loss of each,
`[C]`, and its gradient for the logits, `[C, V]`."""


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, shares_N: Tensor, cap: float, loss_of: ChunkLoss
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden_gradient = torch.empty_like(hidden_ND, memory_format=torch.contiguous_format) if wants_hidden else None
        weight_gradient = torch.zeros_like(weight_VD) if wants_weight else None
        losses_N = shares_N.new_empty(len(shares_N), dtype=torch.float32)
        x_ND, w_VD = as_computed(hidden_ND), as_computed(weight_VD)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, len(x_ND), CHUNK):
                place = slice(start, start + CHUNK)
                x_CD, shares_C1 = x_ND[place], shares_N[place].unsqueeze(-1)
                logits_CV = capped((x_CD @ w_VD.T).float(), cap)
                slope_CV = 1 - (logits_CV / cap).square() if cap else None
                losses_N[place], gradient_CV = loss_of(logits_CV, place)
                gradient_CV = (gradient_CV if slope_CV is None else gradient_CV * slope_CV).to(x_CD.dtype)
                # Shares are multiplied where tensors are as wide as the model, not as the vocabulary.
                if hidden_gradient is not None:
                    hidden_gradient[place] = (gradient_CV @ w_VD) * shares_C1
                if weight_gradient is not None:
                    _add_product(weight_gradient, gradient_CV, (x_CD * shares_C1).to(x_CD.dtype))
        ctx.save_for_backward(*(each for each in (hidden_gradient, weight_gradient) if each is not None))
        ctx.wanted = wants_hidden, wants_weight
        return (losses_N * shares_N).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        kept = iter(ctx.saved_tensors)
        hidden, weight = (next(kept).mul_(gradients[0]) if wanted else None for wanted in ctx.wanted)
        return hidden, weight, None, None, None


def _add_product(total_VD: Tensor, gradient_CV: Tensor, x_CD: Tensor) -> None:
    if gradient_CV.dtype == total_VD.dtype:
        total_VD.addmm_(gradient_CV.T, x_CD)
    else:
        total_VD += gradient_CV.T @ x_CD


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


def _probabilities(logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """And the logarithm of the sum of exponentials, `[C, 1]`: the likeliest token's probability is 1 over the sum
    without its exponent, and never rounds to 0."""
    highest_C1, where_C1 = logits_CV.max(-1, keepdim=True)
    p_CV = logits_CV.softmax(-1)
    return p_CV, highest_C1 - p_CV.gather(-1, where_C1).log()
