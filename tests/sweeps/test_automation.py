"""docs/automation.md: the keys that `--json` prints are those it names, and its program does what it says."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from sweeps.store.store import Store
from tests.support.commands import OLD_STORE, nothing_computes
from tests.support.shell import ROOT, TEST_CONF, Shell, exit_status

DOCS = (ROOT / "docs" / "automation.md").read_text()
STEP = {"id", "kind", "label", "parents", "state", "reason", "attempt", "at", "of"}
SHOWN = {"name", "variant", "baseline", "family", "pattern", "budget", "kv_bytes_per_token", "parameters", "cache"}
SHOWN |= {"layout", "overrides", "config", "steps"}
PLAN = ["plan", "--config-dir", str(OLD_STORE / "conf"), "experiment=old"]
KEYS: dict[str, tuple[list[str], set[str]]] = {
    "plan": (
        PLAN,
        {"name", "variants", "steps", "expected_seconds", "checkpoint_bytes", "memory", "unresolved", "power"}
        | {"layouts_to_follow", "overruled"},
    ),
    "status of all": (["status"], {"sweeps"}),
    "status": (["status", "old"], {"name", "counts", "steps", "driver"}),
    "why": (["why", "old", "MHA-4"], {"name", "steps"}),
    "show": (["show", "old", "MHA-4"], SHOWN),
    "diff": (["diff", "old", "stopped"], {"only", "all", "variants", "shared_steps"}),
    "table": (["table", "old"], {"names", "axis", "notes", "rows"}),
    "gather": (["gather", "old"], {"name", "cells"}),
    "ls": (["ls"], {"entries"}),
    "du": (["du"], {"sweeps", "steps", "unneeded", "other"}),
}
INSIDE = {
    ("plan", "variants"): "variant baseline overrides kv_heads budget layout kv_bytes_per_token parameters steps",
    ("plan", "steps"): " ".join([*STEP, "expected_seconds"]),
    ("plan", "memory"): "kind variant processes bytes",
    ("status of all", "sweeps"): "name counts",
    ("status", "steps"): " ".join(STEP),
    ("why", "steps"): " ".join([*STEP, "log", "remarks"]),
    ("show", "steps"): "id kind task state reason output finished wall_seconds device_seconds peak_memory_bytes host "
    "device versions code from left_out others",
    ("table", "rows"): "variant source baseline family pattern kv_layers kv_heads budget kv_bytes_per_token seeds "
    "metric label higher_is_better value stderr interval reason difference difference_interval difference_p "
    "difference_from signatures",
    ("ls", "entries"): "name planned variants steps note problem",
    ("du", "sweeps"): "name own shared",
}


def printed(words: list[str], store: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert exit_status(*words, "--json", "--store", str(store)) in (0, 1)
    found: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    return found


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copytree(OLD_STORE / "store", tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("command", KEYS)
def test_the_keys_are_those_of_the_docs(command: str, old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, keys = KEYS[command]
    with nothing_computes(old.parent):
        found = printed(words, old, capsys)
    assert found["version"] == 1
    assert set(found) == {"version", *keys}
    for (name, key), inside in INSIDE.items():
        if name == command:
            assert found[key]
            assert {frozenset(each) for each in found[key]} == {frozenset(inside.split())}
            keys = keys | set(inside.split())
    assert not [key for key in keys if f"`{key}`" not in DOCS]


def test_states_are_those_of_the_store(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(["status", "old"], old, capsys)
    states = [step["state"] for step in found["steps"]]
    assert {state: states.count(state) for state in found["counts"]} == found["counts"]
    assert len(states) == len(Store(old).sweep("old").plan.steps)
    (failed,) = (step for step in found["steps"] if step["state"] == "FAILED")
    assert (failed["at"], failed["of"]) == (2, 4)
    assert "training diverged" in failed["reason"]
    assert all(f"waits for {failed['id']}" in step["reason"] for step in found["steps"] if step["state"] == "BLOCKED")
    everywhere = {each["name"]: each["counts"] for each in printed(["status"], old, capsys)["sweeps"]}
    assert everywhere["old"] == found["counts"]


def test_cells_are_those_of_the_csv(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pandas as pd

    cells = printed(["gather", "old"], old, capsys)["cells"]
    assert exit_status("gather", "old", "-o", str(tmp_path / "cells.csv"), "--store", str(old)) == 0
    table = pd.read_csv(tmp_path / "cells.csv")
    assert [cell["step"] for cell in cells] == list(table["step"])
    assert [cell["value"] for cell in cells if cell["value"] is not None] == list(table["value"].dropna())


@pytest.mark.parametrize(
    "words",
    [["status", "old", "--watch"], ["gather", "old", "-o", "x.csv"], ["table", "old", "--format", "csv"]],
    ids=["watch", "file", "format"],
)
def test_json_goes_with_no_other_form(words: list[str], old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(*words, "--json", "--store", str(old)) == 2
    assert "give either --json or --" in capsys.readouterr().err


@pytest.mark.long(minutes=1)
def test_its_program_runs_as_written(mlkv: Shell, tiny: list[str]) -> None:
    [program] = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    line = [*tiny, "layout.kv_layers=2,1", "layout.kv_heads=1", "measure=none", "tracking=off"]
    line += ["--config-dir", str(TEST_CONF)]
    assert program.count('LINE = ["experiment=quickstart"]') == 1
    (mlkv.folder / "program.py").write_text(program.replace('["experiment=quickstart"]', repr(line)))
    for _ in range(2):
        printed = mlkv.program(sys.executable, "program.py")
        assert re.fullmatch(r"[\w-]+: \d+ bytes per token, [\w ]+ \d\.\d{3}\n", printed)
    cells = json.loads(mlkv("gather", "tiny", "--json"))["cells"]
    chosen = printed.partition(":")[0]
    loss = {cell["variant"]: cell["value"] for cell in cells if cell["in_axis"]}
    size = {cell["variant"]: cell["kv_bytes_per_token"] for cell in cells if cell["in_axis"]}
    base = next(cell["value"] for cell in cells if cell["in_axis"] and cell["baseline"] == "mha")
    assert loss[chosen] <= 1.02 * base
    assert size[chosen] == min(size[label] for label in size if loss[label] <= 1.02 * base)
