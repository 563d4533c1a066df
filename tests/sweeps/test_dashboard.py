"""`mlkv dashboard`: W&B's terminal dashboard over offline files, and the saved view online."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlkv.files import Json
from sweeps.store.errors import UserError
from sweeps.tracking import workspace
from tests.support.processes import eventually
from tests.support.records import some_variant
from tests.support.shell import Shell
from tests.support.tracked import Planner, Stage, make_stage, training
from tests.support.wandb_graphql import ENTITY, StoredRun
from tests.support.wandb_server import WandbServer


@pytest.fixture
def stage(planner: Planner, tiny: list[str], tmp_path: Path) -> Stage:
    return make_stage(planner, tiny, tmp_path, mode="offline")


def test_files_to_open_are_asked_for(mlkv: Shell, stage: Stage) -> None:
    assert "no W&B files" in mlkv("dashboard", "tiny", status=2)


def test_the_view_has_the_panels_of_the_sweep_and_is_renewed_not_doubled(stage: Stage, server: WandbServer) -> None:
    pytest.importorskip(workspace.PACKAGE)
    server.backend.runs[ENTITY, "mlkv", "any"] = StoredRun(ENTITY, "mlkv", "any", "id")
    first = workspace.save(stage.saved, stage.config, higher_is_better=False)
    assert workspace.save(stage.saved, stage.config, higher_is_better=True) == first
    (view,) = server.backend.views.values()
    assert (view["displayName"], view["projectName"], view["type"]) == ("tiny", "mlkv", "project-view")
    assert first.endswith(f"{ENTITY}/mlkv?nw={view['name'].removeprefix('nw-').removesuffix('-v')}")
    section = json.loads(view["spec"])["section"]
    (runs,) = section["runSets"]
    wanted = [(each["key"]["name"], each["value"]) for each in runs["filters"]["filters"]]
    assert wanted == [("group", "tiny"), ("jobType", "variant")]
    shown = {s["name"]: [p["config"]["chartTitle"] for p in s["panels"] if "chartTitle" in p["config"]]
             for s in section["panelBankConfig"]["sections"]}  # fmt: skip
    assert shown["Results"] == [
        "Pareto: quality against KV bytes per token", "Quality over what was swept", "Loss by variant",
        "Memory against batch size",
    ]  # fmt: skip
    assert shown["Queue"] == ["Steps done", "Steps done in all", "Steps planned in all"]
    pareto = section["panelBankConfig"]["sections"][0]["panels"][0]["config"]
    assert (pareto["xAxis"], pareto["yAxis"]) == ("config:kv_bytes_per_token.value", "summary:quality")
    assert pareto["showMaxYAxisLine"], "saved last for a score of which more is better"


def test_the_view_has_an_axis_for_each_swept_key_and_one_for_the_quality(stage: Stage, server: WandbServer) -> None:
    pytest.importorskip(workspace.PACKAGE)
    server.backend.runs[ENTITY, "mlkv", "any"] = StoredRun(ENTITY, "mlkv", "any", "id")
    workspace.save(stage.saved, stage.config, higher_is_better=False)
    (view,) = server.backend.views.values()
    panels = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"][0]["panels"]
    (plot,) = (panel for panel in panels if panel["viewType"] == "Parallel Coordinates Plot")
    axes = {axis["accessor"]: axis for axis in plot["config"]["columns"]}
    swept = {key for row in stage.saved.variants for key in row.overrides}
    assert swept == {"layout.kv_layers", "layout.kv_heads"}
    expected = [
        f"config:layout.value.{key.removeprefix('layout.')}" for key in workspace.swept_keys(stage.saved.variants)
    ]
    assert list(axes) == [*expected, "summary:quality"]
    assert axes["summary:quality"]["inverted"], "the best at the top, where less is better"


@pytest.mark.parametrize(
    ("overrides", "configs", "expected"),
    [
        ([{"uptrain.lr": "0.1"}, {"uptrain.lr": "0.001"}], [{"uptrain": {"lr": 0.1}}, {"uptrain": {"lr": 0.001}}],
         {"uptrain.lr": [0.1, 0.001]}),
        ([{"model": "a"}, {"model": "b"}], [{"model": {"name": "a"}}, {"model": {"name": "b"}}],
         {"model.name": ["a", "b"]}),
        ([{"layout": "mqa"}, {"layout": "cla"}], [{"layout": {}}, {"layout": {}}], {"family": ["MQA", "MQA"]}),
        ([{"+cache": "int8"}, {}], [{"cache": "int8"}, {"cache": "model"}], {"cache": ["int8", "model"]}),
        ([{}, {}], [{}, {}], {}),
        ([{"gone.key": "1"}], [{}], {}),
    ],
)  # fmt: skip
def test_a_swept_key_is_looked_up_where_the_runs_have_it(
    overrides: list[Json], configs: list[Json], expected: Json
) -> None:
    rows = [
        some_variant(variant="v", overrides=each, config=config)
        for each, config in zip(overrides, configs, strict=True)
    ]
    assert workspace.swept_keys(rows) == expected


def test_a_project_that_is_not_there_is_one_line(stage: Stage, server: WandbServer) -> None:
    pytest.importorskip(workspace.PACKAGE)
    with pytest.raises(UserError, match=r"W&B project mlkv: .*not found"):
        workspace.save(stage.saved, stage.config, higher_is_better=False)


def test_without_the_package_the_message_says_where_to_get_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"pip install wandb-workspaces, or see docs/wandb\.md"):
        workspace.save(stage.saved, stage.config, higher_is_better=False)


@pytest.mark.long
def test_the_terminal_dashboard_shows_the_sweeps_runs(mlkv: Shell, stage: Stage, server: WandbServer) -> None:
    """In a real terminal (tmux)."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    stage.act(stage.id("base"), training(1, 30))

    def tmux(*words: str) -> str:
        line = ["tmux", "-S", str(mlkv.folder / "tmux"), *words]
        return subprocess.run(line, env=mlkv.environment(), capture_output=True, text=True, check=True).stdout

    command = [sys.executable, "-m", "sweeps.cli", "dashboard", "tiny"]
    tmux("new-session", "-d", "-x", "180", "-y", "50", "-c", str(mlkv.folder), *command)
    try:
        assert eventually(lambda: "Runs [" in tmux("capture-pane", "-p")), tmux("capture-pane", "-p")

        def down_to_the_base() -> bool:
            tmux("send-keys", "Down")
            return f"ID: {stage.id('base')}" in tmux("capture-pane", "-p")

        assert eventually(down_to_the_base, every=1.0), tmux("capture-pane", "-p")
    finally:
        tmux("kill-server")
    assert not server.requests
