"""`mlkv sync` and the runs of variants: what the store has arrives, once, whatever went wrong before."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sweeps.cli.wandb import addresses
from sweeps.steps.registry import axis_of
from sweeps.store.typed_json import as_json
from sweeps.tracking.runs import variant_id
from sweeps.tracking.sync import SyncResult, sync_files, sync_sweep
from sweeps.tracking.target import Target, TrackingConfig
from tests.support.read_back import present
from tests.support.records import record_of, save_sweep
from tests.support.refusing import without_internet
from tests.support.shell import ROOT, Shell
from tests.support.tracked import Planner, Stage, make_stage, positions, record, training, use
from tests.support.wandb_server import WandbServer

SMALL = ["layout=mqa", "evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]"]


def done_stage(planner: Planner, text_files: Path, folder: Path) -> Stage:
    """A small sweep that was run without tracking, all its steps done."""
    line = ["experiment=tiny", f"corpus.files=[{text_files}/*.txt]", *SMALL, "sweep.baselines=[mha]"]
    stage = make_stage(planner, line, folder)
    for step, planned in stage.saved.plan.steps.items():
        finish(stage, step, planned.kind)
    return stage


@pytest.fixture
def stage(planner: Planner, text_files: Path, tmp_path: Path) -> Stage:
    return done_stage(planner, text_files, tmp_path)


@dataclass(frozen=True)
class Sent:
    """A sweep of nothing but hits, sent; a test that changes the server sends again."""

    stage: Stage
    server: WandbServer
    done: dict[str, SyncResult]


@pytest.fixture(scope="module")
def sent(planner: Planner, text_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sent]:
    with pytest.MonkeyPatch.context() as patch, WandbServer() as server:
        use(server, patch)
        stage = done_stage(planner, text_files, tmp_path_factory.mktemp("sent"))
        yield Sent(stage, server, stage.sync()[1])


def finish(stage: Stage, step: str, kind: str) -> None:
    claim = stage.store.step(step).claim()
    assert claim
    task = present(stage.store.step(step).spec()).slice.get("task")
    scores = {
        "evaluate": {"metric": "bits_per_byte" if task == "bits_per_byte" else "acc", "value": 0.5, "stderr": 0.1}
    }
    cells = [{"metric": "cache_bytes", "value": 64.0 * b, "batch": b, "context": 32} for b in (8, 1)]
    if kind == "uptrain":
        claim.attempt.metrics_file.write_text("".join(training(1, 12)))
    assert claim.step.publish(
        claim, record_of(claim, record(cells if kind == "measure" else [scores.get(kind, {"metric": "x", "value": 1})]))
    )
    claim.attempt.finish("done", "", 0)
    claim.release()


def test_sync_leaves_no_folders_and_the_addresses_are_known(sent: Sent) -> None:
    """Hollow ones would show as runs in `mlkv dashboard`."""
    directory = sent.stage.store.tracking("tiny")
    assert [path.name for path in directory.runs.iterdir()] == ["address.json"]
    store, saved = sent.stage.store, sent.stage.saved
    online = replace(saved, plan=replace(saved.plan, tracking={"mode": "online", "project": "mlkv"}))
    project = f"{sent.server.url}/tester/mlkv"
    assert addresses(store, online) == [f"W&B project: {project}", f"W&B group: {project}/groups/tiny/workspace"]
    assert addresses(store, saved) == [], "it is tracked offline"
    elsewhere = replace(saved, plan=replace(saved.plan, tracking={"mode": "online", "project": "other"}))
    assert addresses(store, elsewhere) == []


def test_a_sweep_of_nothing_but_hits_has_a_run_for_every_variant(sent: Sent) -> None:
    stage, server = sent.stage, sent.server
    assert {each.outcome for each in sent.done.values()} == {"sent"}
    variants = [run for run in server.runs.values() if run.shown["jobType"] == "variant"]
    assert {run.shown["groupName"] for run in variants} == {"tiny"}
    assert [run.shown["displayName"] for run in variants] == [row.variant for row in stage.saved.variants]
    run = server.runs[variant_id("tiny", "MQA-2")]
    (planned,) = (row for row in stage.saved.variants if row.variant == "MQA-2")
    assert set(run.shown["tags"]) == {"pocket", "even", "budget-2"}
    assert run.value("kv_bytes_per_token") == as_json(planned)["kv_bytes_per_token"]
    assert run.value("uptrain") == planned.config["uptrain"]
    assert run.value("steps") == as_json(planned.steps)
    assert (run.summary.get("accuracy"), run.summary["quality"]) == (None, 0.5)
    assert run.summary["steps_done"] == run.summary["steps_total"] == 6
    curve = [row["train/global_step"] for row in run.history if "train/loss" in row]
    assert curve == list(range(1, 13))
    memory = [(row["memory/batch"], row["memory/cache_bytes"]) for row in run.history if "memory/batch" in row]
    assert memory == [(1, 64.0), (8, 512.0)]


def test_sending_again_sends_nothing(sent: Sent) -> None:
    server, before = sent.server, len(sent.server.requests)
    failed, done = sent.stage.sync()
    assert (failed, {each.outcome for each in done.values()}) == (0, {"already there"})
    assert set(Counter(server.requests[before:])) == {"POST /graphql"}
    assert len(server.requests) - before <= 3


def test_half_of_it_arrived_and_the_rest_follows_without_a_row_twice(sent: Sent) -> None:
    stage, server = sent.stage, sent.server
    step = stage.id("uptrain")
    run = server.runs[step]
    run.lines["wandb-history.jsonl"] = run.lines["wandb-history.jsonl"][:5]
    run.summary = {}
    del server.backend.runs["tester", "mlkv", stage.id("base")]
    failed, done = stage.sync()
    again = {each.run for each in done.values() if each.outcome == "sent"}
    assert (failed, again) == (0, {step, stage.id("base")})
    assert positions(server, step) == list(range(1, 13))


@pytest.mark.slow
def test_a_sync_that_is_killed_is_taken_up_again(stage: Stage, server: WandbServer) -> None:
    target = Target(replace(stage.config, mode="online"), stage.saved.name)
    assert [each.outcome for each in sync_sweep(stage.store, target, timeout=3.0)][-1:] == ["failed"]
    assert stage.sync()[0] == 0
    rows = [tuple(positions(server, id)) for id in server.runs if id.startswith("uptrain-")]
    assert set(rows) == {tuple(range(1, 13))}


@pytest.mark.long(minutes=2)
def test_a_server_that_says_wait_gets_everything_all_the_same(stage: Stage, server: WandbServer) -> None:
    waited = server.fail(status=429, retry_after=0.1, every=6, times=40)
    assert stage.sync()[0] == 0
    assert waited.done > 3


@pytest.mark.slow
def test_what_cannot_be_sent_is_told_for_every_run(stage: Stage, server: WandbServer) -> None:
    server.stop()
    failed, done = stage.sync()
    assert failed == len(done) == len(stage.saved.plan.steps) + len(stage.saved.variants)
    assert all(each.reason for each in done.values())


# Directories


@pytest.mark.slow
def test_a_directory_of_fragments_is_sent_as_one_run(stage: Stage, server: WandbServer, tmp_path: Path) -> None:
    code = """if True:
        import wandb
        for first, last in ((0, 6), (4, 9)):
            run = wandb.init(mode="offline", project="theirs", entity="tester", id="theirs", name="their run", dir=".")
            for k in range(first, last):
                run.log({"train/global_step": k, "loss": 1 / (k + 1)})
            run.summary["best"] = first
            run.finish()
    """
    # A service that another test's client started would write where that one runs.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True)
    for expected in ("sent", "already there"):
        (done,) = sync_files(tmp_path / "wandb", Target(TrackingConfig(mode="online")))
        assert (done.run, done.outcome) == ("theirs", expected), done.reason
    run = server.backend.run("theirs", "theirs")
    assert [row["train/global_step"] for row in run.history] == list(range(9))
    assert (run.summary["best"], run.state, run.shown["displayName"]) == (4, "finished", "their run")


@pytest.mark.long
def test_our_own_offline_files_and_the_store_send_the_same_runs(stage: Stage, server: WandbServer) -> None:
    assert not [e for e in sync_sweep(stage.store, Target(stage.config, "tiny")) if e.outcome != "written"]
    assert {e.outcome for e in sync_sweep(stage.store, Target(stage.config, "tiny"))} == {"already there"}
    files = stage.store.tracking("tiny").runs
    sent = Counter(each.outcome for each in sync_files(files, Target(TrackingConfig(mode="online"))))
    assert sent == {"sent": len(stage.saved.plan.steps) + len(stage.saved.variants)}
    assert {each.outcome for each in stage.sync()[1].values()} == {"already there"}


# Offline


@pytest.mark.long
def test_offline_all_is_written_where_no_internet_socket_can_be_had(stage: Stage, server: WandbServer) -> None:
    """The kernel gives none out, to whatever process; everything is written all the same."""
    environment = {**os.environ, **Target(stage.config, "tiny").environment()}
    command = [*without_internet(), "-m", "sweeps.tracking.sync", "--store", str(stage.store.root)]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count('"written"') == len(stage.saved.plan.steps) + len(stage.saved.variants)
    assert not server.requests


# The command line, with steps that really run


@pytest.mark.long
def test_a_sweep_online_offline_and_its_sync(tiny: list[str], server: WandbServer, tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    line = [*tiny, *SMALL, "sweep.baselines=[]", "measure.batch_sizes=[]"]
    printed = shell("sweep", *line, "tracking=online")
    lines = [line for line in printed.splitlines() if line.startswith("W&B")]
    assert lines[2] == "W&B (online): 6 already there"
    assert [line.partition(": ")[0] for line in lines[:2]] == ["W&B project", "W&B group"]
    assert lines[3:] == lines[:2], "the addresses once more, where the sweep's lines end"
    assert len(server.runs) == 6
    assert {run.state for run in server.runs.values()} == {"finished"}
    base = next(step for step in shell.store.steps() if step.kind == "base")
    assert (
        positions(server, base.id)
        == [position for position, _ in base.history(axis_of(base.kind))]
        == list(range(1, 7))
    )
    assert any(run.events for run in server.runs.values()), "the computing process was watched"

    printed = shell("sweep", *line, "tracking=offline", "name=again")
    assert "W&B (offline): 6 written" in printed
    assert "6 sent" in shell("sync", "again"), "the runs of its steps have its tag now too"
    assert "6 already there" in shell("sync", "again")
    shell("gather", "again", "-o", "store.csv")
    for source in ("offline", "api"):
        shell("gather", "again", f"source={source}", "-o", f"{source}.csv")
        assert (tmp_path / f"{source}.csv").read_text() == (tmp_path / "store.csv").read_text()


def test_a_process_that_crashes_is_not_taken_for_nothing_to_send(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    save_sweep(shell.store, "a", {"steps": {}, "accuracy": [], "axis": None})
    (shell.store.root / "steps").mkdir()
    for place in (tmp_path, tmp_path / "on_the_path"):
        place.mkdir(exist_ok=True)
        (place / "wandb.py").write_text("raise RuntimeError('not W&B')")
    environment = {**shell.environment(), "WANDB_MODE": "", "WANDB_BASE_URL": "http://127.0.0.1:9"}

    def sync(*path: Path) -> tuple[int, str]:
        paths = os.pathsep.join(map(str, (ROOT, *path)))
        command = [sys.executable, "-m", "sweeps.cli", "sync", "a"]
        run = subprocess.run(
            command, cwd=tmp_path, env={**environment, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
        )
        return run.returncode, run.stdout + run.stderr

    assert sync() == (0, "nothing to upload\n"), "the working directory is not on the path of the process"
    status, printed = sync(tmp_path / "on_the_path")
    assert status == 1
    assert printed.splitlines() == [
        "failed:  the other runs: the process that uploads ended early: RuntimeError: not W&B",
        "1 failed",
    ]
