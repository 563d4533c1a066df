"""Evaluations and log-likelihoods of small models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.models.huggingface import HFLM

from mlkv.context import MetricRow, Outcome
from mlkv.corpus.tokenizer import load as load_tokenizer
from mlkv.evaluate import step as evaluate
from mlkv.evaluate.batch_size import BatchSize
from mlkv.evaluate.harness_model import HarnessLM
from mlkv.hf import MLKVForCausalLM
from mlkv.recipes import EvaluateRecipe
from tests.support.tiny import SHAPE, context

Asked = tuple[tuple[str, str], list[int], list[int]]


def outcome_of(recipe: EvaluateRecipe, folder: Path, checkpoint: Path, corpus: Path | None, **given: Any) -> Outcome:
    (folder / "out").mkdir(exist_ok=True)
    ctx = given.pop("ctx", context(folder))
    return evaluate.run(recipe, folder / "out", ctx, checkpoint=checkpoint, corpus=corpus, **given)


def score(*args: Any, **given: Any) -> dict[str, MetricRow]:
    """The step's metrics by name; arguments as of `outcome_of`."""
    return {row.metric: row for row in outcome_of(*args, **given).metrics}


def lm_of(model: MLKVForCausalLM, checkpoint: Path, batch_size: int = 8) -> HarnessLM:
    rows, tokenizer = BatchSize.of(batch_size, model), load_tokenizer(checkpoint)
    return HarnessLM(model, tokenizer, batch_size=rows, precision="fp32", progress=lambda done, of: None)


def answers_of_hflm(model: MLKVForCausalLM, checkpoint: Path, requests: list[Asked]) -> list[tuple[float, bool]]:
    """lm-eval's own: every request in full, padded to the longest of its batch."""
    lm = HFLM(model, tokenizer=load_tokenizer(checkpoint), batch_size=3, max_length=model.shape.context)
    answers: list[tuple[float, bool]] = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    return answers


def draw(random: np.random.Generator, length: int) -> list[int]:
    return [int(token) for token in random.integers(0, SHAPE.vocab_size, length)]


def requests_of_kinds(random: np.random.Generator) -> list[Asked]:
    """Shared contexts and own ones, of equal and other lengths, too long ones, worked examples and passages that
    contexts begin with."""
    requests: list[Asked] = []
    for context_length, lengths in (
        *((20, (1, 1, 1)), (20, (5, 2, 9, 1)), (7, (3,)), (90, (10, 3)), (20, (4, 4)), (1, (40, 50)), (120, (30,))),
        (300, (5, 5)),
    ):
        context = draw(random, context_length)
        requests += [(("", ""), context, draw(random, n)) for n in lengths]
    examples, passage = draw(random, 60), draw(random, 30)
    for i in range(9):
        context = [*examples, *(passage if i % 2 else []), *draw(random, 4 + i % 3)]
        requests += [(("", ""), context, draw(random, n)) for n in ((2, 3) if i % 3 else (4,))]
    return requests
