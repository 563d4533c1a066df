"""Generated recall: rows that look back, items at exact distances, and the entry test of a base."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.nn import functional

from analysis.data.metrics import METRICS
from mlkv.context import MetricRow, StepFailed
from mlkv.corpus import step as corpus
from mlkv.corpus import tokenizer
from mlkv.corpus.blocks import open_blocks
from mlkv.corpus.manifest import read_manifest
from mlkv.corpus.recall import FARTHEST, FEW, NEAREST, OF_FEW, PART, Ids, RecallRows, Words, copied
from mlkv.corpus.recall_items import DRAWS, RecallItem, distances, name_of
from mlkv.evaluate import entry
from mlkv.evaluate.entry_rule import failure
from mlkv.evaluate.task_names import RECALL_TASKS, TASKS_FOLDER
from mlkv.evaluate.tasks import Scores, Scoring
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import mha
from mlkv.recipes import CorpusRecipe, EvaluateRecipe
from tests.support.read_back import present
from tests.support.tiny import SHAPE, context, corpus_recipe, make_corpus

LENGTH, VOCABULARY = 96, 1024
SHARE = 0.4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recall")
    return make_corpus(folder, vocab_size=VOCABULARY, task_items=0, recall=SHARE, recall_items=20)


@pytest.fixture(scope="module")
def encoder(made: Path) -> tokenizer.Encoder:
    return tokenizer.Encoder(tokenizer.load(made / "tokenizer"))


@pytest.fixture(scope="module")
def items(made: Path) -> list[RecallItem]:
    names = [name_of(task, d) for task in DRAWS for d in distances(LENGTH, VOCABULARY)]
    lines = [line for name in names for line in (made / "tasks" / f"{name}.jsonl").read_text("utf-8").splitlines()]
    return [RecallItem(**json.loads(line)) for line in lines]


# Rows of the training text


def documents(row_T: Ids, end: int) -> list[Ids]:
    """What follows each end-of-text token of a row."""
    return [part_T[1:] for part_T in np.split(row_T, np.flatnonzero(row_T == end)[1:])]


def copy_distance(body_T: Ids) -> int | None:
    """Of a row that repeats itself; None where it does not."""
    fits = (n for n in range(2, len(body_T)) if (body_T[n:] == body_T[:-n]).all())
    return next((n for n in fits if n <= FARTHEST * len(body_T)), None)


def is_recall(body_T: Ids, words: Words) -> bool:
    """Pairs in which a key never has two values, and comes again."""
    written = (body_T[1::4] == words.between).all() and (body_T[3::4] == words.end).all()
    keys, values = (body_T[0::4], body_T[2::4]) if written else (body_T[0::2], body_T[1::2])
    found: dict[int, int] = {}
    pairs = list(zip(keys.tolist(), values.tolist(), strict=False))
    return all(found.setdefault(key, value) == value for key, value in pairs) and len(found) < len(pairs)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 10**9), length=st.integers(48, 300))
def test_every_row_is_predicted_by_what_is_in_it(
    encoder: tokenizer.Encoder, seed: int, number: int, length: int
) -> None:
    row_T = RecallRows(length, seed, encoder, SHARE).row(number)
    assert row_T.shape == (length,)
    assert row_T[0] == encoder.end
    assert row_T.max() < encoder.vocab_size
    parts = documents(row_T, encoder.end)
    recalls = len(parts) == 1 and is_recall(parts[0], Words.of(encoder))
    assert recalls or all(copy_distance(body_T) for body_T in parts)
    assert (RecallRows(length, seed, encoder, SHARE).row(number) == row_T).all()
    assert (RecallRows(length, seed ^ 1, encoder, SHARE).row(number) != row_T).any()


@given(seed=st.integers(0, 2**32 - 1), most=st.integers(1, 400), tokens=st.integers(FEW, 500))
def test_a_copy_is_exact_and_says_what_follows_at_any_length(seed: int, most: int, tokens: int) -> None:
    body_T = copied(np.random.default_rng(seed), np.arange(1, 1 + tokens), most)
    farthest = min(tokens, max(2, int(FARTHEST * most)))
    distance = copy_distance(body_T)
    assert most < 6 or distance in range(min(NEAREST, farthest), farthest + 1)
    assert len(set(body_T.tolist())) == min(len(body_T), distance or most), "no token comes before its time"
    assert len(body_T) == most or most - len(body_T) >= PART, "what is left is a part too"
    assert len(body_T) >= min(most, PART - 1)


def test_near_and_far_copies_are_equally_common() -> None:
    random = np.random.default_rng(3)
    found = [copy_distance(copied(random, np.arange(10**4), 256)) for _ in range(400)]
    octaves = np.bincount([int(math.log2(present(d) / NEAREST)) for d in found])
    whole = octaves[: int(math.log2(FARTHEST * 256 / NEAREST))]
    assert len(octaves) == len(whole) + 1, "up to the farthest, in the midst of an octave"
    assert (abs(whole - whole.mean()) < 4 * math.sqrt(whole.mean())).all()


def test_half_of_the_rows_are_made_of_the_same_few_tokens(encoder: tokenizer.Encoder) -> None:
    rows = RecallRows(LENGTH, 1, encoder, SHARE)
    few = set(rows._every_token[:FEW].tolist())
    bodies = [set(rows.row(number).tolist()) - {encoder.end} for number in range(400)]
    copies = [body for body in bodies if not {rows.words.between, rows.words.end} <= body]
    share = sum(body <= few for body in copies) / len(copies)
    assert share == pytest.approx(OF_FEW, abs=4 * math.sqrt(OF_FEW * (1 - OF_FEW) / len(copies)))


def test_generated_rows_lie_between_those_of_the_text(made: Path, encoder: tokenizer.Encoder, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    recipe = corpus_recipe(made.parent / "text", tokenizer="model", task_items=0)
    corpus.run(recipe, plain, context(tmp_path), tokenizer=made / "tokenizer")
    text, mixed = open_blocks(plain, "train").rows, open_blocks(made, "train").rows
    rows = RecallRows(LENGTH, 42, encoder, SHARE)
    generated = len(mixed) - len(text)
    assert generated == int(len(text) * SHARE / (1 - SHARE))
    own = {rows.row(number).astype(mixed.dtype).tobytes(): number for number in range(generated)}
    numbers = [own[row.tobytes()] for row in mixed if row.tobytes() in own]
    assert numbers == list(range(generated))
    rest = np.array([row for row in mixed if row.tobytes() not in own])
    assert (rest == text).all()
    assert (open_blocks(plain, "heldout").rows == open_blocks(made, "heldout").rows).all()
    assert read_manifest(plain).train.bytes == read_manifest(made).train.bytes


# Items


def test_every_item_asks_for_what_is_so_many_tokens_back(items: list[RecallItem], encoder: tokenizer.Encoder) -> None:
    assert len(items) == 20 * len(DRAWS) * 3
    for item in items:
        context_T = encoder.ids([item.context])[0]
        whole_T = encoder.ids([item.context + item.target])[0]
        assert (whole_T[:-1] == context_T).all(), "the target is one token, and cut where the item is"
        assert len(whole_T) <= LENGTH
        assert whole_T[-1] == whole_T[-1 - item.distance]
        asked = -3 if item.context.endswith(" =") else -2
        places = np.flatnonzero(whole_T == whole_T[asked])
        assert len(whole_T) + asked - item.distance in places, "the key, or the word before, is as far back"


def test_no_item_is_in_the_training_text(items: list[RecallItem], made: Path, encoder: tokenizer.Encoder) -> None:
    run = 8
    trained = sliding_window_view(np.asarray(open_blocks(made, "train").rows, np.int64), run, axis=1)
    seen = set(map(bytes, np.ascontiguousarray(trained.reshape(-1, run))))
    for item in items:
        ids_T = encoder.ids([item.context + item.target])[0]
        assert not any(bytes(np.ascontiguousarray(each)) in seen for each in sliding_window_view(ids_T, run))


def test_the_names_of_the_tasks_are_those_of_the_items(made: Path) -> None:
    assert tuple(DRAWS) == RECALL_TASKS
    assert list(read_manifest(made).tasks)[3:] == [name_of(t, d) for t in DRAWS for d in (16, 32, 64)]


@pytest.mark.parametrize("task", RECALL_TASKS)
def test_the_model_reads_an_item_as_a_row_that_it_was_trained_on(task: str, made: Path, tmp_path: Path) -> None:
    from mlkv.evaluate import harness

    own = tokenizer.load(made / "tokenizer")
    encoder = tokenizer.Encoder(own)
    for name, member in harness._load_recall(task, TASKS_FOLDER, made, tmp_path)["tasks"].items():
        member.build_all_requests(limit=3, rank=0, world_size=1)
        items = (made / "tasks" / f"{name}.jsonl").read_text("utf-8").splitlines()[:3]
        for request, line in zip(member.instances, items, strict=True):
            context, target = request.args
            expected = [encoder.end, *encoder.ids([json.loads(line)["context"]])[0].tolist()]
            assert own(context)["input_ids"] == expected
            assert target == json.loads(line)["target"]


def test_rows_that_are_too_short_are_refused() -> None:
    short, reason = partial(CorpusRecipe, sequence_length=31), "generated text needs rows of at least 32 tokens .*= 31"
    with pytest.raises(ValueError, match=f"recall = 0.5: {reason}"):
        short(recall=0.5)
    with pytest.raises(ValueError, match=f"recall_items = 5: {reason}"):
        short(recall_items=5)


def test_a_tokenizer_without_words_is_refused() -> None:
    bare = tokenizer.Encoder(tokenizer.train(["ab = c;"], 260))
    with pytest.raises(StepFailed, match=r"1 of the tokenizer's tokens are whole words .* vocab_size"):
        Words.of(bare)


# The entry test


class Copier(torch.nn.Module):
    """Predicts what followed a token the last time within `reach` tokens, and any token where nothing did."""

    def __init__(self, reach: int, context: int = LENGTH) -> None:
        super().__init__()
        self.reach, self.shape, self.layout = reach, replace(SHAPE, vocab_size=VOCABULARY, context=context), mha(2, 2)
        self.sure = torch.nn.Parameter(torch.tensor(12.0))
        self.device = self.sure.device

    def forward(self, ids_BT: Tensor, logits_to_keep: int) -> SimpleNamespace:
        before_BTT = torch.ones(ids_BT.shape[1], ids_BT.shape[1]).tril(-1).triu(-self.reach)
        same_BTT = (ids_BT[:, :, None] == ids_BT[:, None, :]) * before_BTT
        last = torch.where(same_BTT.any(-1), same_BTT.shape[-1] - 1 - same_BTT.flip(-1).argmax(-1), -1)
        following_BT = ids_BT.gather(1, (last + 1).clamp(max=ids_BT.shape[1] - 1))
        logits = functional.one_hot(following_BT, VOCABULARY) * self.sure * (last >= 0)[..., None]
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def scored(model: Any, folder: Path, task: Any, limit: int = 12) -> Scores:
    recipe = EvaluateRecipe(task="entry_test", limit=limit)
    return task(Scoring(recipe, model, folder, folder, "fp32", lambda done, of: None))


def values(scores: Scores) -> dict[str, float]:
    return {f"{row.subtask or ''}{row.metric}": present(row.value) for row in scores.metrics}


def test_a_copy_costs_what_the_reach_of_the_model_makes_of_it(made: Path) -> None:
    found = values(scored(Copier(reach=40), made, entry.copying))
    nats = {d: found[f"distance_{d}nats_per_token"] for d in (8, 16, 32, 64)}
    assert max(nats[8], nats[16], nats[32]) < 0.7, "a token that comes twice is copied wrongly"
    assert nats[64] == pytest.approx(math.log(VOCABULARY), rel=0.2)


def test_a_model_without_use_for_context_gains_nothing(made: Path) -> None:
    found = values(scored(Copier(reach=4), made, entry.context_gain))
    assert found["context_gain"] == pytest.approx(0, abs=1e-6)
    assert len({found[f"context_{c}nats_per_token"] for c in (8, 16, 32, 64, 96)}) == 1


def test_one_pass_and_a_pass_for_each_target_agree(made: Path) -> None:
    """A context that is as long as what the window has scores as the window itself."""
    model = MLKVForCausalLM.from_shape(replace(SHAPE, vocab_size=VOCABULARY), mha(2, 2), seed=3).eval()
    samples = entry.Samples.of(Scoring(EvaluateRecipe("context_gain", limit=3), model, made, made, "fp32", print), "")
    ids_NT = samples.windows(LENGTH)
    whole_NK = samples.nats(ids_NT, 16)
    assert samples.nats(ids_NT, 1)[:, 0] == pytest.approx(whole_NK[:, -1], abs=1e-5)


def test_the_entry_test_passes_who_copies_and_uses_context_alone(made: Path) -> None:
    rows = {reach: scored(Copier(reach), made, entry.entry_test, 60).metrics for reach in (4, LENGTH)}
    assert failure(rows[4]) == (
        f"fails the entry test: copying costs {present(rows[4][0].value):.2f} nats (asked: < 1), "
        "context is worth 0.000 nats (asked: ≥ 0.1)"
    )
    copied_nats, gain, passed = (present(row.value) for row in rows[LENGTH])
    assert copied_nats < 1
    assert passed == (gain >= 0.1)
    assert (failure(rows[LENGTH]) is None) == bool(passed)


@given(copying=st.floats(0, 20), gain=st.floats(-1, 1))
def test_the_reason_of_a_failure_is_what_failed(copying: float, gain: float) -> None:
    rows = [
        MetricRow("copying", copying),
        MetricRow("context_gain", gain),
        MetricRow("entry_test", float(copying < 1 and gain >= 0.1)),
    ]
    reason = failure(rows) or ""
    assert ("copying" in reason, "context" in reason) == (copying >= 1, gain < 0.1)


def test_tables_say_it_in_words() -> None:
    assert [METRICS["entry_test"].text(value) for value in (0.0, 1.0, 0.5)] == ["fails", "passes", "0.50"]


def test_a_model_that_is_too_short_is_refused(made: Path) -> None:
    short = Copier(reach=4, context=80)
    with pytest.raises(StepFailed, match="needs rows of more than 80 tokens; here 80"):
        scored(short, made, entry.copying)
