"""Reading back through W&B's public API: the real client against a server on this machine."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.data import curves
from analysis.data.foreign import MappingError, foreign_table
from analysis.data.gather import gather
from analysis.data.logged import table
from sweeps.cli.gather import SOURCES
from sweeps.store.store import Store
from sweeps.store.typed_json import as_json
from sweeps.tracking.read.api import RUNS_PER_PAGE, Project, WandbReadError
from sweeps.tracking.read.cache import HistoryCache
from sweeps.tracking.read.files import read_directory
from sweeps.tracking.read.runs import LoggedRun, planned
from tests.support.filler import Filler
from tests.support.mirrored import Mirrored
from tests.support.records import save_sweep
from tests.support.shell import exit_status
from tests.support.tracked import use
from tests.support.wandb_graphql import ENTITY, HISTORY, StoredRun
from tests.support.wandb_server import WandbServer

PATH = f"{ENTITY}/mlkv"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer() as server:
        use(server, monkeypatch)
        yield server


def fill(server: WandbServer, runs: int, rows: int) -> None:
    """Runs of somebody else's, put into the server directly."""
    for i in range(runs):
        run = StoredRun(ENTITY, "mlkv", f"theirs-{i}", f"id-{i}", created=f"2025-01-01T00:{i // 60:02}:{i % 60:02}Z")
        run.shown = {"displayName": f"run {i}", "groupName": "old-sweep"}
        run.config = {"arch": {"value": {"kv": {"heads": i % 4 + 1}}}, "kv_budget": {"value": i}}
        run.summary = {"val/loss": 2.0 if i % 2 else "NaN"}
        run.state = "finished"
        run.shown["sweepName"] = "sw33p" if i % 2 else None
        run.lines[HISTORY] = [json.dumps({"_step": k, "loss": i + k / 8}) for k in range(rows)]
        server.backend.runs[ENTITY, "mlkv", run.name] = run


def operations(server: WandbServer) -> Counter[str]:
    return Counter(server.backend.operations)


def test_store_files_and_api_give_the_same_table_and_curves(
    mirrored: Mirrored, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(mirrored.server, monkeypatch)
    runs = Project(PATH).runs()
    stored = gather(mirrored.store, mirrored.name)
    pd.testing.assert_frame_equal(table(runs, mirrored.name), stored, check_exact=True)
    offline = curves.of_runs(read_directory(mirrored.offline))
    pd.testing.assert_frame_equal(curves.of_runs(runs), offline, check_exact=True)


def test_nested_configuration_and_odd_numbers_come_back(mirrored: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    use(mirrored.server, monkeypatch)
    for runs in (Project(PATH).runs({"group": mirrored.name}), read_directory(mirrored.offline)):
        (variant,) = (run for run in runs if run.name == "MLKV-3")
        (row,) = (row for row in mirrored.store.sweep(mirrored.name).variants if row.variant == "MLKV-3")
        assert variant.config["uptrain"] == row.config["uptrain"]
        assert planned(variant)["variant"] == {key: value for key, value in as_json(row).items() if key != "config"}
        assert set(variant.tags) == {"even", "budget-3"}


@pytest.mark.long
def test_many_runs_cost_a_page_for_hundreds_and_a_few_requests_each(server: WandbServer, tmp_path: Path) -> None:
    fill(server, RUNS_PER_PAGE + 20, 50)
    reports: list[tuple[str, int, int]] = []
    runs = Project(PATH, cache=tmp_path, report=lambda *state: reports.append(state)).runs()
    counts = operations(server)
    assert [run.id for run in runs] == [f"theirs-{i}" for i in range(RUNS_PER_PAGE + 20)]
    assert all(len(run.rows) == 50 for run in runs)
    assert counts["Runs"] == 2
    assert sum(counts.values()) <= 3 * len(runs) + 10
    assert reports[-1] == ("histories", len(runs), len(runs))
    assert ("runs", len(runs), len(runs)) in reports


def test_only_what_has_changed_is_fetched_again(server: WandbServer, tmp_path: Path) -> None:
    fill(server, 12, 50)
    runs = Project(PATH, cache=tmp_path).runs()
    server.backend.operations.clear()
    changed = server.runs["theirs-7"]
    changed.lines[HISTORY].append(json.dumps({"_step": 50, "loss": 0.0}))
    changed.updated = "2030-01-01T00:00:00Z"
    project = Project(PATH, cache=tmp_path)
    again = project.runs()
    assert operations(server)["HistoryPage"] == 1
    assert (project.fetched, project.cached) == (1, 11)
    assert [len(run.rows) for run in again if run.id == "theirs-7"] == [51]
    assert [run.rows for run in again if run.id != "theirs-7"] == [run.rows for run in runs if run.id != "theirs-7"]
    assert len(list(tmp_path.iterdir())) == 12, "one file per run, however often it changes"


def test_what_is_kept_counts_for_one_run_of_one_server_and_torn_files_for_none(tmp_path: Path) -> None:
    cache, run = HistoryCache(tmp_path / "cache"), ("http://one", "me", "mlkv", "a")
    cache.write(run, "monday", [{"loss": float("nan")}])
    (row,) = cache.read(run, "monday") or []
    assert math.isnan(row["loss"])
    assert cache.read(run, "tuesday") is None
    assert cache.read(("http://other", *run[1:]), "monday") is None
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text(file.read_text()[:-3])
    assert cache.read(run, "monday") is None
    (tmp_path / "in the way").touch()
    HistoryCache(tmp_path / "in the way").write(run, "monday", [])


@pytest.mark.long
def test_a_thousand_runs_and_their_histories_and_then_almost_nothing(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command: five pages and three requests for each run; then the pages and the one run that changed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fill(server, 1000, 50)
    line = ["gather", PATH, "source=api", "map.budget=config.kv_budget", "map.a.loss=summary.val/loss"]
    line += ["--store", str(tmp_path), "-o", str(tmp_path / "cells.csv"), "--curves", str(tmp_path / "curves.csv")]
    assert exit_status(*line) == 0
    assert "fetched 1000 of 1000 histories" in capsys.readouterr().err
    assert operations(server)["Runs"] == 1000 / RUNS_PER_PAGE
    assert len(server.requests) <= 3 * 1000 + 20
    assert len(pd.read_csv(tmp_path / "curves.csv")) == 50_000
    server.requests.clear()
    server.runs["theirs-7"].updated = "2030-01-01T00:00:00Z"
    assert exit_status(*line) == 0
    assert len(pd.read_csv(tmp_path / "cells.csv")) == 1000
    assert "fetched 1 of 1000 histories" in capsys.readouterr().err
    assert len(server.requests) <= 1000 / RUNS_PER_PAGE + 2 + 10


def test_a_server_that_falters_is_asked_again(server: WandbServer) -> None:
    fill(server, 12, 5)
    server.fail(path="graphql", status=500, times=4, every=3)
    server.fail(path="graphql", status=429, retry_after=0.1, times=3, every=5)
    server.fail(path="graphql", disconnect=True, times=2, every=7)
    server.fail(path="graphql", seconds=0.2, times=2)
    assert [len(run.rows) for run in Project(PATH).runs()] == [5] * 12


def test_what_cannot_be_read_is_one_line(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WandbReadError, match=f"W&B project {ENTITY}/nothing"):
        Project(f"{ENTITY}/nothing").runs()
    line = ["gather", "demo", "source=api", "--project", f"{ENTITY}/nothing", "--store", str(tmp_path)]
    assert exit_status(*line) == 2
    printed = capsys.readouterr().err
    assert f"mlkv: W&B project {ENTITY}/nothing" in printed
    assert "Traceback" not in printed


# The command


def test_the_commands_three_sources_write_the_same_files(
    mirrored: Mirrored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN, Inf, whole numbers, nested configuration, a run resumed twice, failed and unfinished steps."""
    use(mirrored.server, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = {source: (tmp_path / f"{source}.csv", tmp_path / f"{source}-curves.csv") for source in SOURCES}
    for source, (cells, logged) in files.items():
        line = ["gather", mirrored.name, f"source={source}", "-o", str(cells), "--curves", str(logged)]
        assert exit_status(*line, "--store", str(mirrored.store.root)) == 0
    written = {tuple(path.read_text() for path in pair) for pair in files.values()}
    assert len(written) == 1
    table, rows = (pd.read_csv(path) for path in files["api"])
    assert {"DONE", "FAILED", "BLOCKED", "PENDING"} <= set(table["state"])
    assert rows["value"].isna().sum() >= 2
    assert len(list((tmp_path / "cache").rglob("*.json"))) > 0


def test_the_sweeps_own_project_is_read_unless_another_is_named(
    server: WandbServer, finished: Filler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {**finished.plan, "tracking": {"mode": "online", "project": "elsewhere", "entity": ENTITY}}
    store = Store.open(tmp_path / "store")
    save_sweep(store, "demo", plan, finished.variants)
    for named, project in (([], f"{ENTITY}/elsewhere"), (["--project", "other"], "other")):
        assert exit_status("gather", "demo", "source=api", "--store", str(store.root), *named) == 2
        assert f"W&B project {project}" in capsys.readouterr().err


# Somebody else's runs


MAPPING = {"kv_heads": "config.arch.kv.heads", "budget": "config.kv_budget", "held_out.loss": "summary.val/loss"}


def test_somebody_elses_sweep_is_gathered_by_mapping_its_keys(server: WandbServer, tmp_path: Path) -> None:
    fill(server, 4, 2)
    line = ["gather", PATH, "source=api", *(f"map.{ours}={theirs}" for ours, theirs in MAPPING.items())]
    assert exit_status(*line, "-o", str(tmp_path / "all.csv"), "group=old-sweep") == 0
    found = pd.read_csv(tmp_path / "all.csv")
    assert found["budget"].tolist() == [0, 1, 2, 3]
    assert found["kv_heads"].tolist() == [1, 2, 3, 4]
    assert found["value"].isna().tolist() == [True, False, True, False]
    assert found["reason"].tolist()[0] == "summary.val/loss is not a number"
    assert set(zip(found["task"], found["metric"], found["variant"], strict=True)) >= {("held_out", "loss", "run 0")}
    assert set(found["sweep"]) == {"old-sweep"}
    assert exit_status(*line, "sweep=sw33p", "-o", str(tmp_path / "swept.csv")) == 0
    assert pd.read_csv(tmp_path / "swept.csv")["wandb_run"].tolist() == ["theirs-1", "theirs-3"]


def test_somebody_elses_files_are_gathered_alike(mirrored: Mirrored, tmp_path: Path) -> None:
    line = ["gather", str(mirrored.offline), "source=offline", "map.budget=config.budget", "group=demo"]
    assert exit_status(*line, "map.held_out.loss=summary.eval/bits_per_byte", "-o", str(tmp_path / "cells.csv")) == 0
    found = pd.read_csv(tmp_path / "cells.csv").set_index("variant")
    assert found["budget"].to_dict() == {"MHA-36": 36, "MQA-6": 6, "MLKV-3": 3}
    assert found.loc["MLKV-3", "value"] == 2.344


THEIRS = [LoggedRun("r1", config={"arch": {"kvheads": [2, 2, 1], "note": "x"}}, summary={"loss": 1})]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"kv_head": "config.arch.kvheads"}, "no column kv_head .did you mean kv_heads"),
        ({"kv_heads": "arch.kvheads"}, "must be config.KEY, summary.KEY or one of id, name"),
        ({"kv_heads": "config.arch.kv_heads"}, "no config key arch.kv_heads .did you mean arch.kvheads"),
        ({"budget": "config.arch.note"}, "'x' in run r1 is no whole number"),
        ({"budget": "config.arch.kvheads"}, "in run r1 is no whole number"),
        ({".loss": "summary.loss"}, "no column"),
    ],
)
def test_a_mapping_that_does_not_fit_says_what_would(mapping: dict[str, str], message: str) -> None:
    with pytest.raises(MappingError, match=message):
        foreign_table(THEIRS, mapping)


def test_lists_of_heads_and_runs_without_scores_have_their_row() -> None:
    found = foreign_table(THEIRS, {"kv_heads": "config.arch.kvheads"})
    assert found["kv_heads"].tolist() == ["2 2 1"]
    assert found["state"].tolist() == ["RUNNING"]


def test_runs_that_share_a_name_stay_apart() -> None:
    runs = [LoggedRun(f"r{i}", name, summary={"loss": i}) for i, name in enumerate(["gqa", "gqa", "mqa", ""])]
    found = foreign_table(runs, {"held_out.loss": "summary.loss"})
    assert dict(zip(found["variant"], found["value"], strict=True)) == {"gqa (r0)": 0, "gqa (r1)": 1, "mqa": 2, "r3": 3}


def test_whatever_a_run_has_under_a_key_is_taken_or_refused_in_a_line() -> None:
    values: tuple[Any, ...] = (10**400, math.inf, [{}], {"a": 1}, True, "x", [[1], 2], 2.0**70)
    for odd in values:
        run = LoggedRun("r1", config={"odd": odd}, summary={"odd": odd})
        for mapping in ({"budget": "config.odd"}, {"kv_heads": "config.odd"}, {"a.loss": "summary.odd"}):
            with contextlib.suppress(MappingError):
                assert len(foreign_table([run], mapping)) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["source=aip"], "did you mean api"),
        (["offline"], "offline: must be KEY=VALUE"),
        (["map.budget=config.b"], "add source=api or source=offline"),
        (["source=api", "group=x"], "add map.COLUMN"),
        (["source=offline", "map.budget=config.b"], "no W&B runs there"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_line(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status("gather", str(tmp_path), *words, "--store", str(tmp_path)) == 2
    assert told in capsys.readouterr().err
