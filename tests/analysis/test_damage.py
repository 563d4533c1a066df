"""Damage by distance and by domain: against the untouched base, over the same samples, and as a figure shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.data import frame
from analysis.figures.damage import damage_by_distance, damage_by_domain
from analysis.figures.drawing import draw
from analysis.statistics.damage import by_distance, by_domain
from analysis.statistics.sources import Source
from mlkv.evaluate.outcomes import Outcomes
from tests.support.figures import assert_readable, texts_of
from tests.support.read_back import points, present

WINDOWS = 30
LAYOUTS = {"untouched": 36, "MHA-36": 36, "MLKV-6": 6, "MLKV-1": 1}
TASKS = {
    "copying": [f"distance_{d}" for d in (8, 16, 64)],
    "position_loss": ["position_16", "position_64", "beyond_128", "beyond_256"],
    "recall_kv": [f"recall_kv_{d}" for d in (16, 32)],
}
SCORES = [("copying", "nats_per_token"), ("position_loss", "nats_per_token"), ("recall_kv", "acc")]
DOMAINS = ("domain_code", "domain_prose", "domain_recall")


class Answers(dict[str, NDArray[np.float64]]):
    def outcomes(self, step: str, task: str, metric: str) -> Outcomes | None:
        parts = self.get(f"{step}/{task}")
        return None if parts is None else Outcomes(np.arange(WINDOWS), parts, np.ones(WINDOWS))


def scored(layouts: Mapping[str, int] = LAYOUTS, *, fails: bool = True, paired: bool = True) -> Source:
    """Each score is worse by .01 for every KV head that is missing, and the tasks differ from sample to sample."""
    random, answers, rows = np.random.default_rng(3), Answers(), list[dict[str, Any]]()
    cells = [(f"{task}/{member}", metric) for task, metric in SCORES for member in TASKS[task]]
    cells += [(task, "nats_per_token") for task in DOMAINS]
    hard = {task: random.normal(0, 1, WINDOWS) for task, _ in cells}
    for name, heads in layouts.items():
        row: dict[str, Any] = {"sweep": "s", "variant": name, "family": name.partition("-")[0], "state": "DONE"}
        row |= {"kv_bytes_per_token": 64 * heads, "overrides": name, "kind": "evaluate", "step": name}
        row |= {"baseline": {"untouched": "untouched", "MHA-36": "mha"}.get(name)}
        row |= {base: label for base, label in (("untouched", "untouched"), ("mha", "MHA-36")) if label in layouts}
        for task, metric in cells:
            sign = -1 if metric == "acc" else 1
            worse = sign * 0.01 * (36 - heads) + random.normal(0, 0.01, WINDOWS)
            answers[f"{name}/{task}"] = 3 + hard[task] + worse
            value = float(answers[f"{name}/{task}"].mean())
            rows.append(row | {"task": task, "metric": metric, "value": value, "stderr": 1.0})
        passed = {"task": "entry_test", "metric": "entry_test", "value": float(not fails)}
        rows.append(row | passed | {"in_axis": True})
    return Source("s", frame.make(rows), samples=answers if paired else None)


def test_damage_is_a_difference_over_the_same_samples_and_more_is_worse() -> None:
    found = {each.task: each for each in by_distance(scored().results)}
    assert set(found) == set(TASKS)
    for each in found.values():
        assert each.baseline["variant"] == "untouched"
        assert each.paired
        assert [line.variant for line in each.lines] == ["MHA-36", "MLKV-6", "MLKV-1"], "from the largest cache"
        for line in each.lines:
            expected = 0.01 * (36 - LAYOUTS[line.variant]) * each.metric.scale
            for damage in line.damage.values():
                assert present(damage.low) < damage.value < present(damage.high)
                assert present(damage.high) - present(damage.low) < 0.05 * each.metric.scale, "paired"
                assert damage.value == pytest.approx(expected, abs=0.02 * each.metric.scale)
    assert found["copying"].distances == [8, 16, 64]
    assert found["position_loss"].beyond == {128, 256}


def test_without_samples_the_interval_is_that_of_the_standard_errors() -> None:
    for each in by_distance(scored(paired=False).results):
        assert not each.paired
        assert all(present(d.high) - d.value > 1 for line in each.lines for d in line.damage.values())


def test_domains_are_in_their_order_and_those_that_are_not_scored_are_left_out() -> None:
    source = scored()
    assert present(by_domain(source.results)).domains == ["code", "prose", "recall text"]
    some = Source("s", source.table[source.table["task"] != "domain_prose"], samples=source.samples)
    found = present(by_domain(some.results))
    assert found.domains == ["code", "recall text"]
    assert all(set(line.damage) == {0, 1} for line in found.lines)


@pytest.mark.parametrize("draw_figure", [damage_by_distance, damage_by_domain])
def test_there_is_no_damage_without_a_base_or_without_another_layout(draw_figure: Any) -> None:
    assert draw_figure(scored({"untouched": 36})) is None
    assert draw_figure(scored({"MLKV-6": 6, "MLKV-1": 1})) is None
    assert draw_figure(scored({"MHA-36": 36, "MLKV-1": 1})), "the base that was trained equally will do"


def test_one_distance_is_no_line_and_a_task_with_other_members_has_no_distances() -> None:
    table = scored().table
    one = Source("s", table[~table["task"].isin(["copying/distance_8", "copying/distance_16"])])
    assert "copying" not in {each.task for each in by_distance(one.results)}
    other = Source("s", table.replace({"task": {"copying/distance_8": "copying/all"}}))
    assert "copying" not in {each.task for each in by_distance(other.results)}


@pytest.mark.parametrize("fails", [True, False])
def test_figures_are_readable_and_say_who_fails_the_entry_test(fails: bool) -> None:
    many = {f"MLKV-{i}": i for i in range(1, 30)} if fails else {}
    for name in ("damage_by_distance", "damage_by_domain"):
        figure = present(draw(name, scored({**LAYOUTS, **many}, fails=fails)))
        assert_readable(figure)
        words = " ".join(" ".join(text.get_text().split()) for text, _ in texts_of(figure))
        assert ("fails the entry test" in words) == fails
        assert ("extrapolated" in words) == (name == "damage_by_distance")
        assert ("12 of 30 layouts" in words) == bool(many)


def test_a_panel_has_a_point_for_every_distance_of_every_layout() -> None:
    source = scored()
    figure = present(draw("damage_by_distance", source))
    for axes, each in zip(figure.axes, by_distance(source.results), strict=False):
        lines = [line for line in axes.lines if line.get_marker() not in ("None", None, "")]
        drawn = {point for line in lines for point in points(line)}
        assert drawn == {(float(d), damage.value) for line in each.lines for d, damage in line.damage.items()}
        assert len(axes.collections) >= len(each.lines), "a band for every layout"


def test_layouts_of_two_bases_are_compared_with_their_own() -> None:
    one, other = scored(), scored({"untouched": 36, "MLKV-1": 1})
    names = {"untouched": "other base", "MLKV-1": "other MLKV-1"}
    moved = other.table.assign(sweep="o").replace({"variant": names, "untouched": names, "step": names})
    moved["value"] += 5
    both = Source("both", frame.make([*frame.records(one.table), *frame.records(moved)]))
    for each in by_distance(both.results):
        damage = {line.variant: [found.value for found in line.damage.values()] for line in each.lines}
        assert max(map(abs, damage["other MLKV-1"])) < max(1, each.metric.scale)
    words = [text.get_text() for text, _ in texts_of(present(draw("damage_by_domain", both)))]
    assert any("worse than each layout's own base" in text for text in words)
