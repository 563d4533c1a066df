"""The command line: a mistake is one line and exit status 2, before anything runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from sweeps.cli.completion import complete_override, complete_sweep
from sweeps.store.errors import UserError
from sweeps.store.store import Store
from sweeps.tracking.target import Target
from sweeps.worker.job_context import JobContext
from tests.support.processes import PATIENCE
from tests.support.records import save_sweep
from tests.support.shell import ROOT, Shell, exit_status


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    status, printed = exit_status(*arguments), capsys.readouterr()
    assert (status, printed.out) == (2, "")
    return printed.err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["uptrain.lrr=1"], ["uptrain.lrr", "unknown key", "weight_decay"]),
        (["layout=nope"], ["layout = nope", "mqa", "sandwich"]),
        (["layout.kv_heads=5"], ["kv_heads = 5", "6 query heads", "1, 2, 3, 6"]),
        (["layout=explicit", "layout.kv_source_layers=[0,2,1,3,4,5]"], ["kv_source_layers[1] = 2"]),
        (["layout.budget=37"], ["layout.budget = 37", "1, 2, 3"]),
        (["model=pythia-160m-deduped", "model.path=/nowhere"], ["model.path = /nowhere", "config.json"]),
        (["corpus=text_files", "corpus.files=[/nowhere/*]"], ["corpus.files = /nowhere/*", "no file"]),
        (["uptrain.lr=-1"], ["uptrain.lr = -1", "greater than 0"]),
    ],
)
def test_bad_overrides(
    overrides: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = refused(["sweep", "--store", str(tmp_path / "store"), *overrides], capsys)
    assert error.startswith("mlkv: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words)
    assert not (tmp_path / "store" / "steps").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no command given", "sweep, plan", "mlkv --help"]),
        (["statsu"], ["statsu: unknown command", "did you mean status?", "why"]),
        (["plan", "arc_easy"], ["arc_easy: not an override KEY=VALUE", """'KEY="VALUE"'"""]),
        (["--stroe", "x"], ["--stroe: unknown option", "--version", "others follow a command"]),
        (["status", "--wacth"], ["status: --wacth: unknown option", "did you mean --watch?"]),
        (["status", "a", "b"], ["status: b: too many arguments", "mlkv status --help"]),
        (["plan", "--config-dir", "a", "--config-dir", "b"], ["--config-dir: is given twice"]),
        (["status", "--store", ""], ["--store: must not be empty"]),
        (["table"], ["table: the following arguments are required: NAME;"]),
        (["run", "corpsu", "layout=mqa"], ["corpsu", "did you mean corpus?", "uptrain"]),
    ],
)
def test_a_slip_of_the_fingers(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLKV_STORE", str(tmp_path / "store"))
    error = refused(arguments, capsys)
    assert error.startswith("mlkv: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words)


def test_a_store_that_is_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    assert "cannot be written" in refused(["sweep", "--store", str(tmp_path / "store")], capsys)


@pytest.mark.parametrize("command", ["status", "gather", "report", "retry", "cancel"])
def test_a_sweep_that_is_not_there(command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    assert "nope: not in" in refused([command, "--store", str(tmp_path), "nope"], capsys)


def test_a_store_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no store there; set --store or MLKV_STORE" in refused(["status", "--store", str(tmp_path / "x")], capsys)


def test_plan_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("plan", "--store", str(tmp_path / "store"), "experiment=quickstart") == 0
    printed = capsys.readouterr().out
    assert "MLKV-6" in printed
    assert "2 ─ 2 ─ 2 ─" in printed
    assert not list((tmp_path).glob("store/s*"))


def test_options_may_stand_between_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("plan", "layout=mqa", "--store", str(tmp_path / "store"), "name=between") == 0
    assert "between: 3 variants" in capsys.readouterr().out
    assert exit_status("plan", "--stroe", "x") == 2


def complaints(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was written to stderr, but the note of an old store that measurements mean something else now."""
    return [line for line in capsys.readouterr().err.splitlines() if "under an earlier schema" not in line]


@pytest.mark.parametrize(
    "line",
    [
        "why old --store STORE MHA-4",
        "table --store STORE old --format csv losses",
        "table old losses --format csv --store STORE",
        "gather old --store STORE source=store",
        "logs old --store STORE MHA-4",
        "cancel old --store STORE",
        "status --watch old --store STORE",
        "status --store STORE old --watch",
    ],
)
def test_options_may_stand_anywhere_among_the_arguments(
    line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "tests" / "sweeps" / "old_store" / "store", tmp_path / "store")
    assert exit_status(*line.replace("STORE", str(tmp_path / "store")).split()) in (0, 1)
    assert not complaints(capsys)


def test_a_store_in_the_home_directory_is_found_by_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "tests" / "sweeps" / "old_store" / "store", tmp_path / "stores")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLKV_STORE", "~/stores")
    for line in ("status old", "why old MHA-4", "logs old MHA-4", "gather old", "table theirs", "prune", "cancel old"):
        assert exit_status(*line.split()) in (0, 1)
    assert exit_status("status", "--store=~/stores") == 0
    assert exit_status("plan", "layout=mqa") == 0
    assert not complaints(capsys)
    monkeypatch.setenv("MLKV_STORE", "~nobody-of-this-name/store")
    assert "no store there" in refused(["status"], capsys)
    assert not list(tmp_path.glob("**/~*"))


@pytest.mark.parametrize("value", ["abc", "-1", "0", "nan", "inf", "1e999", "٣x"])
def test_a_variable_with_a_bad_value_is_named_by_every_command(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLKV_STALE_SECONDS", value)
    line = f"mlkv: MLKV_STALE_SECONDS = {value}: must be a number of seconds above 0\n"
    for command in (["status"], ["plan"], ["logs", "x"], ["run", "corpus"], ["prune"]):
        assert refused(command, capsys) == line
    assert exit_status("--version") == 0


def test_what_a_launcher_sets_is_refused_in_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"MLKV_QUEUED": "1", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}
    for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_RESTART_COUNT"):
        with pytest.raises(UserError, match=f"^{name} = x: must be a whole number$"):
            JobContext.current({**whole, name: "x"})
    assert JobContext.current({"MLKV_QUEUED": "1", "SLURM_PROCID": "0"}) == JobContext(), "not in a job"
    for text in ("x", "3", "[]", "{}", '{"config": {"mode": 1, "nope": 2}, "sweep": null}'):
        with pytest.raises(UserError, match=r"^MLKV_TRACKING = "):
            Target.of_environment({"MLKV_TRACKING": text})


def test_completion_knows_groups_options_and_keys(tmp_path: Path) -> None:
    assert {"layout=", "layout.", "experiment=", "name="} <= set(complete_override("lay"))
    assert "layout=mha,gqa" in complete_override("layout=mha,g")
    assert "uptrain.lr=" in complete_override("uptrain.l")
    assert "experiment=quickstart" in complete_override("experiment=")
    shell = Shell(tmp_path)
    save_sweep(shell.store, "mine", {"steps": {}})
    assert complete_sweep(__import__("argparse").Namespace(store=shell.store.root)) == ["mine"]


def test_the_shell_completes(tmp_path: Path) -> None:
    """As bash asks: the line so far in the environment, answers on file descriptor 8."""
    script = (
        "import os, sys; os.dup2(os.open('answers', os.O_CREAT | os.O_WRONLY), 8);"
        "sys.argv = ['mlkv']; import sweeps.cli; sweeps.cli.main()"
    )
    line = "mlkv plan convert=pu"
    completion = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    environment = {**Shell(tmp_path).environment(), **completion, "_ARGCOMPLETE_COMP_WORDBREAKS": ""}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=False, timeout=PATIENCE)
    assert (tmp_path / "answers").read_text().split() == ["convert=published"]
    assert ROOT.is_dir()


@pytest.mark.parametrize("module", ["mlkv", "sweeps.cli"])
def test_the_command_can_be_run_as_a_module(module: str) -> None:
    line = [sys.executable, "-m", module, "--version"]
    run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == f"mlkv {version('mlkv')}\n"


@pytest.mark.parametrize("option", ["-o", "--curves"])
def test_a_file_that_cannot_be_written_is_named_in_one_line(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(tmp_path / "store")
    save_sweep(store, "a", {"steps": {}, "accuracy": [], "axis": None})
    (tmp_path / "store" / "steps").mkdir()
    (tmp_path / "file").touch()
    for target, reason in (("file/x.csv", f"File exists: {tmp_path / 'file'}"), (".", f"Is a directory: {tmp_path}")):
        assert exit_status("gather", "a", "--store", str(store.root), option, str(tmp_path / target)) == 1
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert reason in printed
    new = tmp_path / "new" / "x.csv"
    assert (exit_status("gather", "a", "--store", str(store.root), option, str(new)), new.is_file()) == (0, True)
