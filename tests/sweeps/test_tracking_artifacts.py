"""Checkpoints as artifacts of W&B, by choice: what is sent, from what it was made, and that no step fails for it."""

from __future__ import annotations

import base64
import hashlib
import math
from dataclasses import replace
from pathlib import Path

import pytest

from mlkv.files import Json
from sweeps.store.store import Store
from sweeps.tracking.checkpoints import Way, checkpoint_of
from sweeps.tracking.runs import step_run
from tests.support.read_back import present
from tests.support.shell import Shell
from tests.support.tracked import Planner, Stage, make_stage, training
from tests.support.wandb_server import WandbServer

FILES = {"config.json": b"{}", "model.safetensors": b"weights of %s", "sub folder/merges.txt": b"a b"}
LINE = ["layout=mqa", "sweep.baselines=[]", "evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]"]
MANIFEST = "manifest.json"
TRAINED = ("base", "convert", "uptrain")


def stage_of(planner: Planner, tiny: list[str], folder: Path, **config: str) -> Stage:
    return make_stage(planner, [*tiny, *LINE, "evaluate.axis=null"], folder, **config)


def leave_checkpoint(folder: Path, step: str) -> None:
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.replace(b"%s", step.encode()))


def run_all(stage: Stage, *kinds: str) -> None:
    """Act out the steps of these kinds, each leaving a checkpoint."""
    mirror = stage.mirror()
    for kind in kinds:
        step = stage.id(kind)
        acted = stage.begin(mirror, step)
        acted.log(training(1, 3))
        leave_checkpoint(acted.claim.attempt.out, step)
        parents = map(stage.store.step, spec_parents(stage.store, step))
        acted.end(inputs={parent.id: record.outputs for parent in parents if (record := parent.record())})
    mirror.close()
    assert {stage.store.step(stage.id(kind)).state().name for kind in kinds} == {"DONE"}


def spec_parents(store: Store, step: str) -> list[str]:
    spec = store.step(step).spec()
    return list(spec.parents.values()) if spec else []


def only_version(server: WandbServer, name: str) -> Json:
    (artifact,) = server.backend.versions(name)
    return artifact


def inputs_of(server: WandbServer, step: str) -> set[str]:
    return {server.backend.artifacts[id]["name"] for id in server.runs[step].inputs}


@pytest.mark.long
def test_references_name_every_file_with_its_digest_and_what_it_was_made_from(
    planner: Planner, tiny: list[str], tmp_path: Path, server: WandbServer
) -> None:
    stage = stage_of(planner, tiny, tmp_path / "a b", mode="online", checkpoints="reference")
    base, convert, uptrain = map(stage.id, TRAINED)
    stage.act(uptrain, training(1, 2), "interrupted")
    run_all(stage, *TRAINED)
    for step in (base, convert, uptrain):
        artifact = only_version(server, f"{step}-reference")
        assert (artifact["type"], artifact["id"] in server.runs[step].artifacts) == ("model", True)
        found = server.backend.manifest(artifact)
        assert set(found) == set(FILES)
        for name, entry in found.items():
            path = stage.store.step(step).out / name
            assert entry["ref"] == path.as_uri()
            assert base64.b64decode(entry["digest"]) == hashlib.md5(path.read_bytes()).digest()
        assert list(artifact["files"]) == [MANIFEST], "nothing is copied"
        assert server.runs[step].state == "finished"
    assert inputs_of(server, base) == set()
    assert inputs_of(server, convert) == {f"{base}-reference"}
    assert inputs_of(server, uptrain) == {f"{convert}-reference"}
    done = stage.sync()[1]
    assert {done[step].outcome for step in (base, convert, uptrain)} == {"already there"}
    assert not [log for step in (base, convert, uptrain) if (log := stage.log_of(step))]


@pytest.mark.long
def test_an_upload_that_is_refused_fails_no_step_and_sync_brings_it_with_its_inputs(
    planner: Planner, tiny: list[str], tmp_path: Path, server: WandbServer
) -> None:
    stage = stage_of(planner, tiny, tmp_path, mode="online", checkpoints="upload")
    base, convert = stage.id("base"), stage.id("convert")
    server.fail(path="/storage/-/", status=403, times=math.inf)
    run_all(stage, "base", "convert")
    for step in (base, convert):
        assert "its checkpoint as an artifact: " in stage.log_of(step)
        run = server.runs[step]
        assert (run.state, run.summary["state"], len(run.history)) == ("finished", "DONE", 3)
    failed, done = stage.sync()
    assert (done[base].outcome, done[convert].outcome, failed) == ("failed", "failed", 2)
    assert "artifact" in done[base].reason
    server.faults.clear()
    for outcome in ("sent", "already there"):
        done = stage.sync()[1]
        assert (done[base].outcome, done[convert].outcome) == (outcome, outcome)
    uploaded = only_version(server, convert)["files"]
    assert {name: uploaded[name.replace(" ", "%20")] for name in FILES} == {
        name: (stage.store.step(convert).out / name).read_bytes() for name in FILES
    }
    assert inputs_of(server, convert) == {base}
    assert len(server.runs[convert].history) == 3


@pytest.mark.long
def test_by_default_and_offline_no_checkpoint_leaves_the_store(
    planner: Planner, tiny: list[str], tmp_path: Path, server: WandbServer
) -> None:
    stage = stage_of(planner, tiny, tmp_path, mode="offline", checkpoints="upload")
    run_all(stage, "base")
    assert not server.requests
    assert not stage.log_of(stage.id("base"))
    asked, stage.config = stage.config, replace(stage.config, checkpoints="none")
    assert stage.sync()[1][stage.id("base")].outcome == "sent"
    assert not server.backend.artifacts
    stage.config = asked
    assert stage.sync()[1][stage.id("base")].outcome == "sent"
    assert only_version(server, stage.id("base"))["state"] == "COMMITTED"


def test_what_is_no_checkpoint_is_no_artifact(planner: Planner, tiny: list[str], tmp_path: Path) -> None:
    stage = stage_of(planner, tiny, tmp_path, mode="off", checkpoints="upload")
    stage.act(stage.id("corpus"), [])
    run_all(stage, "base", "convert")
    store = stage.store
    found = {
        kind: step_run(store, store.step(stage.id(kind)), stage.saved, stage.config).checkpoint
        for kind in ("corpus", "base", "convert", "uptrain")
    }
    assert [kind for kind, checkpoint in found.items() if checkpoint] == ["base", "convert"]
    base = store.step(stage.id("base"))
    ways: tuple[Way, ...] = ("reference", "upload")
    made = [present(checkpoint_of(store, base, base.record(), way)).name() for way in ways]
    assert len(set(made)) == 2, "W&B would take one for the other: their digests are equal"
    assert step_run(store, base, stage.saved).checkpoint is None
    (base.out / "model.safetensors").unlink()  # as of a step that was made elsewhere, unpacked without weights
    assert step_run(store, base, stage.saved, stage.config).checkpoint is None
    convert = step_run(store, store.step(stage.id("convert")), stage.saved, stage.config).checkpoint
    assert present(convert).inputs == ()


@pytest.mark.long
def test_a_real_sweep_has_its_checkpoints_logs_packages_and_its_end_in_w_and_b(
    mlkv: Shell, tiny: list[str], server: WandbServer
) -> None:
    """With what the worker itself does for it."""
    line = [*tiny, *LINE, "evaluate.axis=null", "measure.batch_sizes=[]", "tracking=online"]
    mlkv("sweep", *line, "tracking.checkpoints=upload", "tracking.alerts=end")
    saved = mlkv.store.sweep("tiny")
    by_kind = {planned.kind: id for id, planned in saved.plan.steps.items()}
    for kind in TRAINED:
        step = mlkv.store.step(by_kind[kind])
        uploaded = only_version(server, step.id)["files"]
        assert {
            name: hashlib.sha256(content).hexdigest() for name, content in uploaded.items() if name != MANIFEST
        } == {name: file.sha256 for name, file in present(step.record()).outputs.items()}
        assert f"torch=={present(step.record()).versions['torch'].partition('+')[0]}" in (
            server.runs[step.id].files["requirements.txt"].decode()
        )
    assert inputs_of(server, by_kind["uptrain"]) == {by_kind["convert"]}
    assert [each["title"] for each in server.backend.alerts] == ["sweep tiny has ended"]
    assert server.backend.alerts[0]["text"] == f"{len(saved.plan.steps)} DONE"
    assert mlkv("sync", "tiny").splitlines()[-1] == f"{len(server.runs)} already there"
