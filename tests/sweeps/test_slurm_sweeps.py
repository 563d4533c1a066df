"""Sweeps through a real SLURM, and everything that can go wrong there. Faults overlap on one cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import eventually
from tests_support import ROOT, Shell

from slurm.local_cluster.cluster import LocalCluster
from slurm.local_cluster.daemons import end, listeners
from sweeps.store import StepDir, Store

pytestmark = pytest.mark.slow

SMALL = ["layout=mqa", "sweep.baselines=[]", "evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]"]
SMALL += ["evaluate.axis=null", "measure.batch_sizes=[]"]
SLURM = ["cluster=slurm_local"]
STALE_SECONDS = "5"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims of lost nodes are taken over soon."""
    monkeypatch.setenv("MLKV_STALE_SECONDS", STALE_SECONDS)


def attempts(store: Store) -> Counter[str]:
    return Counter({step.id: len(step.attempts()) for step in store.steps()})


def the(store: Store, kind: str) -> StepDir:
    (found,) = (step for step in store.steps() if step.kind == kind)
    return found


def states(store: Store) -> Counter[str]:
    return Counter(step.state().name for step in store.steps())


def all_done(store: Store) -> Callable[[], bool]:
    return lambda: set(states(store)) == {"DONE"}


def queue_is_empty(cluster: LocalCluster) -> bool:
    return not cluster.run("squeue", "--noheader", "--format=%i").strip()


def test_a_sweep_is_submitted_left_and_done_as_on_this_machine(
    mlkv: Shell, tiny: list[str], cluster: LocalCluster
) -> None:
    assert "7 jobs submitted" in mlkv("sweep", *tiny, *SLURM)
    assert "waits for" in mlkv("status", "tiny"), "whether or not SLURM has looked at the job yet"
    assert "waits for" in mlkv("why", "tiny", "MQA-2")
    watched = mlkv("status", "tiny", "--watch")
    assert watched.rstrip().endswith("27 done")
    assert "0 jobs submitted" in mlkv("sweep", *tiny, *SLURM)
    before = attempts(mlkv.store)
    assert "27 done" in mlkv("sweep", *tiny, "cluster.slots=1")
    assert attempts(mlkv.store) == before, "this machine has nothing left to do"
    assert set(before.values()) == {1}
    environments = [attempt.environment() or {} for step in mlkv.store.steps() for attempt in step.attempts()]
    assert {environment["host"] for environment in environments} <= {"n1", "n2", "n3", "n4"}
    assert all(environment["job"] for environment in environments)


# Faults


@dataclass(frozen=True)
class Fault:
    """A store of its own, in which the corpus and the base are done, and a sweep of one uptraining."""

    name: str
    shell: Shell
    line: list[str]
    cluster: LocalCluster

    @property
    def step(self) -> StepDir:
        return the(self.shell.store, "uptrain")

    def submit(self) -> None:
        printed = self.shell("sweep", *self.line)
        assert "1 jobs submitted" in printed, printed

    def reached(self, number: int) -> bool:
        state = self.step.state()
        return state.name == "RUNNING" and (state.progress or {}).get("step", 0) >= number

    def job(self) -> str:
        """The id of the job that the latest attempt runs in."""
        last = self.step.attempt()
        assert last is not None
        return str((last.environment() or {})["job"])

    def jobs(self) -> set[str]:
        """The ids of the jobs that attempts ran in."""
        return {str((attempt.environment() or {})["job"]) for attempt in self.step.attempts()}

    def supervisor(self) -> psutil.Process:
        return psutil.Process(json.loads(self.step.claim_file.read_text())["pid"])

    def kill_supervisor(self) -> None:
        self.supervisor().kill()

    def lose_node(self) -> None:
        """The node goes down with all that runs on it."""
        supervisor = self.supervisor()
        ours = {name: supervisor.environ()[name] for name in ("SLURM_CONF", "SLURM_JOB_ID", "SLURMD_NODENAME")}
        self.cluster.daemon(ours["SLURMD_NODENAME"]).stop(kill=True)
        for step_daemon in listeners(self.cluster.state / "spool" / ours["SLURMD_NODENAME"]):
            end(step_daemon, 0.0)
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if ours.items() <= process.environ().items():
                    process.kill()

    def kill_child(self) -> None:
        (child,) = (p for p in self.supervisor().children() if "sweeps.child" in p.cmdline())
        child.kill()

    def weights(self) -> Any:
        return (self.step.record() or {})["outputs"]["model.safetensors"]["sha256"]


STEPS = 240
UPTRAIN = [f"uptrain.steps={STEPS}", "uptrain.save_every=20", "uptrain.log_every=5"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, text_files: Path) -> Shell:
    """The uptraining of the fault tests, run on this machine."""
    shell = Shell(tmp_path_factory.mktemp("undisturbed"))
    shell("sweep", "experiment=tiny", f"corpus.files=[{text_files}/*.txt]", *SMALL, *UPTRAIN, "cluster.slots=1")
    return shell


@dataclass(frozen=True)
class CopiedShell(Shell):
    """`mlkv` from a copy of the project, which is edited while jobs wait."""

    project: Path

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": str(self.project)}


def copy_of_project(target: Path) -> Path:
    for package in ("mlkv", "sweeps", "slurm", "analysis", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def vandalise(project: Path) -> None:
    """What a user may do to the checkout while jobs queue and between their runs."""
    for source in (project / "mlkv").glob("*.py"):
        source.write_text("raise SystemExit('this is not what was submitted')\n")
    for config in (project / "conf").rglob("*.yaml"):
        config.write_text("nonsense: true\n")


def faulty(name: str, folder: Path, undisturbed: Shell, tiny: list[str], cluster: LocalCluster, *more: str) -> Fault:
    home = folder / name
    shutil.copytree(
        undisturbed.folder / "store", home / "store", ignore=shutil.ignore_patterns("sweeps", "queue", "code")
    )
    for kind in ("uptrain", "evaluate"):
        shutil.rmtree(home / "store" / "steps" / kind)
    shell = CopiedShell(home, copy_of_project(home / "project"))
    fault = Fault(name, shell, [*tiny, *SMALL, *UPTRAIN, *SLURM, *more], cluster)
    fault.submit()
    vandalise(home / "project")
    return Fault(name, Shell(home), fault.line, cluster)


def on(node: str) -> str:
    return f"cluster.constraint={node}"


@pytest.mark.long
def test_whatever_happens_to_a_job_its_step_ends_as_if_nothing_had(
    tiny: list[str], undisturbed: Shell, cluster: LocalCluster, tmp_path: Path
) -> None:
    def fault(name: str, *more: str) -> Fault:
        return faulty(name, tmp_path, undisturbed, tiny, cluster, *more)

    wanted = (the(undisturbed.store, "uptrain").record() or {})["outputs"]["model.safetensors"]["sha256"]
    try:
        # Two at a time, as many as this machine's cores: each is disturbed once it is well under way.
        child, cancelled = fault("child", on("n1")), fault("cancelled", on("n1"))
        wait(lambda: child.reached(25) and cancelled.step.attempt() is not None, child)
        child.kill_child()
        wait(lambda: cancelled.reached(25), cancelled)
        cluster.run("scancel", cancelled.job())
        wait(lambda: cancelled.step.state().name == "INTERRUPTED", cancelled)
        wait(lambda: "CANCELLED" in cancelled.shell("why", "tiny", "MQA-2"), cancelled)
        assert "SIGTERM" in cancelled.shell("why", "tiny", "MQA-2")

        preempted, supervisor = (
            fault("preempted", on("n2"), "cluster.resources.uptrain.cpus=8"),
            fault("supervisor", on("n1")),
        )
        wait(lambda: preempted.reached(5), preempted)
        urgent = ["--partition=urgent", "--constraint=n2", "--cpus-per-task=8", "--wrap=true", "--output=/dev/null"]
        cluster.run("sbatch", *urgent)
        wait(lambda: supervisor.reached(25), supervisor)
        supervisor.kill_supervisor()
        cancelled.submit()

        wait(lambda: cancelled.reached(35) and preempted.step.state().name == "RUNNING", cancelled, preempted)
        cluster.daemon("slurmctld").stop()
        assert "the queue does not answer" in cancelled.shell("status", "tiny")
        cluster.up()

        warned = fault("warned", on("n3"))
        wait(lambda: warned.reached(25), warned)
        cluster.run("scancel", "--signal=USR2", warned.job())
        wait(lambda: preempted.step.record() or preempted.reached(150), preempted)
        cluster.run("sbatch", *urgent)

        faults = [child, cancelled, preempted, supervisor, warned]
        wait(lambda: all(all_done(f.shell.store)() for f in faults), *faults, seconds=150)
        for f in faults:
            assert f.weights() == wanted, f.name
            assert nothing_was_repeated(f), f.name
        assert supervisor.jobs() == {supervisor.job()}, "the job itself went back into the queue"
        runs = {f.name: len(f.step.attempts()) for f in faults}
        assert runs.pop("preempted") in (2, 3), "once early, and once late where there was time"
        assert set(runs.values()) == {2}
    finally:
        cluster.run("scancel", "--user", os.environ.get("USER", "root"), check=False)
        cluster.up()


def wait(condition: Callable[[], object], *faults: Fault, seconds: float = 60.0) -> None:
    told = {f.name: f.step.state() for f in faults}
    assert eventually(lambda: bool(condition()), seconds, every=0.1), f"before: {told}; now: " + "; ".join(
        f"{f.name}: {f.step.state()}" for f in faults
    )


def nothing_was_repeated(fault: Fault) -> bool:
    """At most the work since the last checkpoint was done again, and no finished step was begun again."""
    store = fault.shell.store
    finished = all(count == 1 for id, count in attempts(store).items() if id != fault.step.id)
    rows = [[row["step"] for row in attempt.metrics() if "loss" in row] for attempt in fault.step.attempts()]
    began = [steps[0] for steps in rows if steps]
    ended = [steps[-1] for steps in rows if steps]
    return finished and all(later > earlier - 25 for later, earlier in zip(began[1:], ended[:-1], strict=True))


def test_a_failed_parent_blocks_its_descendants_alone_and_is_failed_in_the_queue(
    undisturbed: Shell, tiny: list[str], cluster: LocalCluster, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.folder, tmp_path, dirs_exist_ok=True)
    mlkv = Shell(tmp_path)
    line = [*tiny, *SMALL, *SLURM, "name=wild", "uptrain.steps=4", "uptrain.lr=1e-3,1e30"]
    before = attempts(mlkv.store)
    mlkv("sweep", *line)
    told = mlkv("status", "wild", "--watch", status=1)
    assert "1 failed, 1 blocked" in told
    assert "training diverged" in mlkv("why", "wild", "MQA-2 uptrain.lr=1e+30")
    failed = next(step for step in mlkv.store.steps() if step.state().name == "FAILED")
    job = ((failed.attempts()[0].environment()) or {})["job"]
    assert eventually(lambda: "JobState=FAILED" in cluster.run("scontrol", "show", "job", job), 20, 0.2)
    assert "ExitCode=1:0" in cluster.run("scontrol", "show", "job", job)
    again = attempts(mlkv.store)
    assert sorted((again - before).values()) == [1, 1, 1], "the failed one, its sibling, and what descends from that"
    assert "0 jobs submitted" in mlkv("sweep", *line)
    assert "1 jobs submitted" in mlkv("retry", "wild")
    mlkv("cancel", "wild", "MQA-2 uptrain.lr=1e+30")
    assert eventually(lambda: queue_is_empty(cluster), 30, 0.2)


@pytest.mark.long
def test_four_processes_on_two_nodes_train_as_one_does(
    undisturbed: Shell, tiny: list[str], cluster: LocalCluster, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.folder, tmp_path, dirs_exist_ok=True)
    mlkv = Shell(tmp_path)
    line = [*tiny, *SMALL, "uptrain.steps=6", "uptrain.precision=fp32", "name=wide", "evaluate.tasks=[]"]
    mlkv("sweep", *line)
    alone = newest(mlkv.store, "uptrain")
    losses = [row["loss"] for row in alone.metrics() if "loss" in row]
    shutil.rmtree(alone.path)
    group = ["cluster.resources.uptrain.nodes=2", "cluster.resources.uptrain.tasks_per_node=2"]
    mlkv("sweep", *line, *SLURM, *group)
    assert "done" in mlkv("status", "wide", "--watch")
    together = mlkv.store.step(alone.id)
    record = together.record()
    assert record is not None, "the same step, whoever trains it"
    assert record["facts"]["devices"] == 4
    assert [row["loss"] for row in together.metrics() if "loss" in row] == pytest.approx(losses, rel=1e-4)
    assert [attempt.number for attempt in together.attempts()] == [1]
    shown = cluster.run("scontrol", "show", "job", (together.attempts()[0].environment() or {})["job"])
    assert "NumNodes=2" in shown
    assert {path.name for path in together.attempts()[0].path.glob("rank-*.log")} == {
        f"rank-{i}.log" for i in (1, 2, 3)
    }


def newest(store: Store, kind: str) -> StepDir:
    return max((s for s in store.steps() if s.kind == kind), key=lambda s: s.path.stat().st_mtime)


HELD = "+cluster.extra={hold:true}"


def test_two_hundred_variants_are_queued_once_and_steered(mlkv: Shell, tiny: list[str], cluster: LocalCluster) -> None:
    rates = ",".join(f"{i}e-6" for i in range(1, 201))
    line = [*tiny, *SMALL, *SLURM, HELD, f"uptrain.lr={rates}"]
    line += ["evaluate.tasks=[bits_per_byte,heldout_cloze,heldout_choice2,heldout_choice4]"]
    assert "202 jobs submitted" in mlkv("sweep", *line)
    assert len(mlkv.store.sweep("tiny").plan["steps"]) == 1003
    assert "0 jobs submitted" in mlkv("sweep", *line, "cluster.max_running=3")
    shown = cluster.run("scontrol", "show", "job")
    assert shown.count("ArrayTaskThrottle=3") >= 4, "arrays of 64 at most"
    assert "cancelled 1 jobs" in mlkv("cancel", "tiny", "MQA-2 uptrain.lr=1e-06")
    assert "LOST" in mlkv("why", "tiny", "MQA-2 uptrain.lr=1e-06"), "SLURM keeps no trace of a held task"
    assert "1 jobs submitted" in mlkv("sweep", *line)
    assert "cancelled 202 jobs" in mlkv("cancel", "tiny")
    assert eventually(lambda: queue_is_empty(cluster), 30, 0.2)


def fake_sbatch(folder: Path, script: str) -> None:
    """An sbatch that does this to its launcher, but answers `--test-only` as the real one."""
    folder.mkdir()
    real = f'[ "$1" != --test-only ] || exec {shutil.which("sbatch")} "$@"'
    (folder / "sbatch").write_text(f"#!/bin/sh\n{real}\n{script}\n")
    (folder / "sbatch").chmod(0o755)


@pytest.mark.parametrize(
    ("script", "left"), [("kill -9 $PPID", 3), ('"$REAL_SBATCH" "$@" > /dev/null; kill -9 $PPID', 2)]
)
def test_a_launcher_killed_around_sbatch_queues_nothing_twice(
    script: str, left: int, mlkv: Shell, tiny: list[str], cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sbatch(mlkv.folder / "bin", script)
    line = ["sweep", *tiny, *SMALL, *SLURM, HELD]
    with monkeypatch.context() as patch:
        patch.setenv("REAL_SBATCH", str(shutil.which("sbatch")))
        patch.setenv("PATH", str(mlkv.folder / "bin"), prepend=":")
        mlkv(*line, status=-9)
    assert f"{left + 2} lost" in mlkv("status", "tiny"), "uptraining carries its conversion and its evaluation"
    assert f"{left} jobs submitted" in mlkv(*line)
    assert len(cluster.run("squeue", "--noheader", "--array", "--format=%i").split()) == 3
    mlkv("cancel", "tiny")
    assert eventually(lambda: queue_is_empty(cluster), 30, 0.2)


NO_NETWORK = """
import socket

def refuse(self, address):
    if self.family != socket.AF_UNIX:
        raise OSError(f"the test allows no connection to {address}")

socket.socket.connect = refuse
"""


def test_jobs_need_no_network_and_a_hub_corpus_is_made_where_there_is_one(
    mlkv: Shell, tiny: list[str], text_files: Path, cluster: LocalCluster
) -> None:
    data = mlkv.folder / "data"
    data.mkdir()
    rows = [
        json.dumps({"text": path.read_text()[i : i + 500]}) for path in text_files.iterdir() for i in (0, 500, 1000)
    ]
    (data / "train.jsonl").write_text("\n".join(rows))
    (mlkv.folder / "hook").mkdir()
    (mlkv.folder / "hook" / "sitecustomize.py").write_text(NO_NETWORK)
    setup = f"cluster.setup=['export PYTHONPATH={mlkv.folder}/hook:$PYTHONPATH']"
    line = [*tiny, *SMALL, *SLURM, setup, "cluster.offline=true", "corpus.source=hf", f"corpus.dataset={data}"]
    assert "2 jobs submitted" in mlkv("sweep", *line)
    assert "done" in mlkv("status", "tiny", "--watch")
    assert set(states(mlkv.store)) == {"DONE"}
    made = {step.kind: ((step.record() or {})["host"]) for step in mlkv.store.steps()}
    assert made["corpus"] not in ("n1", "n2", "n3", "n4")
    assert made["uptrain"] in ("n1", "n2", "n3", "n4")


def test_two_launchers_at_once_run_nothing_twice(
    undisturbed: Shell, tiny: list[str], cluster: LocalCluster, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.folder, tmp_path, dirs_exist_ok=True)
    mlkv = Shell(tmp_path)
    line = ["sweep", *tiny, *SMALL, *SLURM, "uptrain.steps=4"]
    launchers = [mlkv.start(*line), mlkv.start(*line, "name=other")]
    for launcher in launchers:
        out, err = launcher.communicate(timeout=60)
        assert launcher.returncode == 0, out + err
    assert eventually(lambda: queue_is_empty(cluster), 60, 0.2)
    assert all_done(mlkv.store)()
    assert set(attempts(mlkv.store).values()) == {1}


# What takes minutes, or needs to mount: `make test-long`


@pytest.mark.long
def test_a_step_longer_than_its_time_limit_goes_on_in_the_next_run_of_its_job(
    undisturbed: Shell, tiny: list[str], cluster: LocalCluster, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.folder, tmp_path, dirs_exist_ok=True)
    mlkv = Shell(tmp_path)
    line = [*tiny, *SMALL, *SLURM, "uptrain.steps=500", "name=long", "cluster.time=1", "cluster.warning_seconds=30"]
    mlkv("sweep", *line)
    assert eventually(lambda: newest(mlkv.store, "uptrain").record() is not None, 500, 1.0)
    step = newest(mlkv.store, "uptrain")
    reasons = [(attempt.exit() or {})["reason"] for attempt in step.attempts()]
    assert len(reasons) > 1
    assert all("SIGUSR2" in reason for reason in reasons[:-1])
    jobs = {(attempt.environment() or {})["job"] for attempt in step.attempts()}
    assert len(jobs) == 1, "the job itself went back into the queue"


@pytest.mark.long
def test_a_step_on_a_node_that_goes_down_is_taken_over_by_another(
    undisturbed: Shell, tiny: list[str], cluster: LocalCluster, tmp_path: Path
) -> None:
    wanted = (the(undisturbed.store, "uptrain").record() or {})["outputs"]["model.safetensors"]["sha256"]
    lost = faulty("lost", tmp_path, undisturbed, tiny, cluster, on("n3|n4"))
    try:
        wait(lambda: lost.reached(25), lost)
        lost.lose_node()
        wait(all_done(lost.shell.store), lost, seconds=150)
    finally:
        cluster.up()
    hosts = [(attempt.environment() or {})["host"] for attempt in lost.step.attempts()]
    assert sorted(hosts) == ["n3", "n4"]
    assert lost.weights() == wanted
    assert nothing_was_repeated(lost)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("mounting needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.long
def test_a_full_disk_and_a_store_that_cannot_be_written_lose_nothing(
    undisturbed: Shell, tiny: list[str], cluster: LocalCluster, small_disk: Path
) -> None:
    wanted = (the(undisturbed.store, "uptrain").record() or {})["outputs"]["model.safetensors"]
    full = faulty("full", small_disk, undisturbed, tiny, cluster)
    wait(lambda: full.reached(25), full)
    fill(small_disk / "ballast")
    wait(lambda: queue_is_empty(cluster), full)
    assert full.step.state().name in ("FAILED", "LOST")
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "cannot be written" in full.shell("sweep", *full.line, status=2)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    full.shell("retry", "tiny")
    wait(all_done(full.shell.store), full)
    assert (full.step.record() or {})["outputs"]["model.safetensors"] == wanted
    assert nothing_was_repeated(full)


def fill(ballast: Path) -> None:
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
