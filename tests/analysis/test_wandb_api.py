"""Reading back through W&B's public API: the real client against a server on this machine."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from mirrored import Mirrored
from wandb_graphql import ENTITY, HISTORY, StoredRun
from wandb_server import WandbServer

from analysis import curves
from analysis.gather import gather
from analysis.wandb_api import PAGE, WandbReadError, read_project
from analysis.wandb_files import read_directory
from analysis.wandb_runs import foreign_table, table

MANY = 250
PATH = f"{ENTITY}/mlkv"


def use(server: WandbServer, patch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment().items():
        patch.setenv(name, value)


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
        run.lines[HISTORY] = [json.dumps({"_step": k, "loss": i + k / 8}) for k in range(rows)]
        server.backend.runs[ENTITY, "mlkv", run.name] = run


def operations(server: WandbServer) -> Counter[str]:
    return Counter(server.backend.operations)


def test_store_files_and_api_give_the_same_table_and_curves(
    mirrored: Mirrored, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(mirrored.server, monkeypatch)
    runs = read_project(PATH)
    stored = gather(mirrored.store, mirrored.name)
    pd.testing.assert_frame_equal(table(runs, mirrored.name), stored, check_exact=True)
    offline = curves.of_runs(read_directory(mirrored.offline))
    pd.testing.assert_frame_equal(curves.of_runs(runs), offline, check_exact=True)


def test_nested_configuration_and_odd_numbers_come_back(mirrored: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    use(mirrored.server, monkeypatch)
    for runs in (read_project(PATH, {"group": mirrored.name}), read_directory(mirrored.offline)):
        (variant,) = (run for run in runs if run.name == "MLKV-3")
        (planned,) = (row for row in mirrored.store.sweep(mirrored.name).variants if row["variant"] == "MLKV-3")
        assert variant.config["uptrain"] == planned["config"]["uptrain"]
        assert variant.config["mlkv"]["variant"] == {key: planned[key] for key in planned if key != "config"}
        assert set(variant.tags) == {"even", "budget-3"}


@pytest.mark.slow
def test_many_runs_cost_a_page_for_hundreds_and_a_few_requests_each(server: WandbServer, tmp_path: Path) -> None:
    fill(server, MANY, 50)
    told: list[tuple[int, int]] = []
    runs = read_project(PATH, cache=tmp_path, report=lambda done, of: told.append((done, of)))
    asked = operations(server)
    assert len(runs) == MANY
    assert all(len(run.rows) == 50 for run in runs)
    assert [run.id for run in runs] == [f"theirs-{i}" for i in range(MANY)]
    assert asked["Runs"] == math.ceil(MANY / PAGE)
    assert sum(asked.values()) < 4 * MANY
    assert told[-1] == (MANY, MANY)

    server.backend.operations.clear()
    changed = server.runs["theirs-7"]
    changed.lines[HISTORY].append(json.dumps({"_step": 50, "loss": 0.0}))
    changed.updated = "2030-01-01T00:00:00Z"
    again = read_project(PATH, cache=tmp_path)
    assert operations(server)["HistoryPage"] == 1
    assert [len(run.rows) for run in again if run.id == "theirs-7"] == [51]
    assert [run.rows for run in again if run.id != "theirs-7"] == [run.rows for run in runs if run.id != "theirs-7"]


def test_a_server_that_falters_is_asked_again(server: WandbServer) -> None:
    fill(server, 12, 5)
    server.fail(path="graphql", status=500, times=4, every=3)
    server.fail(path="graphql", status=429, retry_after=0.1, times=3, every=5)
    server.fail(path="graphql", disconnect=True, times=2, every=7)
    server.fail(path="graphql", seconds=0.2, times=2)
    runs = read_project(PATH)
    assert [len(run.rows) for run in runs] == [5] * 12


def test_what_cannot_be_read_is_one_line(server: WandbServer) -> None:
    with pytest.raises(WandbReadError, match=f"W&B project {ENTITY}/nothing"):
        read_project(f"{ENTITY}/nothing")


def test_somebody_elses_sweep_is_gathered_by_mapping_its_keys(server: WandbServer) -> None:
    fill(server, 4, 2)
    runs = read_project(PATH, histories=False)
    mapping = {"kv_heads": "arch.kv.heads", "budget": "kv_budget"}
    found = foreign_table(runs, mapping, {"val/loss": ("held_out", "loss")})
    assert found["budget"].tolist() == [0, 1, 2, 3]
    assert found["value"].tolist() == [pd.NA, 2.0, pd.NA, 2.0]
    assert found["reason"].tolist()[0] == "val/loss is not a number in its summary"
    assert set(found["sweep"]) == {"old-sweep"}
    with pytest.raises(ValueError, match="no column heads"):
        foreign_table(runs, {"heads": "arch.kv.heads"}, {})
