"""The recovery figure: scores against tokens of uptraining, the conversion at 0."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from analysis.data import frame
from analysis.figures.drawing import draw
from analysis.figures.recovery import panels, token_scale
from analysis.statistics.sources import Source
from tests.analysis.test_recovery import Measured, sweep


def drawn(made: Measured) -> Source:
    return Source("s", frame.make(made.rows), samples=made)


def test_a_curve_begins_with_the_conversion_and_the_baseline_is_a_reference() -> None:
    [panel] = panels(sweep().results())
    curves = {curve.name: curve for curve in panel.curves}
    assert [curve.baseline for curve in curves.values()] == [False, False, True]
    made = sweep()
    start = made.bits["MLKV-1"].sum() / made.bytes.sum()
    tokens, score, error = curves["MLKV-1"].points[0]
    assert (tokens, error) == (0, None)
    assert score == pytest.approx(start)
    assert [point[0] for point in curves["MHA-4"].points] == [0, 1000, 10_000, 100_000]
    assert panel.level == pytest.approx(made.bits["base"].sum() / made.bytes.sum())


def test_seeds_have_bars_and_a_single_run_has_none() -> None:
    made = Measured()
    made.add("untouched", "base", baseline="untouched")
    for steps in (10, 100):
        for seed in (1, 2, 3):
            made.add(
                f"MLKV-1 uptrain.steps={steps} uptrain.seed={seed}",
                made.model(f"{steps}{seed}", 0.1 * seed),
                converted=made.model("start", 0.5),
                tokens=100.0 * steps,
                overrides=f"uptrain.steps={steps} uptrain.seed={seed}",
                replicate_of=f"MLKV-1 uptrain.steps={steps}",
            )
    [panel] = panels(made.results())
    [curve] = panel.curves
    errors = [error for *_, error in curve.points]
    assert errors[0] is None, "all seeds begin with one conversion"
    assert all(error is not None and error > 0.03 for error in errors[1:])


@pytest.mark.parametrize("lengths", [1, 2])
def test_two_lengths_are_needed(lengths: int) -> None:
    made = Measured()
    made.add("untouched", "base", baseline="untouched")
    for steps in (10, 100)[:lengths]:
        label, step = f"MLKV-1 uptrain.steps={steps}", made.model(f"{steps}", 0.1)
        made.add(label, step, converted=made.model("a", 0.2), tokens=steps, overrides=f"uptrain.steps={steps}")
    assert (draw("recovery", drawn(made)) is None) == (lengths < 2)


@given(st.lists(st.one_of(st.just(0.0), st.floats(1, 1e12)), min_size=1, max_size=6).filter(any))
@example([440_000_107_346.0, 440_001_896_441.0])
def test_zero_has_a_place_before_all_others_and_order_is_kept(tokens: list[float]) -> None:
    x = token_scale(tokens)
    places = [x.place(each) for each in sorted(tokens)]
    assert places == sorted(places)
    assert all(x.scale.low < place < x.scale.high for place in places)
    assert any(tick.text == "0" for tick in x.scale.ticks) == (0.0 in tokens)
    assert all(math.isfinite(tick.value) and x.scale.low <= tick.value <= x.scale.high for tick in x.scale.ticks)
