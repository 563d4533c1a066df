"""The benchmarks' own parts: turns, ratios, claims and the table of docs/performance.md. Timings are not tested."""

from __future__ import annotations

import json
import random
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import __main__ as bench
from benchmarks import search, turns
from benchmarks.claims import CLAIMS, Claim
from sweeps.search.study import Study

SECONDS = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=30)


def test_every_round_runs_every_rival_once_and_warmups_do_not_count() -> None:
    ran: list[str] = []
    rivals = {name: lambda name=name: ran.append(name) for name in "abc"}
    seconds = turns.in_turns(rivals, rounds=40, warmups=2)
    rounds = [ran[i : i + 3] for i in range(0, len(ran), 3)]
    assert len(rounds) == 42
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert {each[0] for each in rounds} == {"a", "b", "c"}, "no rival is always the first"
    assert {name: len(each) for name, each in seconds.items()} == {"a": 40, "b": 40, "c": 40}


@given(SECONDS)
def test_a_ratio_is_taken_within_rounds(pairs: list[tuple[float, float]]) -> None:
    of, over = zip(*pairs, strict=True)
    found, back = turns.ratio(of, over), turns.ratio(over, of)
    ratios = sorted(a / b for a, b in pairs)
    assert ratios[0] <= found.median <= ratios[-1]
    assert (found.low is None) == (len(pairs) < 6)
    if found.low is not None and found.high is not None and back.high is not None:
        assert found.low <= found.median <= found.high
        assert back.high == pytest.approx(1 / found.low)


def test_the_interval_of_a_ratio_holds_its_median_as_often_as_it_says() -> None:
    drawn, inside = random.Random(0), 0
    for _ in range(400):
        found = turns.ratio([drawn.lognormvariate(0.7, 0.3) for _ in range(12)], [1.0] * 12)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 2.0137527 <= found.high  # e^0.7
    assert inside / 400 >= 0.93, "sampling error of 400 trials is 0.011"


def test_a_result_is_kept_as_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(turns, "RESULTS", tmp_path)
    where = turns.circumstances()
    numbers = {"ratio": turns.ratio([2.0] * 6, [1.0] * 6), "seconds": 1.23456}
    turns.report("plan", where, numbers, save=True)
    turns.report("plan", where, {"ratio": 3}, save=False)
    printed, _ = capsys.readouterr().out.splitlines()
    assert (tmp_path / f"{where['date']}-plan.json").read_text().splitlines() == [printed]
    assert json.loads(printed)["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0, "rounds": 6}


def test_samplers_are_compared_on_a_table_that_is_large_enough() -> None:
    with pytest.raises(SystemExit, match="nothing: 0 layouts, and samplers are compared by 20 or more"):
        search.ScoreTable.of("nothing")
    table = search.ScoreTable.of("ground_truth")
    whole = len(table.scores)
    few, half, every = search.searched(table, "random", 0, [5, whole // 2, whole])
    assert 0 < few <= half <= every == pytest.approx(1)
    assert search.searched(table, "random", 0, [5]) == [few]


def test_a_halved_search_trains_the_best_and_is_counted_what_it_costs() -> None:
    table = search.ScoreTable.of("ground_truth")
    progress = [(spent, [*trained]) for spent, trained in search.halved(table, Study(table.space, "random", 0, 2))]
    spent, trained = progress[-1]
    whole = len(table.scores)
    assert len(set(trained)) == len(trained)
    assert whole // search.ETA <= len(trained) < whole / 2, "the third, and those that were of it when they went on"
    assert spent == pytest.approx(whole * search.UNTRAINED + len(trained) * (1 - search.UNTRAINED))
    for cost, share in zip((5, 20), search.searched(table, "random halved", 0, [5, 20]), strict=True):
        affordable = max((trained for spent, trained in progress if spent <= cost), key=len)
        assert share == pytest.approx(table.covered(affordable)), "no more than could be paid"


def test_every_claim_has_a_benchmark_and_its_results_have_the_number() -> None:
    for claim in CLAIMS:
        assert (claim.at_least is None) != (claim.at_most is None), claim.what
        assert (turns.ROOT / "benchmarks" / f"{claim.benchmark}.py").is_file(), claim.benchmark
        result = bench.newest(claim)
        assert result is None or result.value(claim.key) is not None, f"{claim.result}: no {claim.key}"


@pytest.mark.parametrize(("value", "met"), [(0.9, False), (1.0, True), (1.1, True)])
def test_a_bar_is_met_at_its_value(value: float, met: bool) -> None:
    assert Claim("a", "b", "plan", "key", at_least=1).met(value) is met
    assert Claim("a", "b", "plan", "key", at_most=1).met(2 - value) is met


def test_the_page_has_the_newest_results() -> None:
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(), "python -m benchmarks --table writes it anew"


def test_no_benchmark_has_the_name_of_an_installed_package() -> None:
    """A script's folder comes first among the places of imports, so that libraries would import the benchmark."""
    names = {path.stem for path in (turns.ROOT / "benchmarks").glob("*.py")}
    assert not names & {*packages_distributions(), "kernels"}, "kernels: transformers looks whether there is one"
