"""Distillation: a converted model learns to predict what its untouched base, the teacher, predicts (arXiv 1503.02531).

Legend: `B` sequences, `T` tokens of a sequence, `D` width, `V` vocabulary, `K` tokens that a stored teacher names, `…`
any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..context import StepFailed
from ..device import default_device
from ..files import Json
from ..hf import MLKVForCausalLM, load_checked
from ..model import Block
from ..training_recipes import TrainRecipe
from .dataset import IGNORED
from .teacher import StoredTeacher

Teacher = MLKVForCausalLM | StoredTeacher
TERMS = ("kl", "cross_entropy", "hidden")
"""What the loss is made of, as the logged rows call it."""


class _Divergence(torch.autograd.Function):
    """KL with its gradient written out, which is exactly 0 where student and teacher agree. torch's own leaves rounding
    errors there, and Adam, which divides by their size, takes steps of the full learning rate along them: a base that
    is its own teacher was 0.03 nats away from itself after two such steps (measured)."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
        p = log_p.exp()
        divergence = log_p.sub_(log_q).mul_(p).sum(-1)
        ctx.save_for_backward(log_q.exp_().sub_(p))
        return divergence

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return gradients[0].unsqueeze(-1) * difference, None


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL from the teacher's distribution to the student's, in nats, `[…]`, of their logits `[…, V]`. The gradient is
    the student's alone."""
    divergence: Tensor = _Divergence.apply(student, teacher)
    return divergence


def bucketed_kl(student: Tensor, ids: Tensor, log_p: Tensor) -> Tensor:
    """The same where of the teacher's distribution only some tokens are known, and the mass of the rest: all other
    tokens count as one, for teacher and student.

    By the data processing inequality it is never more than the full divergence, and equal where all tokens are known.

    student: logits, `[…, V]`. ids: the known tokens, `[…, K]`. log_p: their log-probabilities, then that of the rest,
    `[…, K + 1]`.
    """
    log_q_V = student.log_softmax(-1)
    log_q_K = log_q_V.gather(-1, ids)
    if ids.shape[-1] == student.shape[-1]:  # no token is left, and the logarithm of 0 has no gradient
        return (log_p[..., :-1].exp() * (log_p[..., :-1] - log_q_K)).sum(-1)
    log_q_rest = log_q_V.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return (log_p.exp() * (log_p - torch.cat([log_q_K, log_q_rest], -1))).sum(-1)


def hidden_error(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Squared distance of the hidden states behind every layer, as a share of the teacher's squared norm, mean over
    the layers: `[B, T]`, from `[B, T, D]` each. TinyBERT's loss (arXiv 1909.10351), relative, because the norm of the
    hidden states grows with depth."""
    pairs = ((own.float(), theirs.float()) for own, theirs in zip(student, teacher, strict=True))
    errors = [(own - theirs).square().sum(-1) / theirs.square().sum(-1) for own, theirs in pairs]
    return torch.stack(errors).mean(0)


def open_teacher(recipe: TrainRecipe, folder: Path, student: MLKVForCausalLM, length: int) -> Teacher:
    """The base out of its checkpoint, frozen and on this process's device (4 bytes a parameter), or its stored
    predictions on sequences of `length` tokens. Raises StepFailed where it is no teacher for `student`."""
    if recipe.teacher_stored:
        stored = StoredTeacher.open(folder)
        _check("sequence_length", stored.sizes.sequence_length, length)
        _check("vocab_size", stored.sizes.vocab_size, student.shape.vocab_size)
        _check("temperature", stored.sizes.temperature, recipe.temperature)
        return stored
    try:
        teacher = load_checked(folder, dtype=torch.float32)
    except ValueError as error:
        raise StepFailed(f"teacher: {error}") from error
    for name in ("vocab_size", "width", "layers"):
        _check(name, getattr(teacher.shape, name), getattr(student.shape, name))
    nn.Module.to(teacher, device=default_device())
    return teacher.eval().requires_grad_(False)


def _check(name: str, theirs: float, ours: float) -> None:
    if theirs != ours:
        raise StepFailed(f"teacher = base: its {name} is {theirs}, and that of the run that learns from it {ours}")


class Distillation:
    """The loss of a distilled run, as a function that takes the model's place: BlockTrainer gives it the model, wrapped
    as it may be for several processes, and a batch.

    loss = `distill_weight` · KL · temperature² + (1 - `distill_weight`) · cross-entropy + `hidden_weight` · hidden

    Each term is the mean over labelled tokens, as the cross-entropy alone is without a teacher. The factor temperature²
    keeps the size of the KL's gradients (arXiv 1503.02531). All is computed in float32.

    teacher: the model that is asked at every step, or what it predicted before, which then comes with the batches.
    """

    def __init__(self, recipe: TrainRecipe, teacher: Teacher, precision: str) -> None:
        self.recipe = recipe
        self.teacher = None if isinstance(teacher, StoredTeacher) else teacher
        self.stored = teacher if isinstance(teacher, StoredTeacher) else None
        self.bf16 = precision == "bf16"
        self._sums: dict[str, Tensor] = {}
        """Of the terms since the last logged row, and of the steps."""

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
        """The loss, under the name that transformers' Trainer knows.

        num_items_in_batch: labelled tokens of the whole batch, of which this may be a part.
        teacher_ids, teacher_log_probs: see `bucketed_kl`, for all but the last token of each sequence.
        documents: where they begin, if each attends to itself alone, for the teacher as for the model.
        """
        with hidden_states(model, bool(self.recipe.hidden_weight)) as own:
            student_BTV = model(input_ids=input_ids, documents=documents).logits[:, :-1]
        with torch.autocast(input_ids.device.type, enabled=False):
            student_BTV, hidden_BT = student_BTV.float(), None
            if self.teacher is not None:
                teacher_BTV, theirs = self._ask(self.teacher, input_ids, documents)
                kl_BT = kl_divergence(self.tempered(student_BTV), self.tempered(teacher_BTV))
                hidden_BT = hidden_error(own, theirs)[:, :-1] if theirs else None
            else:
                assert teacher_log_probs is not None
                kl_BT = bucketed_or_whole_kl(self.tempered(student_BTV), teacher_ids, teacher_log_probs)
            return {"loss": self._mixed(student_BTV, kl_BT, hidden_BT, labels[:, 1:], num_items_in_batch)}

    def _ask(
        self, teacher: MLKVForCausalLM, input_ids: Tensor, documents: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The teacher's logits and, where they count, hidden states."""
        with ask(teacher, input_ids, self.bf16, bool(self.recipe.hidden_weight)) as theirs:
            logits_BTV = teacher(input_ids=input_ids, use_cache=False, documents=documents).logits[:, :-1]
            return logits_BTV.float(), theirs

    def _mixed(
        self,
        student_BTV: Tensor,
        kl_BT: Tensor,
        hidden_BT: Tensor | None,
        targets_BT: Tensor,
        num_items: Tensor | int | None,
    ) -> Tensor:
        recipe, labelled_BT = self.recipe, targets_BT != IGNORED
        items = labelled_BT.sum() if num_items is None else num_items
        weights = {"kl": recipe.distill_weight, "cross_entropy": 1 - recipe.distill_weight}
        values = {"kl": kl_BT * recipe.temperature**2}
        with torch.set_grad_enabled(bool(weights["cross_entropy"])):
            values["cross_entropy"] = nn.functional.cross_entropy(
                student_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, reduction="none"
            ).view_as(kl_BT)
        if hidden_BT is not None:
            values["hidden"], weights["hidden"] = hidden_BT, recipe.hidden_weight
        terms = {name: (value_BT * labelled_BT).sum() / items for name, value_BT in values.items()}
        for name, value in {**terms, "steps": labelled_BT.sum() / items}.items():
            self._add(name, value)
        # A term without weight is left out: it is logged, and nothing flows back from it.
        return sum((weights[name] * term for name, term in terms.items() if weights[name]), student_BTV.new_zeros(()))

    def tempered(self, logits: Tensor) -> Tensor:
        return logits if self.recipe.temperature == 1 else logits / self.recipe.temperature

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value.detach()

    @property
    def facts(self) -> Json:
        """What a record says of it."""
        facts: Json = {"teacher": self.recipe.teacher, "teacher_logits": self.recipe.teacher_logits}
        if self.stored:
            sizes = self.stored.sizes
            facts |= {"teacher_rows": sizes.rows, "teacher_top_k": sizes.top_k, "teacher_rest": sizes.rest}
        return facts

    def take_means(self, add_up: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means of the terms over the steps since this was last called. `add_up` adds a tensor up over
        processes."""
        names = list(self._sums)
        sums = dict(zip(names, add_up(torch.stack([*self._sums.values()])).tolist(), strict=True)) if names else {}
        self._sums = {}
        steps = sums.pop("steps", 0.0)
        return {name: value / steps for name, value in sums.items()} if steps else {}


def bucketed_or_whole_kl(student: Tensor, ids: Tensor | None, log_p: Tensor) -> Tensor:
    """`bucketed_kl`, or the whole divergence where all tokens are stored, in the order of their ids."""
    if ids is None:
        return kl_divergence(student, log_p[..., :-1])
    # Rounded to float16, the probabilities no longer add up to 1.
    return bucketed_kl(student, ids, log_p.log_softmax(-1))


@contextmanager
def ask(teacher: MLKVForCausalLM, input_ids: Tensor, bf16: bool, wanted: bool) -> Iterator[list[Tensor]]:
    """A teacher computes in this context. The list: see `hidden_states`."""
    with (
        torch.no_grad(),
        torch.autocast(input_ids.device.type, torch.bfloat16, enabled=bf16),
        hidden_states(teacher, wanted) as states,
    ):
        yield states


@contextmanager
def hidden_states(model: nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """The list that a forward pass inside of the context fills with what each layer hands on, `[B, T, D]`. Empty unless
    `wanted`."""
    states: list[Tensor] = []
    blocks = [module for module in model.modules() if isinstance(module, Block)] if wanted else []
    handles = [block.register_forward_hook(lambda _block, _given, out: states.append(out[0])) for block in blocks]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
