"""Speeds: with the spread of their repeats, and never of different machines side by side without a mark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.data import frame, machine
from analysis.data.gather import gather
from analysis.figures.canvas import WIDTH
from analysis.figures.drawing import draw
from analysis.figures.pareto import LEGEND, MACHINES, WITHOUT_ERRORS, pareto_figure
from analysis.figures.pareto_data import SPEED, accuracy_score, pareto_data
from analysis.figures.throughput import speed_lines
from analysis.statistics.results import results
from analysis.statistics.sources import load
from analysis.tables.paper import make_tables
from tests.support.filler import Few, Filler
from tests.support.read_back import points, present
from tests.support.records import record_of, some_record

ONE: dict[str, Any] = {"host": "node-1", "facts": {"device": "NVIDIA H100"}, "versions": {"torch": "2.13.0"}}
OTHERS: dict[str, dict[str, Any]] = {
    "host": {**ONE, "host": "node-2"},
    "gpu": {**ONE, "facts": {"device": "NVIDIA A100"}},
    "processor": {**ONE, "facts": {"device": "cpu", "processor": "Xeon"}},
    "torch": {**ONE, "versions": {"torch": "2.14.0"}},
    "old": {"host": "", "facts": {}, "versions": {}},
}
SPEEDS = {"MHA-36": 100.0, "GQA-12": 140.0, "MQA-6": 170.0, "MLKV-6": 180.0}


def machine_name(record: dict[str, Any]) -> str | None:
    return machine.machine_of(some_record(**record))


def timed(filler: Filler, label: str, speed: float, stderr: float | None, record: dict[str, Any]) -> None:
    """The layout's decode speed, measured three times (once where there is no error) on the machine of the record."""
    cells = {"cache_bytes": (1e6, None, None), "tokens_per_second": (speed, stderr, 1 if stderr is None else 3)}
    metrics = [
        {"metric": name, "value": value, "stderr": error, "n": n, "batch": 8, "context": 256}
        for name, (value, error, n) in cells.items()
    ]
    step = filler.store.step(filler.variant(label)["steps"]["measure"])
    claim = present(step.claim())
    assert step.publish(
        claim,
        record_of(claim, {"wall_seconds": 1.0, "device_seconds": 1.0, "inputs": {}, "metrics": metrics, **record}),
    )
    claim.attempt.finish("done", "", 0)
    claim.release()


@pytest.fixture
def scored(few: Few) -> Any:
    """Four layouts whose accuracies differ by far more than noise; nothing is measured."""
    filler = few(SPEEDS)
    for label in SPEEDS:
        for task in ("cloze", "four_way", "two_way"):
            filler.evaluate(label, task)
    return filler


def throughput(filler: Filler) -> Any:
    found = load(filler.store, filler.name).results
    return pareto_data(found, present(accuracy_score(found)), SPEED)


def test_a_machine_is_its_host_device_and_versions() -> None:
    assert machine_name(ONE) == "node-1, NVIDIA H100, torch 2.13.0"
    assert machine_name({}) is None
    assert len({machine_name(record) for record in (ONE, *OTHERS.values())}) == 6
    assert machine.marks([machine_name(ONE)] * 3) == {}


def test_records_without_repeats_claim_nothing_of_speeds(scored: Any) -> None:
    for label, speed in SPEEDS.items():
        timed(scored, label, speed, None, ONE)
    found = throughput(scored)
    assert {point.chance for point in found.points} == {None}
    remarks = pareto_figure(found).get_supxlabel()
    assert LEGEND not in remarks
    assert WITHOUT_ERRORS in remarks


def test_one_speed_without_an_error_is_enough_to_claim_nothing(scored: Any) -> None:
    for label, speed in SPEEDS.items():
        timed(scored, label, speed, None if label == "MQA-6" else 1.0, ONE)
    assert {point.chance for point in throughput(scored).points} == {None}


def test_the_spread_of_repeats_decides_what_is_on_the_front(scored: Any, tmp_path: Path) -> None:
    for label, speed in SPEEDS.items():
        timed(scored, label, speed, 0.1, ONE)
    sharp = {point.variant: point.chance for point in throughput(scored).points}
    assert sharp["MLKV-6"] > 0.95
    noisy = type(scored)(tmp_path / "noisy", scored.figures)
    for label, speed in SPEEDS.items():
        for task in ("cloze", "four_way", "two_way"):
            noisy.evaluate(label, task)
        timed(noisy, label, speed, 60.0, ONE)
    blunt = throughput(noisy)
    assert blunt.points[-1].variant == "MLKV-6"
    assert blunt.points[-1].chance < 0.9
    assert blunt.points[-1].pareto_status == "undecided"
    bars = [point.x_stderr for point in blunt.points]
    assert bars == [60.0] * 4


@pytest.mark.parametrize("other", OTHERS)
def test_machines_that_differ_are_marked_and_have_fronts_of_their_own(scored: Any, other: str) -> None:
    for label, speed in SPEEDS.items():
        timed(scored, label, speed, 0.1, ONE if label in ("MHA-36", "GQA-12") else OTHERS[other])
    found = throughput(scored)
    assert [[p.variant for p in front] for front in found.fronts] == [["MLKV-6", "MQA-6"], ["GQA-12", "MHA-36"]]
    by_name = {point.variant: point for point in found.points}
    assert all(point.dominated_by is None for point in found.points)
    assert by_name["GQA-12"].machine != by_name["MQA-6"].machine
    figure = pareto_figure(found)
    assert MACHINES in figure.get_supxlabel()
    names = {text.get_text() for text in figure.axes[0].texts if text.get_text()}
    assert {"GQA-12 (a)", "MQA-6 (b)"} <= names
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() in ("-", "--") and len(points(line)) == 2]
    speeds = [{x for x, _ in points(line)} for line in lines]
    assert {100.0, 140.0} in speeds
    assert not any({140.0, 170.0} == ends for ends in speeds)


def test_speeds_of_one_machine_are_not_marked(scored: Any) -> None:
    for label, speed in SPEEDS.items():
        timed(scored, label, speed, 0.1, ONE)
    source = load(scored.store, scored.name)
    assert "machine" not in make_tables(source, ["memory"])["memory"].headers
    assert [line.name for line in speed_lines(source.table)] == list(SPEEDS)
    assert throughput(scored).machines == {}


def test_a_column_of_speeds_says_which_machine_each_is_of(scored: Any) -> None:
    for label, speed in SPEEDS.items():
        timed(scored, label, speed, 0.1, ONE if label == "MHA-36" else OTHERS["gpu"])
    source = load(scored.store, scored.name)
    sheet = make_tables(source, ["memory"])["memory"]
    column = sheet.headers.index("machine")
    assert [row[column].text for row in sheet.rows] == ["a", "b", "b", "b"]
    assert {"a: NVIDIA H100", "b: NVIDIA A100"} <= set(sheet.notes)
    assert list(source.results.frame["machine"]) == [machine_name(ONE), *[machine_name(OTHERS["gpu"])] * 3]
    assert [line.name for line in speed_lines(source.table)] == ["MHA-36 (a)", "GQA-12 (b)", "MQA-6 (b)", "MLKV-6 (b)"]
    figure = present(draw("throughput", source))
    figure.draw_without_rendering()
    (note,) = [text for text in figure.texts if "a: NVIDIA H100   b: NVIDIA A100" in text.get_text()]
    assert note.get_window_extent().width <= WIDTH * figure.dpi


def test_an_import_before_machines_were_recorded_is_read(finished: Filler, tmp_path: Path) -> None:
    table = gather(finished.store, finished.name)
    path = tmp_path / "old.csv"
    path.write_text(frame.write_csv(table.drop(columns=["machine"])))
    again = results(frame.read_csv(path))
    assert again.frame["machine"].isna().all()
    assert list(again.frame["quality"]) == list(results(table).frame["quality"])


@given(st.lists(st.sampled_from("uvwxyz"), min_size=1, max_size=9))
def test_every_machine_has_a_letter_of_its_own(names: list[str]) -> None:
    found = machine.marks(names)
    assert len(set(found.values())) == (len(set(names)) if len(set(names)) > 1 else 0)
    assert len(machine.key(found)) == len(found)


def test_many_machines_run_out_of_letters_but_not_of_marks() -> None:
    found = machine.marks(map(str, range(800)))
    assert len(set(found.values())) == 800
    assert [found[str(i)] for i in (0, 25, 26, 27)] == ["a", "z", "aa", "ab"]
