"""The length of a training, its learning rate, and what of its losses is a spike."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerControl, TrainerState

from mlkv.context import Row, StepFailed
from mlkv.train.schedule import SPIKE, Schedule, final_loss, spikes
from mlkv.train.watcher import Watcher
from mlkv.training_recipes import TrainRecipe
from tests.support.tiny import context


@pytest.mark.parametrize(
    ("length", "steps"),
    [({"steps": 7}, 7), ({"tokens": 10_000}, 10), ({"epochs": 0.5}, 13), ({"epochs": 2}, 50)],
)
def test_steps_tokens_and_epochs_set_the_length(length: dict[str, Any], steps: int) -> None:
    recipe = TrainRecipe(batch_size=4, **length)
    schedule = Schedule.of(recipe, rows=100, tokens=25_600)
    assert schedule.steps == steps
    assert schedule.tokens_by(schedule.steps) == steps * 4 * 256


def test_whole_document_rows_count_their_tokens_not_their_padding() -> None:
    assert Schedule.of(TrainRecipe(steps=10, batch_size=4), rows=100, tokens=20_000).tokens_by(10) == 8_000


@given(
    st.integers(1, 300),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["cosine", "linear", "constant"]),
)
def test_the_learning_rate_rises_to_the_peak_then_never_rises(
    steps: int, warmup: float, floor: float, shape: Literal["cosine", "linear", "constant"]
) -> None:
    recipe = TrainRecipe(steps=steps, warmup=warmup, min_lr_ratio=floor, schedule=shape)
    schedule = Schedule.of(recipe, 10, 100)
    factors = [schedule.learning_rate_factor(step) for step in range(steps)]
    top = max(0, schedule.warmup_steps - 1)
    assert factors[top] == pytest.approx(1.0)
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert all(0 < factor <= 1 + 1e-12 for factor in factors[: top + 1])
    assert all(factor >= floor - 1e-12 for factor in factors[top:])


def test_cosine_ends_at_the_floor_just_after_the_last_step() -> None:
    schedule = Schedule.of(TrainRecipe(steps=100, min_lr_ratio=0.1), 10, 100)
    assert schedule.learning_rate_factor(100) == pytest.approx(0.1)
    assert schedule.learning_rate_factor(55) == pytest.approx(0.55)


# Spikes


def rows(*losses: float) -> list[tuple[int, float]]:
    return [(5 * (i + 1), loss) for i, loss in enumerate(losses)]


def test_a_run_that_starts_at_27_and_recovers_has_no_spike() -> None:
    assert spikes(rows(27.4, 22.9, 15, 11, 8, 7, 6, 5.5, 5, 4.8, 4.9, 4.7), warmup_steps=0) == []


def test_a_jump_after_warmup_is_a_spike_and_before_it_is_not() -> None:
    losses = rows(*[4.0] * 8, 4.0 + SPIKE, 4.1)
    assert [found.step for found in spikes(losses, warmup_steps=10)] == [45]
    assert spikes(losses, warmup_steps=45) == []
    assert spikes(rows(*[4.0] * 8, 4.9 * SPIKE), warmup_steps=10) == []


def test_the_final_loss_is_the_mean_of_the_last_tenth() -> None:
    assert final_loss(rows(*range(20))) == 18.5
    assert final_loss(rows(3.0)) == 3.0
    assert final_loss([]) is None


def watched(on_spike: Literal["record", "fail"], *losses: float) -> tuple[Watcher, list[Row]]:
    """A watcher that has seen `losses`, one every five steps."""
    logged: list[Row] = []
    schedule = Schedule.of(TrainRecipe(steps=1000, warmup=0.0, on_spike=on_spike), 10, 100)
    watcher = Watcher(schedule, context(Path("unused"), logged))
    state = TrainerState()
    for step, loss in rows(*losses):
        state.global_step = step
        watcher.on_log(
            SimpleNamespace(), state, TrainerControl(), {"loss": loss, "learning_rate": 0.1, "grad_norm": 1.0}
        )
    return watcher, logged


def test_a_spike_is_recorded_or_fails_as_chosen() -> None:
    losses = (5.0,) * 10 + (9.0, 5.0)
    watcher, logged = watched("record", *losses)
    assert [found.step for found in spikes(watcher.losses, watcher.schedule.warmup_steps)] == [55]
    assert len(logged) == 12
    with pytest.raises(StepFailed, match=r"loss = 9\.000 at step 55: a spike over the running median 5\.000"):
        watched("fail", *losses)


def test_what_is_not_finite_fails_naming_step_and_value() -> None:
    with pytest.raises(StepFailed, match="loss = nan at step 10: training diverged"):
        watched("record", 5.0, math.nan)
