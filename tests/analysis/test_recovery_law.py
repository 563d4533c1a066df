"""The law of recovery against scipy's fit, and its error at the end against what was measured there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from analysis.statistics.estimate import Estimate
from analysis.statistics.recovery import Curve, Point
from analysis.statistics.recovery_law import fitted, law

METRIC = "bits_per_byte"


def curve(tokens: Sequence[float], gaps: Sequence[float], noise: float | None = None) -> Curve:
    """`noise`: how far each of two samples moves the first point, and twice as far the second, …; none for the base."""

    def estimate(value: float, share: float) -> Estimate:
        return Estimate(value, influence={"text": share * noise * np.array([1.0, -1.0])} if noise else {})

    scores = [estimate(2 + gap, i + 1) for i, gap in enumerate(gaps)]
    points = (Point(t, score, estimate(2.0, 0.0)) for t, score in zip(tokens, scores, strict=True))
    return Curve("a", {}, tuple(points))


def gap(t: float, first: float, scale: float, power: float) -> float:
    return first * (1 + t / scale) ** -power


@settings(max_examples=40)
@given(st.floats(0.01, 1), st.floats(300, 30000), st.floats(0.2, 3))
def test_a_gap_that_follows_the_law_is_foretold(first: float, scale: float, power: float) -> None:
    tokens = [0, 1000, 2000, 4000, 8000, 30000]
    found = law(curve(tokens, [gap(t, first, scale, power) for t in tokens]), METRIC)
    assert found
    assert found.lengths == 4
    assert found.predicted == pytest.approx(gap(30000, first, scale, power), rel=0.03)
    assert abs(found.off_value) <= 0.03 * first


def test_the_fit_is_scipys() -> None:
    tokens = np.array([0.0, 1000, 2500, 5000, 9000])
    gaps = np.array([0.2, 0.12, 0.09, 0.06, 0.055])
    scale, power = fitted(tokens, gaps[None])
    (log_scale, theirs), _ = curve_fit(
        lambda t, s, b: -b * np.log1p(t / np.exp(s)), tokens[1:], np.log(gaps[1:] / gaps[0]), p0=(7.0, 1.0)
    )
    assert scale[0] == pytest.approx(np.exp(log_scale), rel=0.03)
    assert power[0] == pytest.approx(theirs, rel=0.02)


def test_only_the_first_third_is_seen() -> None:
    tokens, gaps = [0, 1000, 2000, 3000, 5000, 9000], [0.2, 0.1, 0.07, 0.05, 0.04, 0.03]
    found = law(curve(tokens, gaps), METRIC)
    assert (other := law(curve(tokens, [*gaps[:4], 0.2, 0.3]), METRIC))
    assert found
    assert (found.scale, found.power, found.predicted, found.lengths) == (
        other.scale,
        other.power,
        other.predicted,
        3,
    )
    assert found.off_value - other.off_value == pytest.approx(0.27)
    assert found.off is None, "no errors are known"


def test_too_few_lengths_or_no_gap_have_no_law() -> None:
    assert law(curve([0, 1000, 2000, 5999], [0.2, 0.1, 0.08, 0.01]), METRIC) is None, "a third of 5999 is below 2000"
    assert law(curve([0, 1000, 2000, 6000], [0.2, 0.1, -0.01, 0.01]), METRIC) is None
    assert law(curve([0, 1000, 2000, 6000], [0.2, 0.1, 0.08, -0.01]), METRIC), "the end may be better than the base"


def test_the_interval_holds_the_error_and_grows_with_noise() -> None:
    tokens, gaps = [0, 1000, 2000, 6000], [0.2, 0.1, 0.08, 0.05]
    narrow, wide = (law(curve(tokens, gaps, noise), METRIC) for noise in (1e-4, 1e-3))
    assert narrow
    assert wide
    assert narrow.off
    assert wide.off
    assert narrow.off.low <= narrow.off_value <= narrow.off.high
    assert wide.off.high - wide.off.low > 5 * (narrow.off.high - narrow.off.low)
