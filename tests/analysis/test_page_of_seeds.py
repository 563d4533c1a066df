"""A page of a sweep with several seeds: the points, rows and numbers of its figures and CSV."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis.page.page import Page, page
from analysis.page.plot_json import PlotJson
from analysis.page.report import render
from analysis.statistics.sources import load
from analysis.tables import results_table
from analysis.tables.paper import make_tables
from tests.support.figures import main_data
from tests.support.filler import Few, Filler
from tests.support.seeded import TASK, answered, with_seeds

SHARES = {"MHA-36": (0.50, 0.50, 0.51), "MLKV-6": (0.40, 0.49, 0.43), "MLKV-1": (0.42, 0.43, 0.44)}


@pytest.fixture
def crowd(filler: Filler, tmp_path: Path) -> Any:
    """Each layout with three seeds; the second of MLKV-6 is far luckier than its others."""
    crowd = with_seeds(filler, tmp_path / "crowd", tuple(SHARES))
    samples = np.arange(100) / 100
    answers = {
        f"{layout} uptrain.seed={seed}": (samples < share).astype(float)
        for layout, shares in SHARES.items()
        for seed, share in enumerate(shares, 1)
    }
    answered(crowd, answers)
    for layout in SHARES:
        crowd.measure(f"{layout} uptrain.seed=1")
    return crowd


def shown(crowd: Filler, out: Path) -> Page:
    return page(crowd.store, load(crowd.store, crowd.name), out)


def of_scores(found: Page) -> PlotJson:
    """The first plot of scores; those of differences come before."""
    return next(plot for plot in found.data.plots if plot.label == plot.score)


def test_a_layout_is_one_point_of_the_mean_of_its_seeds(crowd: Filler, tmp_path: Path) -> None:
    found = load(crowd.store, crowd.name).results
    drawn = main_data(found)
    plot = of_scores(shown(crowd, tmp_path))
    marks = {mark.variant: mark for mark in plot.marks}
    assert set(marks) == set(SHARES)
    for layout, shares in SHARES.items():
        assert marks[layout].value == pytest.approx(100 * np.mean(shares))
    statuses = {point.variant: point.pareto_status for point in drawn.points}
    assert {name: mark.status for name, mark in marks.items()} == statuses
    assert len(plot.front) == len(drawn.front) - 1
    csv = found.frame.set_index("variant")["quality"]
    assert {name: mark.value / 100 for name, mark in marks.items()} == pytest.approx(dict(csv))


def test_rows_are_those_of_the_written_table(crowd: Filler, tmp_path: Path) -> None:
    found = shown(crowd, tmp_path)
    printed = results_table.results_table(load(crowd.store, crowd.name).results)
    assert found.table == printed
    assert [row[0] for row in found.data.rows] == ["MHA-36 (baseline, n=3)", "MLKV-6 (n=3)", "MLKV-1 (n=3)"]
    assert [entry.variant for entry in found.data.variants] == list(SHARES)
    assert found.data.unit == "layouts"


def test_what_stands_behind_a_number_is_the_same_wherever_it_is_printed(crowd: Filler, tmp_path: Path) -> None:
    """Half of the 95 % interval of the seeds: in each table, and in what is told of a layout."""
    for number, variant in enumerate(crowd.variants):
        loss = {"metric": "loss", "value": 3.0 + number % 3 / 10, "stderr": None, "n": 50}
        crowd.done(variant["steps"]["uptrain"], [loss])
    source = load(crowd.store, crowd.name)
    entries = {
        entry.variant: {score.name: score.value for score in entry.scores}
        for entry in shown(crowd, tmp_path).data.variants
    }
    tables = make_tables(source, ["losses", "benchmarks"])
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    for column, label in (("losses", "uptrain loss"), ("benchmarks", "mean of 1")):
        table = tables[column]
        at = next(i for i, header in enumerate(table.headers) if header.startswith(label))
        assert [row[at].text for row in table.rows] == [entry[label] for entry in entries.values()]
        assert any("half of its 95 % interval" in note for note in table.notes)
    assert entries["MLKV-6"]["uptrain loss"] == f"3.100 ± {half:.3f}"


def test_what_a_training_read_and_how_fast_is_no_score(crowd: Filler, tmp_path: Path) -> None:
    values = {"train_loss": 3.0, "tokens": 1e6, "tokens_per_second": 5e3}
    metrics = [{"metric": name, "value": value, "stderr": None, "n": None} for name, value in values.items()]
    for variant in crowd.variants:
        crowd.done(variant["steps"]["uptrain"], metrics)
    for entry in shown(crowd, tmp_path).data.variants:
        assert [score.name for score in entry.scores if "uptrain" in score.name] == ["uptrain training loss"]


def test_an_evaluation_in_an_unknown_metric_is_a_score(crowd: Filler, tmp_path: Path) -> None:
    for variant in crowd.variants:
        rows = [{"metric": "tokens", "value": 7.0, "stderr": None, "n": 1}]
        crowd.done(variant["steps"]["evaluate"]["cloze"], rows)
    for entry in shown(crowd, tmp_path).data.variants:
        assert {score.name: score.value for score in entry.scores}["cloze tokens"] == "7"


def test_what_is_told_of_a_layout_is_of_all_its_seeds(crowd: Filler, tmp_path: Path) -> None:
    entry = shown(crowd, tmp_path).data.variants[1]
    assert [(seed.name, seed.value) for seed in entry.seeds] == [
        (f"MLKV-6 uptrain.seed={seed}", f"{100 * share:.2f} ± {100 * (share * (1 - share) / 100) ** 0.5:.2f}")
        for seed, share in enumerate(SHARES["MLKV-6"], 1)
    ]
    steps = {step.id: step.name for step in entry.steps}
    own = [v for v in crowd.variants if v["variant"].startswith("MLKV-6 ")]
    for variant in own:
        seed = f"uptrain.seed={variant['overrides']['uptrain.seed']}"
        assert steps[variant["steps"]["uptrain"]] == f"uptrain {seed}"
        assert steps[variant["steps"]["evaluate"][TASK]] == f"evaluate {TASK} {seed}"
        assert steps[variant["steps"]["base"]] == "base"
        assert steps[variant["steps"]["measure"]] == "measure"
    assert len(entry.steps) == len(steps)
    assert not any("seed" in line for line in [*entry.overrides, *entry.config])


def test_counts_are_of_variants_and_costs_count_a_shared_step_once(crowd: Filler, tmp_path: Path) -> None:
    crowd.shared()
    for layout in SHARES:
        crowd.train(f"{layout} uptrain.seed=2")
        for task in ("bits_per_byte", "cloze", "two_way"):
            crowd.evaluate(f"{layout} uptrain.seed=2", task)
    found = shown(crowd, tmp_path)
    assert (found.finished, len(found.variants)) == (3, 9)
    assert "3<small> / 9</small>" in render(found, {})
    pivot = load(crowd.store, crowd.name).results.frame.set_index("variant")
    # corpus, base, convert, one uptraining, three evaluations of the task, three others, one measurement
    assert pivot.loc["MLKV-6", "wall_seconds"] == pytest.approx(10 + 160 + 10 + 22 + 3 * 10 + 3 * 3 + 4)


def test_a_sweep_without_seeds_has_an_entry_per_variant(finished: Filler, tmp_path: Path) -> None:
    data = shown(finished, tmp_path).data
    assert data.unit == "variants"
    assert [entry.variant for entry in data.variants] == [v["variant"] for v in finished.variants]
    assert not any(entry.seeds for entry in data.variants)


def test_a_page_without_errors_claims_no_probability(few: Few, tmp_path: Path) -> None:
    filler = few(["MHA-36", "MQA-6"])
    for label, value in (("MHA-36", 2.0), ("MQA-6", 2.1)):
        step = filler.variant(label)["steps"]["evaluate"]["bits_per_byte"]
        filler.done(step, [{"metric": "bits_per_byte", "value": value, "stderr": None, "n": 9}])
    plot = of_scores(shown(filler, tmp_path))
    assert plot.legend.startswith("Filled: on the front by the numbers alone")
    assert [mark.chance for mark in plot.marks] == [None, None]


@pytest.mark.parametrize(
    ("devices", "unit"),
    [(["cpu"], "CPU-hours"), (["cuda:0"], "GPU-hours"), (["cuda:0", "x86_64"], "device-hours"), ([], "GPU-hours")],
)
def test_hours_are_called_what_they_were_spent_on(few: Few, tmp_path: Path, devices: list[str], unit: str) -> None:
    found = replace(shown(few(["MQA-6"]), tmp_path), provenance=[("device", [(device, 1) for device in devices])])
    assert found.hours_of == unit
