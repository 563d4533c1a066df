"""The runs of variants follow their steps: on this machine and on SLURM, whoever ends a step, however many at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slurm.local_cluster.cluster import LocalCluster
from sweeps.tracking import variants
from sweeps.tracking.read.files import read_directory
from sweeps.tracking.runs import variant_id
from sweeps.tracking.target import Target
from sweeps.tracking.variants import VariantRuns
from tests.support.shell import Shell
from tests.support.tracked import Planner, Stage, arrives, make_stage, positions, training
from tests.support.wandb_server import WandbServer

SMALL = ["layout=mqa", "sweep.baselines=[]", "evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]"]
SMALL += ["evaluate.axis=null", "measure.batch_sizes=[]"]
MQA = variant_id("tiny", "MQA-2")
TAGS = {"pocket", "even", "budget-2"}


def small_stage(planner: Planner, text_files: Path, folder: Path, mode: str) -> Stage:
    """One variant: corpus, base, convert, uptrain, evaluate."""
    return make_stage(planner, ["experiment=tiny", f"corpus.files=[{text_files}/*.txt]", *SMALL], folder, mode=mode)


@pytest.mark.slow
def test_a_variants_run_is_written_anew_as_each_step_ends(
    planner: Planner, text_files: Path, tmp_path: Path, server: WandbServer
) -> None:
    stage = small_stage(planner, text_files, tmp_path, "online")
    steps = list(stage.saved.plan.steps)
    mirror = stage.mirror()
    for count, step in enumerate(steps, 1):
        acted = stage.begin(mirror, step)
        acted.log(training(1, 8) if step.startswith("uptrain-") else [])
        acted.end(metrics=[{"metric": "bits_per_byte", "value": 2.5, "stderr": 0.1}])
        if count < len(steps):
            arrives(lambda: MQA in server.runs and server.runs[MQA].summary.get("steps_done") == count)  # noqa: B023
            assert server.runs[MQA].summary["state"] == "PENDING"
        if count == 1:  # what a person makes of a run is theirs, once all of the first write is there
            run = server.runs[MQA]
            arrives(lambda: run.state != "running" and set(run.shown.get("tags") or ()) == TAGS)  # noqa: B023
            run.shown.update(tags=["pocket", "for the paper"], displayName="ours", notes="look again")
    mirror.close()
    shown = server.runs[MQA].shown
    assert set(shown["tags"]) == TAGS | {"for the paper"}
    assert (shown["displayName"], shown["notes"]) == ("ours", "look again")
    directory = stage.store.tracking("tiny")
    assert directory.address() == f"{server.url}/tester/mlkv"
    assert not list(directory.runs.glob("run-*")), "they would be hollow"
    assert sorted(path.name for path in directory.runs.iterdir()) == ["address.json"]
    run = server.runs[MQA]
    assert (run.state, run.summary["state"], run.summary["steps_done"]) == ("finished", "DONE", len(steps))
    assert positions(server, MQA) == list(range(1, 9))
    assert {each.outcome for each in stage.sync()[1].values()} == {"already there"}


@pytest.mark.long(minutes=2)
def test_offline_one_copy_of_a_variant_is_kept_and_it_is_the_newest(
    planner: Planner, text_files: Path, tmp_path: Path, server: WandbServer
) -> None:
    stage = small_stage(planner, text_files, tmp_path, "offline")
    steps = list(stage.saved.plan.steps)
    for half in (steps[:3], steps[3:]):
        mirror = stage.mirror()
        for step in half:
            stage.begin(mirror, step).end()
        mirror.close()
    directory = stage.store.tracking("tiny").runs
    assert len(list(directory.glob(f"offline-run-*-{MQA}*"))) == 1
    (run,) = (run for run in read_directory(directory) if run.id == MQA)
    assert (run.summary["state"], run.summary["steps_done"]) == ("DONE", 5)
    assert not server.requests


@pytest.mark.slow
def test_sync_renews_a_variant_that_is_not_done_and_then_leaves_it(
    planner: Planner, text_files: Path, tmp_path: Path, server: WandbServer
) -> None:
    stage = small_stage(planner, text_files, tmp_path, "online")
    stage.act(stage.id("corpus"), [])
    server.runs[MQA].summary = {"state": "PENDING", "steps_done": 0}
    assert stage.sync()[1][MQA].outcome == "sent"
    assert server.runs[MQA].summary["steps_done"] == 1
    assert stage.sync()[1][MQA].outcome == "already there"


@pytest.mark.long
def test_workers_that_end_steps_at_once_leave_one_whole_run(
    planner: Planner, text_files: Path, tmp_path: Path, server: WandbServer
) -> None:
    stage = small_stage(planner, text_files, tmp_path, "online")
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda step: stage.act(step, training(1, 5)), stage.saved.plan.steps))
    run = server.runs[MQA]
    assert (run.summary["state"], run.summary["steps_done"], run.state) == ("DONE", 5, "finished")
    assert positions(server, MQA) == list(range(1, 6))
    assert {each.outcome for each in stage.sync()[1].values()} == {"already there"}


def test_a_writer_that_was_overtaken_writes_again(
    planner: Planner, text_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first writes, the last step ends: what it has written is no longer so."""
    stage = small_stage(planner, text_files, tmp_path, "off")
    *before, last = stage.saved.plan.steps
    for step in before:
        stage.act(step, [])
    written: list[int] = []

    def write(run: object, *_: object) -> None:
        if not written:
            stage.act(last, [])
        written.append(run.summary["steps_done"])  # type: ignore[attr-defined]

    monkeypatch.setattr("sweeps.tracking.mirror.write", write)
    runs = VariantRuns(stage.store, Target(stage.config, "tiny"))
    runs.ended(before[-1])
    runs.write_next()
    assert written == [4, 5]
    assert not runs.waiting


def test_what_many_share_writes_only_the_variants_that_it_ends(
    planner: Planner, tiny: list[str], tmp_path: Path
) -> None:
    stage = make_stage(planner, [*tiny, "sweep.grid={layout.kv_layers: [1, 2], layout.kv_heads: [1, 2]}",
                                 "sweep.zip=[]"], tmp_path, mode="off")  # fmt: skip
    assert len(stage.saved.variants) > variants.MAX_SHARED_VARIANTS
    runs = VariantRuns(stage.store, Target(stage.config, "tiny"))
    stage.act(stage.id("corpus"), [])
    runs.ended(stage.id("corpus"))
    assert not runs.waiting
    stage.act(stage.id("base"), [], "failed")
    runs.ended(stage.id("base"))
    assert len(runs._waiting) == len(stage.saved.variants)


@pytest.mark.long
def test_a_step_run_by_itself_is_mirrored_as_its_sweeps_are(mlkv: Shell, tiny: list[str], server: WandbServer) -> None:
    mlkv("run", "corpus", *tiny, *SMALL, "tracking=online")
    corpus, base = (
        next(id for id in mlkv.store.sweep("tiny").plan.steps if id.startswith(kind)) for kind in ("corpus-", "base-")
    )
    assert server.runs[corpus].state == "finished"
    assert server.runs[MQA].summary["steps_done"] == 1
    mlkv("run", base)
    assert positions(server, base) == list(range(1, 7))
    assert server.runs[MQA].summary["steps_done"] == 2


@pytest.mark.long
def test_on_slurm_every_run_is_there_when_the_last_job_ends(
    mlkv: Shell, tiny: list[str], server: WandbServer, cluster: LocalCluster
) -> None:
    line = [*tiny, "sweep.baselines=[mha]", "evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]"]
    line += ["evaluate.axis=null", "measure.batch_sizes=[]", "cluster=slurm_local"]
    mlkv("sweep", *line, "tracking=online")
    mlkv("status", "tiny", "--watch")
    saved = mlkv.store.sweep("tiny")
    ids = {*saved.plan.steps, *(variant_id("tiny", row.variant) for row in saved.variants)}
    arrives(lambda: {id for id, run in server.runs.items() if run.summary.get("state") == "DONE"} == ids)
    printed = mlkv("sweep", *line, "tracking=online", "name=hits")
    assert "0 jobs submitted" in printed
    assert f"W&B (online): {len(saved.variants)} sent" in printed
