"""A chain of runs that each continue the shorter one's trunk: bit for bit what one run of the same schedule gives.

The fast suite has a short example in test_adapters.py.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mlkv.context import Interrupted, Outcome, Row
from mlkv.train import step as train
from mlkv.train.schedule import Schedule
from mlkv.train.trunk import FOLDER
from mlkv.training_recipes import TrainRecipe
from tests.support.tiny import SHAPE, context, make_corpus

RECIPE = TrainRecipe(
    rungs=(4, 7),
    schedule="wsd",
    decay=0.4,
    warmup=0.5,
    min_lr_ratio=0.3,
    batch_size=4,
    lr=3e-3,
    precision="fp32",
    log_every=2,
    save_every=3,
)


def schedule(**changes: Any) -> Schedule:
    return Schedule.of(replace(RECIPE, **changes), 10, 100)


def rung(i: int, **changes: Any) -> TrainRecipe:
    return replace(RECIPE, rungs=RECIPE.rungs[: i + 1], **changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), task_items=0)


def go(
    folder: Path,
    corpus: Path,
    recipe: TrainRecipe,
    shorter: Path | None = None,
    rows: list[Row] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """A run in `folder`, which may hold an earlier attempt's work."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    ctx = context(folder / "work", rows, stop)
    given_shorter = None if shorter is None else shorter / "out"
    return train.run(recipe, folder / "out", ctx, corpus=corpus, start=None, shape=SHAPE, shorter=given_shorter)


def assert_same(folder: Path, other: Path, place: str = "model.safetensors") -> None:
    first, second = (load_file(each / "out" / place) for each in (folder, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def metrics(outcome: Outcome) -> dict[str, float | None]:
    return {row.metric: row.value for row in outcome.metrics if row.metric != "tokens_per_second"}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> dict[int, tuple[Path, Outcome, list[Row]]]:
    """By rung: the folder, the outcome and the logged rows."""
    found: dict[int, tuple[Path, Outcome, list[Row]]] = {}
    shorter = None
    for i, steps in enumerate(RECIPE.rungs):
        folder, rows = tmp_path_factory.mktemp(f"rung{steps}"), list[Row]()
        found[steps] = folder, go(folder, corpus, rung(i), shorter, rows), rows
        shorter = folder
    return found


@pytest.mark.long
@pytest.mark.parametrize("i", [0, 1])
def test_a_rung_is_what_one_run_of_its_schedule_gives(
    i: int, chain: dict[int, tuple[Path, Outcome, list[Row]]], corpus: Path, tmp_path: Path
) -> None:
    folder, outcome, rows = chain[RECIPE.rungs[i]]
    whole: list[Row] = []
    alone = go(tmp_path, corpus, rung(i), rows=whole)
    assert_same(folder, tmp_path)
    assert_same(folder, tmp_path, f"{FOLDER}/model.safetensors")
    assert metrics(outcome) == metrics(alone)
    assert outcome.facts == alone.facts
    assert outcome.facts["steps"] == RECIPE.rungs[i]
    assert rows[-1]["step"] == rows[-1]["steps"] == RECIPE.rungs[i]
    assert [row["loss"] for row in rows] == [row["loss"] for row in whole[-len(rows) :]]
    continued_from = schedule(rungs=RECIPE.rungs[:i]).trunk_steps if i else 0
    assert all(row["step"] > continued_from for row in rows), "the trunk is not trained twice"


@pytest.mark.long
def test_a_third_rung_continues_the_second(
    chain: dict[int, tuple[Path, Outcome, list[Row]]], corpus: Path, tmp_path: Path
) -> None:
    last = replace(RECIPE, rungs=(*RECIPE.rungs, 12))
    outcome = go(tmp_path / "12", corpus, last, chain[7][0])
    assert metrics(outcome) == metrics(go(tmp_path / "alone", corpus, last))
    assert_same(tmp_path / "12", tmp_path / "alone")


@pytest.mark.long
def test_rungs_differ_in_their_weights(chain: dict[int, tuple[Path, Outcome, list[Row]]]) -> None:
    with pytest.raises(AssertionError):
        assert_same(chain[4][0], chain[7][0])


@pytest.mark.long
@pytest.mark.parametrize("stopped", [3, 5, 6])
def test_an_interrupted_rung_resumes_bit_for_bit(
    stopped: int, chain: dict[int, tuple[Path, Outcome, list[Row]]], corpus: Path, tmp_path: Path
) -> None:
    """Stopped on the trunk, in the decay, and just before the end; rung 7 has its trunk's end at step 4."""
    rows: list[Row] = []
    with pytest.raises(Interrupted):
        go(tmp_path, corpus, rung(1, log_every=1), chain[4][0], rows, lambda: len(rows) >= stopped - 3)
    assert rows[-1]["step"] == stopped
    go(tmp_path, corpus, rung(1), chain[4][0])
    assert_same(tmp_path, chain[7][0])
    assert_same(tmp_path, chain[7][0], f"{FOLDER}/model.safetensors")


@pytest.mark.long
def test_a_rung_without_a_longer_trunk_leaves_the_shorter_ones(
    chain: dict[int, tuple[Path, Outcome, list[Row]]], corpus: Path, tmp_path: Path
) -> None:
    same = replace(RECIPE, rungs=(10, 11), decay=0.5, warmup=0.2)
    assert same.trunk_of(10) == same.trunk_of(11) == 5
    go(tmp_path / "10", corpus, replace(same, rungs=(10,)))
    go(tmp_path / "11", corpus, same, tmp_path / "10")
    go(tmp_path / "alone", corpus, same)
    assert_same(tmp_path / "11", tmp_path / "alone")
    assert_same(tmp_path / "11", tmp_path / "10", f"{FOLDER}/model.safetensors")


@pytest.mark.long
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_no_decay_and_nothing_but_decay(decay: float, corpus: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, rungs=(2, 4), decay=decay, warmup=0.0)
    go(tmp_path / "2", corpus, replace(recipe, rungs=(2,)))
    go(tmp_path / "4", corpus, recipe, tmp_path / "2")
    go(tmp_path / "alone", corpus, recipe)
    assert_same(tmp_path / "4", tmp_path / "alone")
    assert (tmp_path / "2" / "out" / FOLDER).is_dir() == (decay == 0)


# The schedule


def test_the_rate_is_constant_until_the_decay_and_falls_to_the_floor() -> None:
    run = schedule(rungs=(100,), decay=0.2, warmup=0.1)
    factors = [run.learning_rate_factor(step) for step in range(101)]
    assert factors[9] == 1.0
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(factors[10:81]) == {1.0}
    assert factors[85] == pytest.approx(0.3 + 0.7 * (1 - math.sqrt(5 / 20)))
    assert factors[100] == pytest.approx(0.3)
    assert factors[80:] == sorted(factors[80:], reverse=True)


@given(st.lists(st.integers(1, 500), min_size=2, max_size=5, unique=True), st.floats(0, 0.5), st.floats(0, 0.5))
def test_runs_of_a_chain_share_every_rate_of_the_shorter_trunk(lengths: list[int], warmup: float, decay: float) -> None:
    rungs = tuple(sorted(lengths))
    each = [schedule(rungs=rungs[: i + 1], warmup=warmup, decay=decay) for i in range(len(rungs))]
    for shorter, longer in itertools.pairwise(each):
        assert shorter.trunk_steps <= longer.trunk_steps
        # The state at a trunk's end holds the rate of the next step.
        for step in range(shorter.trunk_steps + 1):
            assert shorter.learning_rate_factor(step) == longer.learning_rate_factor(step)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "cosine"}, r"rungs = \[4, 7\]: a run with schedule cosine is not continued.*schedule=wsd"),
        ({"rungs": (7, 4)}, r"rungs = \[7, 4\]: must rise"),
        ({"rungs": (4, 4)}, r"rungs = \[4, 4\]: must rise"),
        ({"steps": 5}, r"exactly one of steps, tokens, epochs, rungs \(set: steps, rungs\)"),
        ({"rungs": ()}, r"exactly one of steps, tokens, epochs, rungs \(set: none\)"),
        ({"decay": 0.9}, r"decay = 0\.9: with warmup 0\.5 more than the whole run"),
    ],
)
def test_what_cannot_be_a_chain_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **values)
