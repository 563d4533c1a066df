"""Layouts cut from one elastic training against separately trained ones: means, shares and Kendall's tau."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.elastic import comparisons, rank_correlation
from analysis.statistics.sources import load
from analysis.tables.paper import make_tables
from tests.support.filler import FIGURES, Filler, step_id
from tests.support.read_back import present

SEPARATE = {label: figures[2] for label, figures in FIGURES.items()}
EXCESS = {"GQA-12": 0.01, "MLKV-12": 0.02, "MQA-6": 0.0, "MLKV-6": 0.04, "MLKV-3": 0.01, "MLKV-2": -0.01, "MLKV-1": 0.0}


class ElasticFiller(Filler):
    """The quickstart's variants, each layout uptrained and also cut from one elastic training."""

    def _variant(self, label: str) -> dict[str, Any]:
        name, _, way = label.partition(" ")
        row = super()._variant(name) | {"variant": label}
        if name == "untouched":
            return row
        row = deepcopy(row)
        row["overrides"] |= {"elastic": "nested" if way else "none", "uptrain": "none" if way else "short"}
        if way:
            own = row["steps"]
            own |= {"elastic": step_id("elastic"), "convert": step_id("convert", label), "uptrain": None}
            own["evaluate"] = {task: step_id("evaluate", label, task) for task in own["evaluate"]}
        return row

    def layout(self, label: str) -> Any:
        return super().layout(label.partition(" ")[0])

    def _steps(self) -> dict[str, Any]:
        steps: dict[str, Any] = {}
        for row in self.variants:
            own = row["steps"]
            for kind in ("corpus", "base", "elastic", "convert", "uptrain", "measure"):
                if own.get(kind):
                    self._plan(steps, row, own[kind], {})
            for evaluate in own["evaluate"].values():
                self._plan(steps, row, evaluate, {})
        return steps


def filled(root: Path, excess: dict[str, float]) -> ElasticFiller:
    cuts = {
        f"{label} cut": (*FIGURES[label][:2], SEPARATE[label] + by, FIGURES[label][3]) for label, by in excess.items()
    }
    filler = ElasticFiller(root, {**FIGURES, **cuts})
    filler.shared()
    filler.done(step_id("elastic"), [{"metric": "tokens", "value": 2e5, "stderr": None, "n": None}])
    for label in filler.figures:
        own = filler.variant(label)["steps"]
        if own["uptrain"]:
            filler.done(own["uptrain"], [{"metric": "tokens", "value": 1e5, "stderr": None, "n": None}])
        filler.evaluate(label, "bits_per_byte")
    return filler


def test_means_tokens_and_ranks_are_those_of_the_scores(tmp_path: Path) -> None:
    filler = filled(tmp_path, EXCESS)
    [found] = comparisons(load(filler.store, "demo"))
    assert [pair.variant.variant for pair in found.pairs] == [f"{label} cut" for label in EXCESS]
    assert [pair.excess.value for pair in found.pairs] == pytest.approx(list(EXCESS.values()))
    separate = [SEPARATE[label] for label in EXCESS]
    mean, gap = np.mean(list(EXCESS.values())), np.mean(separate) - SEPARATE["untouched"]
    assert present(found.mean_excess).value == pytest.approx(mean)
    assert found.gap == pytest.approx(gap)
    assert present(found.share).value == pytest.approx(mean / gap)
    cut = [SEPARATE[label] + by for label, by in EXCESS.items()]
    assert present(found.tau).value == pytest.approx(stats.kendalltau(cut, separate).statistic)
    assert (found.cut_tokens, found.separate_tokens) == (2e5, 7e5)
    # Each score has an error of 0.004 of its own, so that a mean of seven differences has this standard error.
    low, high = present(found.mean_excess).low, present(found.mean_excess).high
    assert (high - low) / 2 == pytest.approx(1.96 * 0.004 * (2 / 7) ** 0.5, rel=0.1)
    assert present(found.tau).low < present(found.tau).value


def test_the_table_says_them(tmp_path: Path) -> None:
    filler = filled(tmp_path, EXCESS)
    table = make_tables(load(filler.store, "demo"), ["elastic"])["elastic"]
    assert [row[0].text for row in table.rows] == list(EXCESS)
    assert [row[table.headers.index("worse by")].text.split()[0] for row in table.rows] == [
        "+0.010", "+0.020", "+0.000", "+0.040", "+0.010", "-0.010", "+0.000",
    ]  # fmt: skip
    notes = "\n".join(table.notes)
    assert "mean excess of 7 layouts cut from the elastic training: +0.010 (95 % interval" in notes
    assert "that is 8% (95 % interval" in notes
    assert "Kendall's tau of the two rankings of the layouts: 0.71" in notes
    assert "tokens: 200 K of elastic training for all layouts together, 700 K separately (29%)" in notes


def test_without_both_ways_there_is_no_table(tmp_path: Path) -> None:
    filler = Filler(tmp_path)
    filler.shared()
    for label in FIGURES:
        filler.train(label)
        filler.evaluate(label, "bits_per_byte")
    assert comparisons(load(filler.store, "demo")) == []
    with pytest.raises(ValueError, match="table = elastic: demo has nothing of that kind"):
        make_tables(load(filler.store, "demo"), ["elastic"])


def test_one_layout_has_no_ranking(tmp_path: Path) -> None:
    [found] = comparisons(load(filled(tmp_path, {"MQA-6": 0.02}).store, "demo"))
    assert found.tau is None
    assert present(found.mean_excess).value == pytest.approx(0.02)


def test_tau_is_that_of_scipy_with_ties_too() -> None:
    random = np.random.default_rng(0)
    for digits in (0, 1, 6):
        values_RV = random.normal(size=(20, 14)).round(digits)
        expected = [stats.kendalltau(row[:7], row[7:]).statistic for row in values_RV]
        assert rank_correlation(values_RV) == pytest.approx(np.array(expected), nan_ok=True)
