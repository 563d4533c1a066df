"""Whole sweeps as a user runs them: skipping, sharing, surviving, and what happens when a step fails."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from sweeps.store.store import Store
from tests.support.faults import steps_done
from tests.support.processes import PATIENCE
from tests.support.read_back import present
from tests.support.shell import TEST_CONF, Shell

pytestmark = pytest.mark.slow

SMALL = ["layout=mqa", "sweep.baselines=[]", "evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]", "measure=none"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, text_files: Path) -> Shell:
    """The tests' experiment, run to its end."""
    shell = Shell(tmp_path_factory.mktemp("finished"))
    printed = shell("sweep", "experiment=tiny", f"corpus.files=[{text_files}/*.txt]")
    assert "report: reports/tiny/index.html" in printed
    return shell


@pytest.fixture
def copy(finished: Shell, tmp_path: Path) -> Shell:
    """A private copy of the finished store."""
    shutil.copytree(finished.folder, tmp_path, dirs_exist_ok=True)
    return Shell(tmp_path)


def attempts(store: Store) -> Counter[str]:
    """How often each step was begun."""
    return Counter({step.id: len(step.attempts()) for step in store.steps()})


def begun(before: Counter[str], store: Store) -> Counter[str]:
    """Kinds of the steps begun since `before`."""
    return Counter(id.rsplit("-", 1)[0] for id in (attempts(store) - before).elements())


def test_everything_is_there_and_the_second_run_does_nothing(finished: Shell, tiny: list[str]) -> None:
    store = finished.store
    assert all(step.state().name == "DONE" for step in store.steps())
    assert Counter(step.kind for step in store.steps()) == {
        "corpus": 1,
        "base": 1,
        "convert": 3,
        "uptrain": 3,
        "evaluate": 16,
        "measure": 3,
    }
    reports = finished.folder / "reports" / "tiny"
    names = {"index.html", "pareto.png", "pareto.pdf", "results.csv", "results.md", "results.tex"}
    assert names <= {path.name for path in reports.iterdir()}
    before = attempts(store)
    finished("sweep", *tiny)
    assert attempts(store) == before
    assert store.sweep("tiny").number == 1


@pytest.mark.long(minutes=6)
def test_a_layout_a_task_and_a_learning_rate_run_only_what_is_new(copy: Shell, tiny: list[str]) -> None:
    before = attempts(copy.store)
    copy("sweep", *tiny, "layout.kv_layers=2,1,1", "layout.kv_heads=1,2,1")
    assert begun(before, copy.store) == {"convert": 1, "uptrain": 1, "evaluate": 4, "measure": 1}

    before = attempts(copy.store)
    one = ["layout.kv_layers=2", "layout.kv_heads=1", "sweep.baselines=[]"]
    copy("sweep", *tiny, *one, "uptrain.lr=3e-3", "evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]")
    assert begun(before, copy.store) == {"uptrain": 1, "evaluate": 1}


def test_looking_and_steering(finished: Shell) -> None:
    printed = finished("status")
    assert "28 done" not in printed
    assert "tiny: 27 done" in printed
    assert finished("status", "tiny").count("DONE") == 27
    assert "all done" in finished("why", "tiny", "MQA-2")
    assert "no variant or step" in finished("why", "tiny", "MQA-9", status=2)
    base = next(step.id for step in finished.store.steps() if step.kind == "base")
    assert "6/6  tokens" in finished("logs", base)
    finished("gather", "tiny", "-o", "cells.csv")
    assert "bits_per_byte" in (finished.folder / "cells.csv").read_text()
    finished("report", "tiny", "-o", "again")
    assert (finished.folder / "again" / "index.html").read_text().startswith("<!doctype html>")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.long
def test_a_corrupt_checkpoint_is_seen_reported_and_made_again(copy: Shell, tiny: list[str]) -> None:
    victim = next(step for step in copy.store.steps() if step.kind == "uptrain")
    good = victim.record()
    flip_a_byte(victim.out / "model.safetensors")
    assert f"corrupt {victim.id}: model.safetensors" in copy("status", "tiny", "--verify", status=1)
    before = attempts(copy.store)
    copy("sweep", *tiny)
    assert begun(before, copy.store) == {"uptrain": 1}
    assert present(victim.record()).outputs == present(good).outputs


@pytest.mark.long
def test_a_corrupt_input_is_set_aside_by_the_step_that_reads_it(copy: Shell, tiny: list[str]) -> None:
    base = next(step for step in copy.store.steps() if step.kind == "base")
    flip_a_byte(base.out / "model.safetensors")
    before = attempts(copy.store)
    copy("sweep", *tiny, "layout.kv_layers=1", "layout.kv_heads=1", "sweep.baselines=[]")
    assert begun(before, copy.store) == {"base": 1, "convert": 1, "uptrain": 1, "evaluate": 4, "measure": 1}
    assert base.corrupted() is None


def wait_for(what: str, store: Store, kind: str, steps: int) -> None:
    """Until a step of `kind` is running and has logged `steps` steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for step in store.steps():
            state = step.state()
            if step.kind == kind and state.name == "RUNNING" and steps_done(state) >= steps:
                return
        time.sleep(0.02)
    raise AssertionError(f"{what}: no {kind} step got to {steps}")


def final_outputs(store: Store) -> dict[str, object]:
    return {step.id: present(step.record()).outputs for step in store.steps() if step.kind in ("base", "uptrain")}


@pytest.mark.long
def test_a_killed_sweep_goes_on_and_ends_as_if_nothing_had_happened(
    mlkv: Shell, tiny: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    line = ["sweep", *tiny, *SMALL, "base.steps=40", "uptrain.steps=30"]
    undisturbed = Shell(tmp_path_factory.mktemp("undisturbed"))
    undisturbed(*line)

    for kind in ("base", "uptrain"):
        process = mlkv.start(*line)
        wait_for(" ".join(line), mlkv.store, kind, 7)
        done = {step.id for step in mlkv.store.steps() if step.record()}
        before = attempts(mlkv.store)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert done
    mlkv(*line)
    assert begun(before, mlkv.store)["uptrain"] == 1
    assert all(attempts(mlkv.store)[id] == before[id] for id in done)
    assert final_outputs(mlkv.store) == final_outputs(undisturbed.store)
    rows = [
        row.step or 0
        for step in mlkv.store.steps()
        if step.kind == "uptrain"
        for row in step.metrics()
        if "loss" in row.fields
    ]
    assert rows[0] > 1, "the last attempt took up where the checkpoint was"


@pytest.mark.long
def test_two_launchers_share_steps_and_run_none_twice(mlkv: Shell, tiny: list[str]) -> None:
    one = mlkv.start("sweep", *tiny, *SMALL)
    two = mlkv.start("sweep", *tiny, *SMALL, "name=other", "layout.kv_heads=1,2")
    for process in (one, two):
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, out + err
    assert set(attempts(mlkv.store).values()) == {1}
    assert sorted(mlkv.store.sweep_names()) == ["other", "tiny"]


@pytest.mark.long
def test_a_failed_step_stops_its_descendants_alone(copy: Shell, tiny: list[str]) -> None:
    line = ["sweep", *tiny, "name=wild", "uptrain.lr=1e-3,1e30", "layout=mqa", "sweep.baselines=[]", "measure=none"]
    line += ["evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]"]
    printed = copy(*line, status=1)
    assert "1 failed" in printed
    assert "1 blocked" in printed
    assert "MQA-2 uptrain.lr=0.001" in printed
    printed = copy("why", "wild", "MQA-2 uptrain.lr=1e+30")
    assert "FAILED" in printed
    assert "BLOCKED" in printed or "which failed" in printed
    before = attempts(copy.store)
    assert "1 failed: `mlkv retry wild` runs them again" in copy(*line, status=1)
    assert attempts(copy.store) == before, "a failed step waits for retry"
    copy("retry", "wild", status=1)
    assert begun(before, copy.store) == {"uptrain": 1}


@pytest.mark.long
def test_cancel_stops_the_launcher_and_the_same_line_goes_on(mlkv: Shell, tiny: list[str]) -> None:
    line = ["sweep", *tiny, *SMALL, "base.steps=4000"]
    process = mlkv.start(*line)
    wait_for("cancel", mlkv.store, "base", 3)
    assert "sweep tiny stops now" in mlkv("cancel", "tiny")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, out + err
    base = next(step for step in mlkv.store.steps() if step.kind == "base")
    assert (base.state().name, base.record()) == ("INTERRUPTED", None)


def test_one_step_in_the_foreground(mlkv: Shell, tiny: list[str]) -> None:
    assert "done" in mlkv("run", "corpus", *tiny)
    [corpus] = [step for step in mlkv.store.steps() if step.record()]
    assert corpus.kind == "corpus"
    assert f"{corpus.id} done" in mlkv("run", corpus.id)
    assert len(corpus.attempts()) == 1
    assert "16 steps of this kind are not done" in mlkv("run", "evaluate", *tiny, status=2)
    assert "all 1 steps of this kind are done" in mlkv("run", "corpus", *tiny, status=2)


def test_plain_hydra_multirun_goes_through_the_planner(copy: Shell, tiny: list[str]) -> None:
    before = attempts(copy.store)
    command = [sys.executable, "-m", "sweeps", "-m", *tiny, "--config-dir", str(TEST_CONF)]
    run = subprocess.run(
        command, cwd=copy.folder, env=copy.environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "27 done" in run.stdout
    assert attempts(copy.store) == before
