"""Our model as lm-eval's HFLM, except that tokens which requests have in common are read once (likelihoods.py)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ..context import StepFailed
from .batch_size import BatchSize
from .likelihoods import Answer, Likelihoods

Encoded = MutableMapping[tuple[Any, ...], list[int]]
"""A tokenizer's tokens of the texts that it was asked for."""


class HarnessLM(HFLM):
    """HFLM on a model object. Calls `progress(done, requests)` after every batch, which may raise to stop.

    encoded: what the tokenizer was asked for before, for other checkpoints or tasks; what it is asked for is added.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: BatchSize,
        precision: str,
        progress: Callable[[int, int], None],
        encoded: Encoded | None = None,
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size.at(model.shape.context),
            max_length=model.shape.context,
            mixed_precision_dtype="bfloat16" if precision == "bf16" else None,
            softmax_dtype="float32",
        )
        self.rows, self.encoded = batch_size, {} if encoded is None else encoded
        self.progress, self.done, self.requests = progress, 0, 0
        self.vocabulary: int = model.shape.vocab_size
        self.answer_tokens: int | None = None
        """The most tokens that an answer could have, where answers were generated."""

    def tok_encode(self, string: Any, *arguments: Any, **options: Any) -> Any:
        """HFLM's own, once for each text: the choices of a question have one context, and the next checkpoint the same
        questions. Raises StepFailed for a token that the model has no embedding for."""
        key = (string, *arguments, *sorted(options.items()))
        if key not in self.encoded:
            self.encoded[key] = super().tok_encode(string, *arguments, **options)
        encoded = self.encoded[key]
        if unknown := [token for token in encoded if token >= self.vocabulary]:
            raise StepFailed(
                f"token = {unknown[0]} ({self.tokenizer.decode(unknown[:1])!r}) in a text of the task: "
                f"the model takes {self.vocabulary} at most (its vocab_size)"
            )
        return encoded

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """HFLM's own, with answers of at most half the context: the question needs the other half. HFLM takes 256
        tokens where a task does not say, and fails where the context is no longer."""
        limited = [self._limited(request) for request in requests]
        while True:
            self.done, self.requests = 0, len(requests)
            self.batch_size_per_gpu = self.rows.at(self.max_length)
            answers = self.rows.attempt(self.max_length, lambda: super(HarnessLM, self).generate_until(limited, True))
            if answers is not None:
                return answers

    def _limited(self, request: Any) -> Any:
        """A copy: the next checkpoint finds the request as it was."""
        question, settings = request.args
        allowed = normalize_gen_kwargs(settings, self.max_gen_toks)
        allowed["max_gen_toks"] = min(allowed["max_gen_toks"], self.max_length // 2)
        self.answer_tokens = max(self.answer_tokens or 0, allowed["max_gen_toks"])
        request = copy.copy(request)
        request.arguments = question, allowed
        return request

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
        answers = super()._model_generate(context, max_length, stop, **settings)
        self._report(len(context))
        return answers

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """HFLM's own, with the windows of all texts sorted by length together."""
        windows = [
            [
                (None, *make_disjoint_window(window))
                for window in get_rolling_token_windows(
                    self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
                )
            ]
            for request in requests
        ]
        answers = iter(self._loglikelihood_tokens([window for group in windows for window in group]))
        return [sum(next(answers)[0] for _ in group) for group in windows]

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = True, override_bs: Any = None
    ) -> list[Answer]:
        """Answers to (text, context tokens, continuation tokens)."""
        self.done, self.requests = 0, len(requests)
        likelihoods = Likelihoods(self.model, self.rows, self.max_length, self._report)
        # Around all passes, so that the weights are cast once.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed_precision_dtype is not None):
            answers = likelihoods.of([(context, continuation) for _, context, continuation in requests])
        if lost := sum(math.isnan(likelihood) for likelihood, _ in answers):
            # An accuracy computed from them would look like any other.
            raise StepFailed(
                f"{lost} of {len(requests)} log-likelihoods are not a number: the model computes nothing finite"
            )
        return answers

    def _report(self, more: int) -> None:
        self.done += more
        self.progress(self.done, max(self.done, self.requests))
