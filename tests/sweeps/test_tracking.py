"""Mirroring of steps to W&B: the real client against a server on this machine, and against files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.planning.config import is_hashed
from sweeps.steps.registry import axis_of
from sweeps.store.axis import Axis, shown_name
from sweeps.store.schema import LoggedRow
from sweeps.store.typed_json import from_json
from sweeps.tracking.target import VARIABLE, Target, TrackingConfig
from tests.support.processes import PATIENCE
from tests.support.read_back import present
from tests.support.shell import ROOT
from tests.support.tracked import Planner, Stage, arrives, make_stage, positions, training
from tests.support.wandb_server import KEY, WandbServer


@pytest.fixture
def stage(planner: Planner, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv(VARIABLE, "")
    return make_stage(planner, tiny, tmp_path, mode="online")


def test_a_steps_run_says_what_it_is_and_how_it_went(stage: Stage, server: WandbServer) -> None:
    step = stage.id("uptrain")
    scored = [{"metric": "loss", "value": 4.0, "stderr": 0.25, "n": 50}]
    mirror = stage.mirror()
    acted = stage.begin(mirror, step)
    acted.log(training(1, 30))
    arrives(lambda: step in server.runs and len(server.runs[step].history) == 30)
    arrives(lambda: bool(server.runs[step].events))
    acted.end(metrics=scored)
    mirror.close()

    run = server.runs[step]
    assert (run.state, run.shown["jobType"], run.shown["displayName"]) == ("finished", "uptrain", "uptrain MHA-4")
    assert run.value("slice") == present(stage.store.step(step).spec()).slice
    assert run.value("parents") == present(stage.store.step(step).spec()).parents
    assert positions(server, step) == list(range(1, 31))
    assert run.history[3]["train/loss"] == 4.25
    assert run.history[3]["_timestamp"] == 1e9 + 4
    assert run.summary["final/loss"] == 4.0
    assert run.summary["final/loss_stderr"] == 0.25
    assert run.summary["record"]["metrics"] == scored
    assert any("system.proc.memory.rssMB" in row for row in run.events)
    axes = [m for m in run.config["_wandb"]["value"]["m"] if m.get("1") == "train/global_step" or "5" in m]
    assert axes, "train/* is drawn against our own step"


@pytest.mark.slow
def test_requeued_twice_is_one_run_with_every_row_once(stage: Stage, server: WandbServer) -> None:
    step = stage.id("uptrain")
    stage.act(step, training(1, 20), "interrupted")
    assert server.runs[step].state == "preempted"
    stage.act(step, training(11, 30), "interrupted")
    stage.act(step, training(25, 40))
    assert positions(server, step) == list(range(1, 41))
    assert [position for position, _ in stage.store.step(step).history(axis_of("uptrain"))] == list(range(1, 41))
    assert (server.runs[step].state, server.runs[step].summary["state"]) == ("finished", "DONE")
    assert [id for id in server.runs if not id.startswith("variant-")] == [step]


def test_killed_outright_what_arrived_stays_and_sync_brings_the_rest(stage: Stage, server: WandbServer) -> None:
    step, mirror = stage.id("uptrain"), stage.mirror()
    acted = stage.begin(mirror, step)
    acted.log(training(1, 41))
    arrives(lambda: step in server.runs and positions(server, step) == list(range(1, 42)))
    acted.log(training(42, 81))
    assert mirror._process
    os.kill(mirror._process.pid, signal.SIGKILL)
    mirror._process.wait(PATIENCE)
    arrived = positions(server, step)
    assert arrived == list(range(1, max(41, len(arrived)) + 1))
    mirror._process = None  # no other one goes on while `mlkv sync` writes the same run
    acted.end()
    failed, done = stage.sync()
    assert (failed, done[step].outcome) == (0, "sent")
    assert positions(server, step) == list(range(1, 82))


def test_a_worker_that_is_killed_leaves_a_helper_that_sends_the_rest(stage: Stage, server: WandbServer) -> None:
    step, mirror = stage.id("uptrain"), stage.mirror()
    acted = stage.begin(mirror, step)
    acted.log(training(1, 50))
    assert mirror._process
    assert mirror._process.stdin
    mirror._process.stdin.close()  # what the kernel does for a dead worker
    mirror._process.wait(PATIENCE)
    assert positions(server, step) == list(range(1, 51))
    assert server.runs[step].state == "preempted"


def test_the_key_is_in_no_file(stage: Stage, server: WandbServer, tmp_path: Path) -> None:
    stage.act(stage.id("base"), training(1, 5))
    assert KEY not in Target(stage.config, "tiny").environment()[VARIABLE]
    assert server.runs
    written = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert not written


def test_the_helper_ends_with_its_worker(stage: Stage, server: WandbServer) -> None:
    mirror = stage.mirror()
    stage.begin(mirror, stage.id("base")).end()
    process = mirror._process
    mirror.close()
    assert process
    assert process.returncode == 0


def test_off_starts_nothing(stage: Stage) -> None:
    stage.config = TrackingConfig(mode="off")
    mirror = stage.mirror()
    stage.begin(mirror, stage.id("base")).end()
    assert mirror._process is None


def test_neither_worker_nor_computing_process_imports_wandb() -> None:
    modules = "sweeps.worker.supervisor, sweeps.worker.child_main, sweeps.dispatch.local_loop"
    code = f"import sys, {modules}; print('wandb' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_tracking_is_no_part_of_what_a_step_is() -> None:
    assert not is_hashed("tracking")


@pytest.mark.parametrize("project", ["sweeps", "runs", "a/b", "", "two words"])
def test_project_names_that_wandb_misreads_are_refused(project: str) -> None:
    with pytest.raises(ValueError, match="project = "):
        TrackingConfig(project=project)


def test_the_learning_rate_has_the_name_that_everyone_gives_it() -> None:
    """Earlier code called it train/lr, in runs that are still read."""
    row = from_json(LoggedRow, {"step": 3, "lr": 0.1, "loss": 2.0})
    ((position, shown),) = Axis("train", counts_steps=True).rows([row])
    assert (position, shown) == (3, {"train/global_step": 3, "train/learning_rate": 0.1, "train/loss": 2.0})
    assert [shown_name(key) for key in ("train/lr", "lr", "train/loss")] == [
        "train/learning_rate",
        "learning_rate",
        "train/loss",
    ]
