"""Loss by position, with a retrieved passage in front, and by domain."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mlkv.context import StepFailed
from mlkv.corpus import tokenizer
from mlkv.corpus.domains import check_library, code_and_prose, library_texts
from mlkv.corpus.manifest import read_manifest
from mlkv.evaluate import domains, position_loss, retrieval
from mlkv.evaluate.entry import Samples
from mlkv.evaluate.tasks import Score, Scores, Scoring
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import mha
from mlkv.recipes import EvaluateRecipe
from tests.support.read_back import present
from tests.support.tiny import SHAPE, make_corpus

LENGTH, VOCABULARY = 96, 1024


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("range"), vocab_size=VOCABULARY, task_items=0)


def model(**changes: Any) -> Any:
    return MLKVForCausalLM.from_shape(replace(SHAPE, vocab_size=VOCABULARY, **changes), mha(2, 2), seed=3).eval()


class Known(torch.nn.Module):
    """Guesses among the tokens that were there before."""

    def __init__(self) -> None:
        super().__init__()
        self.shape, self.layout = replace(SHAPE, vocab_size=VOCABULARY, context=LENGTH), mha(2, 2)
        self.sure = torch.nn.Parameter(torch.tensor(12.0))
        self.device = self.sure.device

    @property
    def model(self) -> Known:
        """Its own decoder, as of a model of transformers."""
        return self

    def forward(self, ids_BT: Tensor) -> Tensor:
        return (functional.one_hot(ids_BT, VOCABULARY).cumsum(1) > 0).float()

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden * self.sure


def scored(one: Any, corpus: Path, score: Score, limit: int = 12) -> Scores:
    recipe = EvaluateRecipe(task="any", limit=limit)
    return score(Scoring(recipe, one, corpus, corpus, "fp32", lambda done, of: None))


def values(scores: Scores) -> dict[str, float]:
    return {"/".join(filter(None, [row.subtask, row.metric])): present(row.value) for row in scores.metrics}


# By position


@given(row=st.integers(17, 3000), times=st.floats(1, 5))
def test_groups_of_places_cover_a_window_once_and_end_in_rows(row: int, times: float) -> None:
    window = int(row * times)
    found = position_loss.groups(row, window)
    places = [place for part in found.values() for place in range(part.start, part.stop)]
    assert places == list(range(window - 1))
    for name, part in found.items():
        kind, _, last = name.rpartition("_")
        assert part.stop == int(last) - 1, "the token at place p is predicted as number p - 2"
        assert (kind == "beyond") == (int(last) > row)


def test_loss_by_position_is_that_of_the_same_tokens_one_by_one(made: Path) -> None:
    one = model()
    scores = scored(one, made, position_loss.score, 5)
    found = values(scores)
    names = ["position_16", "position_32", "position_64", "position_96", "beyond_192", "beyond_384"]
    assert list(found) == ["nats_per_token", *(f"{name}/nats_per_token" for name in names)]
    samples = Samples.of(Scoring(EvaluateRecipe("x", limit=5), one, made, made, "fp32", print), "", 16)
    ids = torch.from_numpy(samples.windows(4 * LENGTH))
    with torch.inference_mode():
        logits = one(ids[:, :-1]).logits
    nats = functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
    counted = ids[:, 1:] != samples.end
    for name, part in position_loss.groups(LENGTH, 4 * LENGTH).items():
        mean = float((nats * counted)[:, part].sum() / counted[:, part].sum())
        assert found[f"{name}/nats_per_token"] == pytest.approx(mean, rel=1e-5)
    whole = float((nats * counted)[:, : LENGTH - 1].sum() / counted[:, : LENGTH - 1].sum())
    assert found["nats_per_token"] == pytest.approx(whole, rel=1e-5), "of a row, without what is beyond it"


def test_learned_positions_end_with_the_context(made: Path) -> None:
    found = values(scored(model(positions="learned", context=150), made, position_loss.score, 3))
    assert [name.partition("/")[0] for name in found][-2:] == ["position_96", "beyond_150"]
    found = values(scored(model(positions="learned"), made, position_loss.score, 3))
    assert not any(name.startswith("beyond") for name in found)


def test_passes_do_not_change_what_a_place_costs(made: Path) -> None:
    one = model()
    all_at_once, one_by_one = (
        values(position_loss.score(Scoring(EvaluateRecipe("x", limit=4, batch_size=n), one, made, made, "fp32", _none)))
        for n in (64, 1)
    )
    assert all_at_once == pytest.approx(one_by_one, rel=1e-6)


def _none(done: int, of: int) -> None:
    return


# With a retrieved passage


def test_what_is_in_front_is_worth_what_it_has_of_the_answer(made: Path) -> None:
    found = values(scored(Known(), made, retrieval.score, 16))
    alone, related, unrelated = (found[f"{name}/nats_per_token"] for name in ("alone", "related", "unrelated"))
    assert found["retrieval_gain"] == pytest.approx(alone - related)
    assert found["related_gain"] == pytest.approx(unrelated - related)
    assert found["related_gain"] > 0, "a related passage has more of the answer than another"


def test_a_passage_from_which_the_question_is_cut_is_found(made: Path) -> None:
    passages = retrieval.training_passages(made, 40, VOCABULARY)
    end = read_manifest(made).end_of_text
    numbers = np.arange(0, len(passages), 7)
    assert (retrieval.training_passages(made, 40, VOCABULARY // 2) < VOCABULARY // 2).all()
    near = retrieval.nearest(passages[numbers, :20], passages, VOCABULARY, end)
    assert (passages[near] == passages[numbers]).all(-1).mean() > 0.9


@given(st.lists(st.integers(0, 9), min_size=2, max_size=30))
def test_the_other_passage_is_never_the_related_one(near: list[int]) -> None:
    near_N = np.array(near)
    others = retrieval.others(near_N, 10)
    assert (others != near_N).all()
    assert set(others) <= set(range(10))


def test_all_checkpoints_are_scored_on_the_same_passages(made: Path) -> None:
    one, other = (scored(model(rotary_base=base), made, retrieval.score) for base in (1e4, 1e3))
    for name, outcome in one.outcomes.items():
        assert outcome.samples_digest == other.outcomes[name].samples_digest
        assert (outcome.weights == other.outcomes[name].weights).all()
    assert len({each.samples_digest for each in one.outcomes.values()}) == 1, "the three are the same answers"


# By domain


def test_a_module_is_parted_into_code_and_prose() -> None:
    source = '''"""What it is for."""
import os

# A remark
# of two lines.
def f(x):
    """Says x.

    Twice.
    """
    return "# no remark", x  # kept


class C:
    def g(self): "One line."
'''
    code, prose = code_and_prose(source)
    assert prose == "What it is for.\n\nA remark\nof two lines.\n\nSays x.\n\nTwice.\n\nOne line.\n"
    assert code == '\nimport os\n\ndef f(x):\n    return "# no remark", x  # kept\n\n\nclass C:\n'.lstrip("\n")
    assert code_and_prose("The *if* statement:\n") == ("", "The *if* statement:\n")


@settings(max_examples=30)
@given(st.text(max_size=200))
def test_any_text_is_parted(text: str) -> None:
    code, prose = code_and_prose(text)
    assert code or prose or not text.strip()


def test_domains_are_scored_in_bits_and_nats(made: Path) -> None:
    one = model()
    for score in (domains.code, domains.prose):
        scores = scored(one, made, score, 4)
        found = values(scores)
        assert scores.chance.keys() == found.keys(), "the unigram model's, of the same windows"
        assert found["nats_per_token"] == pytest.approx(math.log(VOCABULARY), rel=0.1)
        assert 1 < found["bits_per_byte"] < 9
    assert list(values(scored(one, made, domains.recall, 4))) == ["nats_per_token"]


def test_recall_text_counts_what_a_look_back_predicts(made: Path) -> None:
    assert values(scored(Known(), made, domains.recall, 30))["nats_per_token"] < math.log(LENGTH) + 1
    found = domains.repeated(np.array([0, 5, 6, 7, 5, 6, 8, 5, 6, 0, 5, 6, 5, 6, 0, 5]), end=0)
    assert np.flatnonzero(found).tolist() == [4, 7, 12], "within a document, and never its end"


def test_rows_of_a_domain_stand_for_the_bytes_of_their_text(made: Path) -> None:
    encoder = tokenizer.Encoder(tokenizer.load(made / "tokenizer"))
    texts = ["def f(x):\n    return x\n" * 9, "naïve “prose”, and more of it. " * 9]
    windows = domains.cut(encoder, texts, 8)
    assert (windows.bytes[~windows.counted] == 0).all()
    [code], [prose] = (domains.cut(encoder, [text], len(encoder.ids([text])[0]) + 1).bytes for text in texts)
    assert [sum(code), sum(prose)] == [len(text.encode()) for text in texts], "all tokens but the end of text"
    assert not len(domains.cut(encoder, [], 8).ids)
    assert windows.ids.shape == (sum(len(ids) + 1 for ids in encoder.ids(texts)) // 8, 8)


def test_another_library_is_refused() -> None:
    with pytest.raises(StepFailed, match="this Python's standard library is not the one that was planned"):
        check_library("0" * 64)


def test_the_two_domains_hold_out_what_a_corpus_of_the_library_does() -> None:
    texts = library_texts(0.05)
    assert sum(map(len, texts.code)) > 50_000 < sum(map(len, texts.prose))
    assert texts is library_texts(0.05), "read once"
