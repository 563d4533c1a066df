"""Log-likelihoods: lm-eval's own answers, with less read and smaller logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from mlkv.corpus.tokenizer import load as load_tokenizer
from mlkv.evaluate import batch_size, likelihoods
from mlkv.evaluate.batch_size import BatchSize
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, mha
from mlkv.patterns import make, name_of
from tests.support.evaluations import Asked, answers_of_hflm, draw, lm_of, requests_of_kinds
from tests.support.tiny import SHAPE


@pytest.mark.parametrize("layout", [mha(2, 2), make("even", 2, 2, 1, 1)], ids=name_of)
@pytest.mark.parametrize("worth", [1, 10**9], ids=["beginnings once", "beginnings each time"])
def test_tokens_that_are_read_once_give_the_answers_of_lm_evals_own(
    layout: KVLayout, worth: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(likelihoods.WORTH, "cpu", worth)
    monkeypatch.setitem(likelihoods.LOGITS_AT_ONCE, "cpu", 7 * SHAPE.vocab_size)
    model = MLKVForCausalLM.from_shape(SHAPE, layout, seed=5).eval()
    requests = requests_of_kinds(np.random.default_rng(0))
    greedy = model(torch.tensor([requests[0][1]])).logits[0, -1].argmax().item()
    requests.append((("", "greedy"), requests[0][1], [greedy]))
    found = lm_of(model, checkpoint)._loglikelihood_tokens(requests)
    expected = answers_of_hflm(model, checkpoint, requests)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert found[-1][1], "the greedy token is known as such"


def test_a_beginning_is_read_once_where_that_saves_enough(checkpoint: Path) -> None:
    model = MLKVForCausalLM.from_shape(SHAPE, mha(2, 2), seed=5).eval()
    random = np.random.default_rng(0)
    examples = draw(random, 60)
    many: list[Asked] = [(("", ""), [*examples, *draw(random, 5)], draw(random, 3)) for _ in range(12)]
    read: list[int] = []
    model.model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].numel()))
    for requests in (many, many[:2]):
        read.clear()
        lm_of(model, checkpoint)._loglikelihood_tokens(requests)
        whole = sum(len(context) + len(continuation) - 1 for _, context, continuation in requests)
        assert sum(read) == (60 + 12 * 7 if requests is many else whole)


def test_logits_are_computed_where_continuations_are_alone(checkpoint: Path) -> None:
    model = MLKVForCausalLM.from_shape(SHAPE, mha(2, 2), seed=5).eval()
    requests, computed = requests_of_kinds(np.random.default_rng(1)), 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        nonlocal computed
        computed += inputs[0].numel() // SHAPE.width

    model.model.head.register_forward_pre_hook(count)
    lm_of(model, checkpoint)._loglikelihood_tokens(requests)
    assert computed == sum(len(continuation) for _, _, continuation in requests)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), max_size=12), st.integers(1, 12))
def test_every_text_is_in_one_family_and_begins_as_it_says(contexts: list[list[int]], worth: int) -> None:
    texts = [
        likelihoods.Text(tokens, [likelihoods.Continuation(i, [1])] * (1 + i % 2)) for i, tokens in enumerate(contexts)
    ]
    found = likelihoods.families(texts, worth)
    assert sorted(id(text) for _, family in found for text in family) == sorted(map(id, texts))
    for beginning, family in found:
        for text in family:
            assert text.tokens[: len(beginning)] == beginning
            assert len(beginning) <= text.beginning
        assert not beginning or len(beginning) * (len(family) - 1) >= worth


def test_the_windows_of_a_long_text_give_its_likelihood(checkpoint: Path) -> None:
    """Windows of several texts in one order by length; each token is predicted once."""
    model = MLKVForCausalLM.from_pretrained(checkpoint).eval()
    source = Path(__file__).read_text("utf-8")
    texts = [source[:40], source[:1500], source[200:700]]
    asked = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    own = HFLM(model, tokenizer=load_tokenizer(checkpoint), batch_size=2, max_length=SHAPE.context)
    assert lm_of(model, checkpoint).loglikelihood_rolling(asked) == pytest.approx(
        own.loglikelihood_rolling(asked, True)
    )


def test_where_memory_runs_out_passes_become_smaller_and_answers_stay(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MLKVForCausalLM.from_shape(SHAPE, mha(2, 2), seed=5).eval()
    requests = requests_of_kinds(np.random.default_rng(0))
    expected = lm_of(model, checkpoint)._loglikelihood_tokens(requests)
    sizes: list[int] = []

    def refuse(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        sizes.append(inputs[0].numel())
        if inputs[0].numel() > 150:
            raise torch.OutOfMemoryError("more than 150 tokens")

    model.model.register_forward_pre_hook(refuse)
    lm = lm_of(model, checkpoint)
    with pytest.raises(torch.OutOfMemoryError):  # a given number is kept to
        lm._loglikelihood_tokens(requests)
    monkeypatch.setattr(batch_size, "available_memory", lambda: 2**22)
    lm.rows = BatchSize.of("auto", model)
    found = lm._loglikelihood_tokens(requests)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert max(sizes) > 150 >= sizes[-1]


def test_memory_decides_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MLKVForCausalLM.from_shape(SHAPE, mha(2, 2), seed=5)
    size = BatchSize.of("auto", model)
    for free, rows in ((2**40, batch_size.MOST_TOKENS["cpu"] // 64), (2**10, 1)):
        monkeypatch.setattr(batch_size, "available_memory", lambda free=free: free)
        assert size.at(64) == rows
    monkeypatch.setattr(batch_size, "available_memory", lambda: 2**26)
    assert 1 < size.at(64) < batch_size.MOST_TOKENS["cpu"] // 64
    assert size.at(32) in (2 * size.at(64), 2 * size.at(64) + 1)
    assert BatchSize.of(5, model).at(64) == 5
