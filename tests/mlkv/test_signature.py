"""Signatures: the rules by property, on curves and scores of which it is known what they are."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.task import ConfigurableTask

from mlkv.context import MetricRow
from mlkv.corpus.blocks import open_blocks
from mlkv.corpus.manifest import read_manifest
from mlkv.evaluate import chance
from mlkv.evaluate.bits import cut_windows
from mlkv.evaluate.unigram import unigram
from mlkv.signature import CHANCE, DIVERGED, SPIKES, Chance, of_scores, of_training
from mlkv.train.schedule import SPIKE, divergence, spikes

seeds = st.integers(0, 2**32 - 1)


def curve(seed: int, noise: float, rows: int) -> list[tuple[int, float]]:
    """A loss that falls by a power law, with normal noise: no training is smoother."""
    random = np.random.default_rng(seed)
    steps = 5 * np.arange(1, rows + 1)
    losses = random.uniform(1.5, 3) + random.uniform(1, 8) * (steps / 5) ** -random.uniform(0.1, 0.8)
    return list(zip(steps.tolist(), (losses + noise * random.standard_normal(rows)).tolist(), strict=True))


def words(losses: list[tuple[int, float]], warmup: int = 0) -> list[str]:
    """The signatures of a training with these losses."""
    found, ended = spikes(losses, warmup), divergence(losses, warmup)
    facts = {SPIKES: [asdict(spike) for spike in found]} | ({DIVERGED: asdict(ended)} if ended else {})
    return [signature.word for signature in of_training([], facts)]


@settings(max_examples=50)
@given(seeds, st.floats(0, 0.15), st.integers(1, 300))
def test_a_falling_curve_with_noise_is_not_unstable(seed: int, noise: float, rows: int) -> None:
    assert words(curve(seed, noise, rows)) == []


@settings(max_examples=50)
@given(seeds, st.floats(0, 0.15), st.integers(10, 200), st.floats(2, 20), st.data())
def test_a_spike_is_unstable_wherever_it_is_behind_the_warmup(
    seed: int, noise: float, rows: int, height: float, data: st.DataObject
) -> None:
    losses = curve(seed, noise, rows)
    place = data.draw(st.integers(6, rows - 1))
    before = np.median([loss for _, loss in losses[max(0, place - 25) : place]])
    losses[place] = (losses[place][0], float(before) + height)
    assert words(losses) == ["unstable"]


@settings(max_examples=20)
@given(seeds, st.floats(0, 0.05), st.floats(1.5, 8))
def test_a_loss_that_climbs_slowly_is_unstable_although_no_row_is_a_spike(seed: int, noise: float, by: float) -> None:
    falling = curve(seed, noise, 100)
    climbing = [(500 + 5 * (i + 1), falling[-1][1] + by * (i + 1) / 300) for i in range(300)]
    assert spikes(falling + climbing, 0) == []
    assert words(falling + climbing) == ["unstable"]
    assert divergence(climbing[-3:], 0) is None, "of so few rows no median says anything"


def test_the_reason_names_the_worst_spike_and_how_it_ended() -> None:
    facts = {
        SPIKES: [{"step": 40, "loss": 5.0, "median": 3.5}, {"step": 60, "loss": 9.0, "median": 3.25}],
        DIVERGED: {"last": 7.0, "best": 3.1, "step": 30},
    }
    [found] = of_training([], facts)
    assert found.why == (
        "2 logged losses spiked (9 at step 60, over a running median of 3.25), its loss ended far above its best "
        "(7, over 3.1 at step 30)"
    )
    assert of_training([], {}) == of_training([], {SPIKES: []}) == []
    assert SPIKE == 1.0


@given(st.floats(0, 1), st.floats(0, 0.2), st.floats(-1, 2), st.booleans())
def test_a_score_has_collapsed_unless_it_is_better_by_more_than_noise(
    level: float, stderr: float, score: float, lower: bool
) -> None:
    facts = {CHANCE: {"x": Chance(level, stderr, "nothing", lower).as_json()}}
    better = level - score if lower else score - level
    found = of_scores([MetricRow("x", score), MetricRow("y", score)], facts)
    assert [each.word for each in found] == ([] if better > 1.96 * stderr else ["collapsed"])


def test_records_that_do_not_say_what_chance_is_have_no_signature() -> None:
    assert of_scores([MetricRow("acc", 0.0)], {}) == []
    assert of_scores([MetricRow("acc", None)], {CHANCE: {"acc": Chance(0.5, 0.1, "guessing").as_json()}}) == []


def test_the_unigram_model_is_what_counting_the_training_text_gives(corpus: Path) -> None:
    cost_V, end = unigram(corpus), read_manifest(corpus).end_of_text
    blocks = open_blocks(corpus, "train")
    known = blocks.rows[(blocks.rows != end) & (blocks.rows != blocks.padding)]
    size = read_manifest(corpus).vocab_size
    assert cost_V is not None
    for token in {*known[:20].tolist(), next(t for t in range(size) if t != end)}:
        expected = -math.log((int((known == token).sum()) + 1) / (len(known) + size - 1))
        assert cost_V[token] == pytest.approx(expected, rel=1e-12)
    windows = cut_windows(corpus, None)
    assert np.isfinite(cost_V[windows.ids[:, 1:]][windows.counted]).all(), "whatever the held-out text has"
    assert np.exp(-cost_V).sum() == pytest.approx(1)


def test_a_corpus_without_its_training_text_says_nothing(tmp_path: Path) -> None:
    assert unigram(tmp_path) is None


class Task(ConfigurableTask):
    """One of lm-eval's, as far as chance asks it."""

    def __init__(self, kind: str) -> None:
        self.OUTPUT_TYPE = kind

    def doc_to_choice(self, doc: Any, *_: Any) -> Any:
        return doc["choices"]

    def doc_to_target(self, doc: Any, *_: Any) -> Any:
        return doc["target"]

    def doc_to_text(self, doc: Any, *_: Any) -> Any:
        return doc.get("text", "")


def levels(kind: str, documents: list[Any], **given: Any) -> dict[str, Chance]:
    rows = [MetricRow("acc", 0.5), MetricRow("perplexity", 3.0)]
    return chance.of_questions({"t": Task(kind)}, [("t", each) for each in documents], rows, **given)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 8), min_size=2, max_size=60), seeds)
def test_guessing_is_right_as_often_as_a_guesser(choices: list[int], seed: int) -> None:
    documents = [{"choices": [f"{i} {n}" for n in range(count)], "target": 0} for i, count in enumerate(choices)]
    [level] = levels("multiple_choice", documents).values()
    random = np.random.default_rng(seed)
    scores = (random.random((4000, len(choices))) < 1 / np.array(choices)).mean(1)
    assert scores.mean() == pytest.approx(level.value, abs=0.03)
    assert scores.std() == pytest.approx(level.stderr, abs=0.02)


def test_where_all_questions_have_the_same_choices_always_the_commonest_answer_counts() -> None:
    documents = [{"choices": ["no", "yes"], "target": int(i < 7)} for i in range(10)]
    assert levels("multiple_choice", documents)["acc"].value == 6 / 9, "of the other nine"
    assert levels("multiple_choice", documents)["acc"].by == chance.ALWAYS


def test_a_word_that_is_asked_for_is_one_of_the_questions_words() -> None:
    documents = [{"text": " a b c = d;", "target": " c"}, {"text": " e a", "target": " e"}]
    assert levels("loglikelihood", documents, of_words=True)["acc"].value == 0.2
    assert levels("loglikelihood", documents)["acc"].value == 0.0, "no answer is right twice"
    assert levels("generate_until", documents) == {}


def test_a_groups_level_is_over_all_questions_of_its_members() -> None:
    tasks = {"two": Task("multiple_choice"), "four": Task("multiple_choice")}
    questions = [("two", {"choices": [f"{i}", "x"], "target": 0}) for i in range(30)]
    questions += [("four", {"choices": [f"{i}", "x", "y", "z"], "target": 0}) for i in range(10)]
    rows = [MetricRow("acc", 0.5), MetricRow("acc", 0.5, subtask="two"), MetricRow("acc", 0.5, subtask="four")]
    found = chance.of_questions(tasks, questions, rows)
    assert {name: level.value for name, level in found.items()} == {"acc": 17.5 / 40, "two/acc": 0.5, "four/acc": 0.25}
    assert found["acc"].stderr == pytest.approx(math.sqrt(30 * 0.25 + 10 * 0.1875) / 40)
    assert chance.of_questions(tasks | {"other": Task("generate_until")}, [*questions, ("other", {})], rows[:1]) == {}
