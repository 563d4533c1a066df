"""What conversion lost, and the tokens of uptraining that bring it back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from analysis.data import frame
from analysis.data.gather import gather
from analysis.data.units import count
from analysis.statistics.recovery import Curve, crossing, recovery, tokens_to
from analysis.statistics.results import Results, by_layout
from analysis.statistics.sources import Source
from analysis.tables.recovery import recovery_table
from analysis.tables.rendering import markdown
from analysis.tables.results_table import results_table
from mlkv.evaluate.outcomes import Outcomes
from sweeps.tracking.runs import SweepRuns
from tests.support.filler import Filler
from tests.support.read_back import present

WINDOWS = 60
Floats = NDArray[np.float64]


class Measured:
    """A sweep of layouts at several lengths, with the bits of every window, as `Samples` reads them."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.bytes = random.integers(80, 120, WINDOWS).astype(float)
        self.bits = {"base": self.bytes * random.normal(2.0, 0.3, WINDOWS)}
        self.rows: list[dict[str, Any]] = []
        self.random = random

    def outcomes(self, step: str, task: str, metric: str) -> Outcomes | None:
        return Outcomes(np.arange(WINDOWS), self.bits[step], self.bytes) if metric == "bits_per_byte" else None

    def model(self, step: str, above: float) -> str:
        """A checkpoint that needs so many bits per byte more than the base, and as many in each window but noise."""
        if step not in self.bits:
            self.bits[step] = self.bits["base"] + self.bytes * self.random.normal(above, 0.05, WINDOWS)
        return step

    def add(self, variant: str, step: str, *, converted: str | None = None, tokens: float = 0, **identity: Any) -> None:
        own = {
            "sweep": "s",
            "variant": variant,
            "family": "MLKV",
            "pattern": "even",
            "kv_layers": 1,
            "kv_heads": "1",
            "kv_bytes_per_token": 64,
            "untouched": "untouched",
            "state": "DONE",
            **identity,
        }
        cells = [("evaluate", step), *([("converted", converted)] if converted else [])]
        for kind, scored in cells:
            value = float(self.bits[scored].sum() / self.bytes.sum())
            score = {"kind": kind, "task": "bits_per_byte", "metric": "bits_per_byte", "value": value, "step": scored}
            self.rows.append({**own, **score, "in_axis": kind == "evaluate"})
        if tokens:
            trained = {"kind": "uptrain", "metric": "tokens", "value": tokens, "step": f"train-{step}"}
            self.rows.append({**own, **trained})

    def results(self) -> Results:
        return by_layout(frame.make(self.rows), self)


def sweep(*, mha: bool = True) -> Measured:
    """MLKV-1 and MLKV-2 after 1,000, 10,000 and 100,000 tokens; the base's own layout gets .02 better on the way."""
    made = Measured()
    made.add("untouched", "base", baseline="untouched")
    for i, steps in enumerate((10, 100, 1000)):
        length: dict[str, Any] = {"tokens": 100.0 * steps, "overrides": f"uptrain.steps={steps} layout.kv_heads=1"}
        if mha:
            above = made.model(f"mha{steps}", -0.01 * i)
            made.add(f"MHA-4 uptrain.steps={steps}", above, converted="base", baseline="mha", sources="0 1", **length)
        for name, gaps in (("MLKV-1", (0.20, 0.12, 0.06)), ("MLKV-2", (0.10, 0.08, 0.07))):
            start, end = made.model(name, 0.4 if name == "MLKV-1" else 0.1), made.model(f"{name}{steps}", gaps[i])
            own = f"MHA-4 uptrain.steps={steps}" if mha else None
            label = f"{name} uptrain.steps={steps}"
            made.add(label, end, converted=start, mha=own, sources=f"0 0 {name}", **length)
    return made


def curves(made: Measured) -> dict[str, Curve]:
    return {curve.name: curve for curve in present(recovery(made.results())).curves}


# Interpolation

RISING = st.lists(st.floats(1, 1e9), min_size=1, max_size=5, unique=True).map(sorted)


@settings(max_examples=40)
@given(RISING, st.data())
def test_more_of_the_gap_takes_no_fewer_tokens(lengths: list[float], data: st.DataObject) -> None:
    tokens = [0.0, *lengths]
    gaps = [1.0, *data.draw(st.lists(st.floats(-1, 2), min_size=len(lengths), max_size=len(lengths)))]
    shares = np.linspace(0.01, 1.0, 12)
    found = [float(crossing(tokens, [gaps], share)[0]) for share in shares]
    assert found == sorted(found)
    assert all(0 < each <= tokens[-1] * (1 + 1e-9) or math.isinf(each) for each in found)


@settings(max_examples=40)
@given(RISING, st.data())
def test_between_lengths_it_is_numpys_interpolation_in_the_logarithm(lengths: list[float], data: st.DataObject) -> None:
    drops = data.draw(st.lists(st.floats(0.05, 0.3), min_size=len(lengths), max_size=len(lengths)))
    gaps = 1.0 - np.cumsum([0.0, *drops])
    share = data.draw(st.floats(0.01, 1.5))
    found = float(crossing([0.0, *lengths], [gaps], share)[0])
    target = 1 - share
    if target < gaps[-1]:
        assert math.isinf(found)
    elif target >= gaps[1]:
        assert found == pytest.approx(np.interp(-target, -gaps[:2], [0.0, lengths[0]]))
    else:
        assert found == pytest.approx(np.exp(np.interp(-target, -gaps[1:], np.log(lengths))), rel=1e-6)


def test_a_gap_that_is_not_there_has_no_tokens() -> None:
    assert math.isnan(crossing([0.0, 10.0], [[0.0, -1.0]], 0.5)[0])
    assert math.isnan(crossing([0.0, 10.0], [[-0.1, -1.0]], 0.5)[0])


# Curves


def test_a_curve_joins_lengths_and_is_measured_to_what_was_trained_equally() -> None:
    made = sweep()
    found = present(recovery(made.results()))
    assert (found.reference, found.lengths) == ("mha", 3)
    assert [curve.name for curve in found.curves] == ["MLKV-1", "MLKV-2"]
    first = found.curves[0]
    assert first.tokens == [0, 1000, 10_000, 100_000]
    value = {step: bits.sum() / made.bytes.sum() for step, bits in made.bits.items()}
    references = ["base", "mha10", "mha100", "mha1000"]
    scores = ["MLKV-1", "MLKV-110", "MLKV-1100", "MLKV-11000"]
    expected = [value[score] - value[reference] for score, reference in zip(scores, references, strict=True)]
    assert [point.gap.value for point in first.points] == pytest.approx(expected)


def test_without_an_equally_trained_baseline_the_gap_is_to_the_base() -> None:
    found = present(recovery(sweep(mha=False).results()))
    assert found.reference == "untouched"
    assert all(point.reference is found.curves[0].points[0].reference for point in found.curves[0].points)


def test_variants_that_differ_in_more_than_the_length_are_different_curves() -> None:
    made = sweep(mha=False)
    for steps, rate in ((10, 1e-3), (100, 1e-3), (100, 1e-4)):
        made.add(
            f"GQA-4 uptrain.steps={steps} uptrain.lr={rate}",
            made.model(f"gqa{steps}{rate}", 0.1),
            converted=made.model("gqa", 0.3),
            tokens=100.0 * steps,
            overrides=f"uptrain.steps={steps} uptrain.lr={rate}",
            sources="0 1 2",
        )
    found = curves(made)
    assert len(found["GQA-4 uptrain.lr=0.001"].points) == 3
    assert len(found["GQA-4 uptrain.lr=0.0001"].points) == 2


def test_nothing_is_found_where_no_conversion_was_scored() -> None:
    made = Measured()
    made.add("untouched", "base", baseline="untouched")
    made.add("MLKV-1", made.model("one", 0.2), tokens=100)
    assert recovery(made.results()) is None


def independent(made: Measured, share: float, repetitions: int = 4000) -> Floats:
    """Tokens to recover, of MLKV-1, in repetitions over resampled windows; written without our code."""
    random = np.random.default_rng(5)
    pairs = [("MLKV-1", "base"), ("MLKV-110", "mha10"), ("MLKV-1100", "mha100"), ("MLKV-11000", "mha1000")]
    found = np.empty(repetitions)
    for i in range(repetitions):
        drawn = random.integers(0, WINDOWS, WINDOWS)
        total = made.bytes[drawn].sum()
        gaps = [(made.bits[a][drawn] - made.bits[b][drawn]).sum() / total for a, b in pairs]
        reached = [k for k in range(1, 4) if gaps[k] <= (1 - share) * gaps[0]]
        if not reached:
            found[i] = math.inf
            continue
        k, times = reached[0], [0.0, 1e3, 1e4, 1e5]
        part = (gaps[k - 1] - (1 - share) * gaps[0]) / (gaps[k - 1] - gaps[k])
        found[i] = times[k] * part if k == 1 else 10 ** (math.log10(times[k - 1]) + part)
    return found


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_intervals_are_those_of_an_independent_bootstrap(share: float) -> None:
    made = sweep()
    found = tokens_to(share, curves(made)["MLKV-1"], "bits_per_byte")
    low, high = present(found.interval)
    expected = np.sort(independent(made, share))[[100, 3899]]
    assert low <= present(found.tokens) <= high
    for ours, theirs in zip((low, high), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=0.15) or (math.isinf(ours) and math.isinf(theirs))


def test_the_gap_at_conversion_is_a_paired_difference() -> None:
    made = sweep()
    made.bytes[:] = 100.0  # with equal weights the delta method is the paired t-test
    made.rows.clear()
    made.add("untouched", "base", baseline="untouched")
    made.add("MLKV-1", made.model("MLKV-110", 0.2), converted="MLKV-1", tokens=10)
    row = made.results().rows()[1]
    column = "converted.bits_per_byte.bits_per_byte"
    test = stats.ttest_rel(made.bits["MLKV-1"] / 100, made.bits["base"] / 100).confidence_interval()
    ends = [row[f"{column}_gap_low"], row[f"{column}_gap_high"]]
    assert ends == pytest.approx([test.low, test.high], rel=1e-6)
    assert row[f"{column}_gap"] == pytest.approx(row[column] - row["quality"] + row["quality_vs_untouched"])


# Tables


def test_the_table_says_what_is_recovered_to_what_and_what_never_is() -> None:
    made = sweep()
    printed = present(recovery_table(Source("s", frame.make(made.rows), samples=made)))
    text = markdown(printed)
    rows = {row[0].text: [cell.text for cell in row] for row in printed.rows}
    header = printed.headers.index("tokens to recover 90 %")
    assert rows["MLKV-2"][header] == "not within 100 K"
    assert rows["MLKV-1"][printed.headers.index("lengths")] == "3"
    half = present(tokens_to(0.5, curves(made)["MLKV-1"], "bits_per_byte").tokens)
    assert rows["MLKV-1"][printed.headers.index("tokens to recover 50 %")] == count(half)
    assert "gap at conversion to the base's own layout, trained equally" in text
    assert "to the untouched base" in markdown(present(recovery_table(Source("s", frame.make(sweep(mha=False).rows)))))


def test_a_conversion_that_is_not_scored_yet_says_why() -> None:
    made = sweep(mha=False)
    for row in made.rows:
        if row["kind"] == "converted" and row["variant"].startswith("MLKV-2"):
            row |= {"value": None, "state": "RUNNING", "reason": "step 3 of 60"}
    printed = present(recovery_table(Source("s", frame.make(made.rows), samples=made)))
    rows = {row[0].text: row for row in printed.rows}
    assert list(rows) == ["MLKV-1", "MLKV-2"]
    cell = rows["MLKV-2"][printed.headers.index("gap at conversion")]
    assert (cell.text, cell.missing) == ("running 3/60", "RUNNING step 3 of 60")


def test_every_row_of_the_results_has_its_recipes_tokens() -> None:
    printed = results_table(sweep().results())
    assert "gap at conversion" in printed.headers
    place = printed.headers.index("tokens to recover 50 %")
    cells = {row[0].text: row[place].text for row in printed.rows}
    assert cells["untouched (base)"] == ""
    assert len({text for name, text in cells.items() if name.startswith("MLKV-1 ")}) == 1
    one = Measured()
    one.add("untouched", "base", baseline="untouched")
    one.add("MLKV-1", one.model("a", 0.1), converted=one.model("b", 0.2), tokens=10, sources="0 0")
    assert not any("recover" in header for header in results_table(one.results()).headers), "one length is no curve"


# From the store and in W&B


def test_scores_of_conversions_have_rows_columns_and_keys_of_their_own(tmp_path: Path) -> None:
    filler = Filler(tmp_path, converted=["bits_per_byte"])
    filler.everything()
    filler.evaluate_conversion("MLKV-3", "bits_per_byte", 2.9)
    table = gather(filler.store, "demo")
    rows = [row for row in frame.records(table) if row["kind"] == "converted"]
    assert {row["variant"] for row in rows} == set(filler.figures) - {"untouched"}
    [row] = [row for row in rows if row["value"] is not None]
    assert (row["variant"], row["task"], row["value"], row["in_axis"]) == ("MLKV-3", "bits_per_byte", 2.9, False)
    printed = results_table(by_layout(table))
    place = printed.headers.index("bits per byte, converted ↓")
    cells = {row[0].text: row[place] for row in printed.rows}
    assert cells["MLKV-3"].text == "2.900 ± 0.004"
    assert (cells["MQA-6"].text, cells["untouched (base)"].text) == ("pending", "–")
    run = SweepRuns(filler.store, filler.store.sweep("demo")).variant("MLKV-3")
    assert run.summary["converted/bits_per_byte"] == 2.9
    assert run.summary["eval/bits_per_byte"] == 2.344
