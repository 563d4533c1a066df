"""Our model as lm-eval's HFLM, except that the choices of a question share one pass over their context.

Legend: `B` contexts, `R` continuations of all of them, `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from ..context import StepFailed

Answer = tuple[float, bool]
"""Log-likelihood of a continuation, and whether greedy decoding gives it."""
Question = tuple[list[int], list[int]]
"""A context's tokens, and the numbers of the requests that continue it."""


class HarnessLM(HFLM):
    """HFLM on a model object. Calls `progress(done, requests)` after every batch, which may raise to stop."""

    def __init__(
        self, model: Any, tokenizer: Any, *, batch_size: int, precision: str, progress: Callable[[int, int], None]
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=model.shape.context,
            mixed_precision_dtype="bfloat16" if precision == "bf16" else None,
            softmax_dtype="float32",
        )
        self.progress, self.done, self.requests = progress, 0, 0
        self.vocabulary: int = model.shape.vocab_size
        self.answer_tokens: int | None = None
        """The most tokens that an answer could have, where answers were generated."""

    def tok_encode(self, string: Any, *arguments: Any, **options: Any) -> Any:
        """HFLM's own. Raises StepFailed for a token that the model has no embedding for."""
        encoded = super().tok_encode(string, *arguments, **options)
        if unknown := [token for token in encoded if token >= self.vocabulary]:
            raise StepFailed(
                f"token = {unknown[0]} ({self.tokenizer.decode(unknown[:1])!r}) in a text of the task: "
                f"the model takes {self.vocabulary} at most (its vocab_size)"
            )
        return encoded

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """HFLM's own, with answers of at most half the context: the question needs the other half. HFLM takes 256
        tokens where a task does not say, and fails where the context is no longer."""
        self.done, self.requests = 0, len(requests)
        for request in requests:
            question, settings = request.args
            allowed = normalize_gen_kwargs(settings, self.max_gen_toks)
            allowed["max_gen_toks"] = min(allowed["max_gen_toks"], self.max_length // 2)
            request.arguments = question, allowed
            self.answer_tokens = max(self.answer_tokens or 0, allowed["max_gen_toks"])
        return super().generate_until(requests, disable_tqdm=True)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
        answers = super()._model_generate(context, max_length, stop, **settings)
        self._report(len(context))
        return answers

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: Any = None) -> list[Answer]:
        """Answers to (text, context tokens, continuation tokens). HFLM's own, except for contexts that several requests
        have: the model reads each once, and its continuations start from its keys and values."""
        self.done, self.requests = 0, len(requests)
        shared, alone = self._group_by_context(requests)
        answers: dict[int, Answer] = {}
        for batch in self._batches(shared):
            answers.update(self._answer_shared(batch, requests))
            self._report(sum(len(members) for _, members in batch))
        if alone:
            answers.update(
                zip(alone, super()._loglikelihood_tokens([requests[i] for i in alone], True, override_bs), strict=True)
            )
        if lost := sum(math.isnan(likelihood) for likelihood, _ in answers.values()):
            # An accuracy computed from them would look like any other.
            raise StepFailed(
                f"{lost} of {len(requests)} log-likelihoods are not a number: the model computes nothing finite"
            )
        return [answers[i] for i in range(len(requests))]

    def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
        logits = super()._model_call(inps, attn_mask, labels)
        self._report(len(inps))
        return logits

    def _report(self, more: int) -> None:
        self.done += more
        self.progress(self.done, max(self.done, self.requests))

    def _group_by_context(self, requests: Any) -> tuple[list[Question], list[int]]:
        """Questions whose context several continuations share and which fit the model, and all other requests."""
        members: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, (_, context, _) in enumerate(requests):
            members[tuple(context)].append(i)
        shared: list[Question] = []
        alone: list[int] = []
        for context, numbers in members.items():
            longest = max(len(requests[i][2]) for i in numbers)
            if len(numbers) > 1 and len(context) + longest <= self.max_length:
                shared.append((list(context), numbers))
            else:
                alone += numbers
        return shared, alone

    def _batches(self, questions: list[Question]) -> Iterator[list[Question]]:
        """Questions with contexts of one length, so that none is padded, with about `batch_size` continuations."""
        questions = sorted(questions, key=lambda question: -len(question[0]))
        while questions:
            taken = rows = 0
            while (
                taken < len(questions) and len(questions[taken][0]) == len(questions[0][0]) and rows < self.batch_size
            ):
                rows += len(questions[taken][1])
                taken += 1
            yield questions[:taken]
            questions = questions[taken:]

    def _answer_shared(self, questions: list[Question], requests: Any) -> Iterator[tuple[int, Answer]]:
        members = [i for _, numbers in questions for i in numbers]
        continuations = [torch.tensor(requests[i][2], device=self.device) for i in members]
        contexts_BT = torch.tensor([context for context, _ in questions], device=self.device)
        counts_B = torch.tensor([len(numbers) for _, numbers in questions], device=self.device)
        targets_RT = pad_sequence(continuations, batch_first=True, padding_value=-1)
        logits_RTV = self._continue(contexts_BT, counts_B, targets_RT.clamp(min=0))
        real_RT = targets_RT >= 0
        log_p_RTV = functional.log_softmax(logits_RTV, -1, dtype=torch.float32)
        log_p_RT = log_p_RTV.gather(-1, targets_RT.clamp(min=0)[..., None])[..., 0]
        greedy_RT = logits_RTV.argmax(-1) == targets_RT
        likelihoods = log_p_RT.where(real_RT, 0.0).sum(-1).tolist()
        greedy = (greedy_RT | ~real_RT).all(-1).tolist()
        return zip(members, zip(likelihoods, greedy, strict=True), strict=True)

    @torch.inference_mode()
    def _continue(self, contexts_BT: Tensor, counts_B: Tensor, targets_RT: Tensor) -> Tensor:
        """Logits `[R, T, V]` for `targets_RT`, of which context `b` has `counts_B[b]` rows."""
        cache = DynamicCache(config=self.model.config)
        rows_R = torch.arange(len(counts_B), device=self.device).repeat_interleave(counts_B)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed_precision_dtype is not None):
            read = self.model(contexts_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
            first_R1V = read.logits[rows_R]
            if targets_RT.shape[1] == 1:
                return first_R1V
            cache.batch_select_indices(rows_R)
            rest = self.model(targets_RT[:, :-1], past_key_values=cache, use_cache=True)
        return torch.cat([first_R1V, rest.logits], 1)
