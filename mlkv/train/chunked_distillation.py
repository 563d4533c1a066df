"""The loss of a distilled run without whole logits, neither the model's nor the teacher's (loss.py).

Legend: `B` sequences, `T` tokens of a sequence, `N` tokens in all, `C` tokens of a chunk, `D` width, `V` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..layers import capped
from ..model import Decoder
from .dataset import IGNORED
from .distillation import Distillation, ask, bucketed_or_whole_kl, hidden_error, hidden_states
from .loss import ChunkLoss, as_computed, chunked, cross_entropy, divergence


@dataclass
class Taught:
    """What a teacher says of one batch.

    hidden, weight: `[N, D]` and its head's `[V, D]`, as products take them; or what it stored, `[N, …]`.
    layers: what each of its layers handed on, where that counts.
    """

    hidden: Tensor | None = None
    weight: Tensor | None = None
    ids: Tensor | None = None
    log_probs: Tensor | None = None
    layers: list[Tensor] = field(default_factory=list)


class ChunkedDistillation(Distillation):
    """The model calls `loss_of_hidden` in the place of its own loss, where its head's weight is whole (FSDP)."""

    taught: Taught
    items: Tensor | int

    def __call__(
        self,
        model: nn.Module,
        *,
        input_ids: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        teacher_ids: Tensor | None = None,
        teacher_log_probs: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> dict[str, Tensor]:
        targets_BT = labels[:, 1:]
        self.items = (targets_BT != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        self.taught = self._taught(input_ids, teacher_ids, teacher_log_probs, documents)
        weight = self.recipe.hidden_weight
        with hidden_states(model, bool(weight)) as own:
            given = {"num_items_in_batch": self.items, "documents": documents}
            loss = model(input_ids=input_ids, labels=labels, **given).loss
        self._add("steps", (targets_BT != IGNORED).sum() / self.items)
        if weight:
            with torch.autocast(input_ids.device.type, enabled=False):
                hidden_BT = hidden_error(own, self.taught.layers)[:, :-1] * (targets_BT != IGNORED)
            self._add("hidden", hidden := hidden_BT.sum() / self.items)
            loss = loss + weight * hidden
        return {"loss": loss}

    def _taught(
        self, input_ids: Tensor, ids: Tensor | None, log_probs: Tensor | None, documents: Tensor | None
    ) -> Taught:
        if self.teacher is None:
            assert log_probs is not None
            return Taught(ids=None if ids is None else ids.flatten(0, 1), log_probs=log_probs.flatten(0, 1))
        with ask(self.teacher, input_ids, self.bf16, bool(self.recipe.hidden_weight)) as layers:
            hidden_BTD = self.teacher.model(input_ids, documents=documents)
            weight_VD = as_computed(self.teacher.model.head.weight)
            return Taught(as_computed(hidden_BTD)[:, :-1].flatten(0, 1), weight_VD, layers=layers)

    def loss_of_hidden(
        self, decoder: Decoder, hidden_BTD: Tensor, labels_BT: Tensor, _items: Tensor | int | None
    ) -> Tensor:
        targets_N = labels_BT[:, 1:].flatten()
        shares_N = (targets_N != IGNORED) / self.items
        cap, hidden_ND = decoder.shape.logit_cap, hidden_BTD[:, :-1].flatten(0, 1)
        return chunked(hidden_ND, decoder.head.weight, shares_N, cap, self._mixed_of(targets_N, shares_N))

    def _mixed_of(self, targets_N: Tensor, shares_N: Tensor) -> ChunkLoss:
        recipe = self.recipe
        kl_weight, text_weight = recipe.distill_weight * recipe.temperature**2, 1 - recipe.distill_weight

        def loss_of(logits_CV: Tensor, place: slice) -> tuple[Tensor, Tensor]:
            kl_C, gradient_CV = self._divergence(logits_CV, place)
            if text_weight:
                losses_C, text_gradient_CV = cross_entropy(logits_CV, targets_N[place])
            else:
                losses_C = nn.functional.cross_entropy(
                    logits_CV, targets_N[place], ignore_index=IGNORED, reduction="none"
                )
            self._add("kl", (kl_C * shares_N[place]).sum() * recipe.temperature**2)
            self._add("cross_entropy", (losses_C * shares_N[place]).sum())
            gradient_CV.mul_(kl_weight / recipe.temperature)
            if text_weight:
                gradient_CV.add_(text_gradient_CV, alpha=text_weight)
            return kl_weight * kl_C + text_weight * losses_C, gradient_CV

        return loss_of

    def _divergence(self, logits_CV: Tensor, place: slice) -> tuple[Tensor, Tensor]:
        """At the recipe's temperature; the gradient is for the logits divided by it."""
        taught, student_CV = self.taught, self.tempered(logits_CV)
        if taught.hidden is not None and taught.weight is not None:
            assert self.teacher is not None
            teacher_CV = (taught.hidden[place] @ taught.weight.T).float()
            return divergence(student_CV, self.tempered(capped(teacher_CV, self.teacher.shape.logit_cap)))
        assert taught.log_probs is not None
        with torch.enable_grad():
            student_CV = student_CV.detach().requires_grad_()
            ids = None if taught.ids is None else taught.ids[place]
            kl_C = bucketed_or_whole_kl(student_CV, ids, taught.log_probs[place])
            (gradient_CV,) = torch.autograd.grad(kl_C.sum(), student_CV)
        return kl_C.detach(), gradient_CV
