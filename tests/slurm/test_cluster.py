"""Submission against a real SLURM. What takes long (time limits, lost nodes, requeues) starts first, in `slow`, and is
looked at by the last tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from slurm import queue, records
from slurm.jobs import Job, JobState, Phase
from slurm.local_cluster.cluster import LocalCluster
from slurm.local_cluster.daemons import Daemon
from slurm.profile import Profile
from slurm.resources import Resources
from slurm.submit import MAX_KILL_REQUEUES, SlurmExecutor, SubmissionRefusedError
from tests.support.processes import PATIENCE, eventually

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

PATIENT = """
trap 'echo warned; exit 4' USR2
trap 'echo terminated; exit 4' TERM
echo run ${SLURM_RESTART_COUNT:-0}
[ ${SLURM_RESTART_COUNT:-0} -ge 1 ] && exit 0
while :; do sleep 0.1; done
"""
"""Saves and asks for another run when it is told to end; its second run ends by itself."""


AWAY = Profile(constraint="n1|n2|n4")
"""Not on the node that `slow` takes down."""


def sh(name: str, script: str, *after: str, kind: str = "job", **resources: object) -> Job:
    return Job(name, ("bash", "-c", script), Resources(**resources), after, kind)  # type: ignore[arg-type]


def ended(executor: SlurmExecutor, ids: Iterable[str], seconds: float = PATIENCE) -> dict[str, JobState]:
    """The last states of the jobs, when all have ended; a job that was seen to end may be forgotten meanwhile."""
    last: dict[str, JobState] = {}
    wanted = list(ids)

    def look() -> bool:
        last.update(executor.states([id for id in wanted if id not in last or not last[id].ended]))
        return all(state.ended for state in last.values())

    assert eventually(look, seconds, every=0.3), f"still going: {last}"
    return last


def phases(executor: SlurmExecutor, ids: dict[str, str], seconds: float = PATIENCE) -> dict[str, Phase]:
    last = ended(executor, ids.values(), seconds)
    return {name: last[id].phase for name, id in ids.items()}


def running(executor: SlurmExecutor, id: str) -> bool:
    return executor.states([id])[id].phase is Phase.RUNNING


@dataclass
class Slow:
    """Jobs that were started before the first test, and what was done to them."""

    executor: SlurmExecutor
    ids: dict[str, str]

    def lines(self, name: str) -> list[str]:
        return self.executor.output(self.ids[name]).read_text().splitlines()


KILLED = "echo run ${SLURM_RESTART_COUNT:-0}; [ ${SLURM_RESTART_COUNT:-0} -ge 1 ] || kill -9 $$"
HOPELESS = "echo run ${SLURM_RESTART_COUNT:-0}; kill -9 $$"
STRANDED = "echo on $SLURMD_NODENAME; [ ${SLURM_RESTART_COUNT:-0} -ge 1 ] || sleep 300"


@pytest.fixture(scope="module")
def slow(plain_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Slow:
    folder = tmp_path_factory.mktemp("slow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(plain_cluster.slurm_conf))
        executor = SlurmExecutor(folder, Profile(constraint="n1|n2", warning_seconds=5, setup=("set -e",)))
        scripts = dict.fromkeys(("warned", "requeued", "cancelled"), PATIENT) | {
            "too-long": "trap '' USR2; sleep 300",
            "killed": KILLED,
            "hopeless": HOPELESS,  # last: its job id is the array's, and requeueing it must not take the others along
        }
        ids = executor.submit([sh(name, script) for name, script in scripts.items()])
        ids |= SlurmExecutor(folder, Profile(constraint="n4")).submit([sh("preempted", PATIENT, cpus=8)])
        ids |= SlurmExecutor(folder, Profile(constraint="n3|n4")).submit([sh("stranded", STRANDED)])
        assert eventually(
            lambda: all(_begun(executor, id) for name, id in ids.items() if name != "too-long"), every=0.1
        )
        plain_cluster.daemon("n3").stop(kill=True)
        plain_cluster.run("scancel", "--signal=USR2", ids["warned"])
        plain_cluster.run("scontrol", "requeue", ids["requeued"])
        executor.cancel([ids["cancelled"]])
        plain_cluster.run("scontrol", "update", f"JobId={ids['too-long']}", "EndTime=now+1")
        urgent = SlurmExecutor(folder, Profile(constraint="n4", partition="urgent"))
        ids |= urgent.submit([sh("urgent", "true", cpus=8)])
    return Slow(executor, ids)


def _begun(executor: SlurmExecutor, id: str) -> bool:
    output = executor.output(id)
    return output.exists() and output.read_text().startswith(("run 0", "on n3"))


def test_an_array_of_trivial_jobs(slow: Slow, cluster: LocalCluster, folder: Path) -> None:
    executor = SlurmExecutor(folder, AWAY)
    ids = executor.submit([sh(f"j{i}", f"echo {i} of $OMP_NUM_THREADS", cpus=2) for i in range(6)])
    assert len({id.split("_")[0] for id in ids.values()}) == 1, "one sbatch"
    assert set(phases(executor, ids).values()) == {Phase.DONE}
    assert [executor.output(ids[f"j{i}"]).read_text() for i in range(6)] == [f"{i} of 2\n" for i in range(6)]


def test_failure_cancels_descendants_and_leaves_siblings(cluster: LocalCluster, folder: Path) -> None:
    executor = SlurmExecutor(folder, AWAY)
    jobs = [sh("base", "true", kind="base")]
    jobs += [sh(f"u{i}", f"[ {i} != 1 ] || exit 7", "base", kind="uptrain") for i in range(3)]
    jobs += [sh(f"e{i}", "true", f"u{i}", kind="evaluate") for i in range(3)]
    jobs += [sh(f"m{i}", "true", f"e{i}", "base", kind="merge") for i in range(3)]
    jobs += [sh("gather", "true", "m0", "m1", "m2")]
    ids = executor.submit(jobs)
    got = phases(executor, ids)
    cancelled = {name for name, phase in got.items() if phase is Phase.CANCELLED}
    assert cancelled == {"e1", "m1", "gather"}
    assert got["u1"] is Phase.FAILED
    assert all(phase is Phase.DONE for name, phase in got.items() if name not in {"u1", *cancelled})
    assert "JobState=FAILED" in cluster.run("scontrol", "show", "job", ids["u1"])
    assert "ExitCode=7:0" in cluster.run("scontrol", "show", "job", ids["u1"])
    assert executor.states([ids["m1"]])[ids["m1"]].reason == "DependencyNeverSatisfied"
    assert ids["e1"] not in cluster.run("squeue", "-h", "-r", "-o", "%i"), "nothing of it waits for ever"


def test_environment_setup_and_gpus_reach_the_command(
    cluster: LocalCluster, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")  # as if this process ran in a job itself
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "99")
    profile = Profile(
        setup=("export FROM_SETUP=$GREETING-again",), extra={"comment": "a b", "nice": 5}, constraint="n2"
    )
    executor = SlurmExecutor(folder, profile, env={"GREETING": "it's $HOME"})
    show = 'echo "$GREETING,$FROM_SETUP,$CUDA_VISIBLE_DEVICES,$SLURM_CPUS_PER_TASK"; '
    show += f'while [ ! -e "{tmp_path}/both-run" ]; do sleep 0.1; done'
    ids = executor.submit([sh(f"g{i}", show, gpus=2, cpus=3) for i in range(2)])
    outputs = [executor.output(id) for id in ids.values()]
    assert eventually(lambda: all(output.exists() and output.read_text() for output in outputs), every=0.1)
    (tmp_path / "both-run").touch()
    assert set(phases(executor, ids).values()) == {Phase.DONE}
    texts = sorted(executor.output(id).read_text().strip() for id in ids.values())
    assert texts == [f"it's $HOME,it's $HOME-again,{gpus},3" for gpus in ("0,1", "2,3")]


def test_ranks_over_nodes_and_one_that_fails(cluster: LocalCluster, folder: Path) -> None:
    executor = SlurmExecutor(folder, AWAY)
    show = "echo $SLURM_PROCID of $SLURM_NTASKS on $SLURMD_NODENAME"
    fail = "[ $SLURM_PROCID != 1 ] || exit 3; sleep 100"
    ids = executor.submit(
        [sh(name, script, nodes=2, tasks_per_node=2) for name, script in (("ok", show), ("bad", fail))]
    )
    assert phases(executor, ids) == {"ok": Phase.DONE, "bad": Phase.FAILED}
    ranks = [path.read_text().split() for path in executor.output(ids["ok"]).parent.glob(f"{ids['ok']}_*_log.out")]
    assert sorted(rank[0] for rank in ranks) == ["0", "1", "2", "3"]
    assert len({rank[4] for rank in ranks}) == 2


def test_arrays_over_the_sites_size_are_cut(cluster: LocalCluster, folder: Path) -> None:
    executor = SlurmExecutor(folder, replace(AWAY, extra={"hold": True}))
    jobs = [sh(f"u{i}", "true", kind="uptrain") for i in range(150)]
    ids = executor.submit(jobs + [sh(f"e{i}", "true", f"u{i}", kind="evaluate") for i in range(150)])
    states = executor.states(ids.values())
    assert {state.phase for state in states.values()} == {Phase.PENDING}
    assert len(states) == 300
    assert len({id.split("_")[0] for id in ids.values()}) == 6, "six sbatch calls"
    executor.cancel(ids.values())
    assert set(phases(executor, ids).values()) == {Phase.CANCELLED}


def test_an_array_too_large_for_the_site_is_refused_by_slurm(cluster: LocalCluster) -> None:
    """Why arrays are cut."""
    with pytest.raises(RuntimeError, match="Invalid job array specification"):
        cluster.run("sbatch", "--array=0-64", "--wrap", "true")


def test_children_of_some_tasks_wait_for_just_those(cluster: LocalCluster, folder: Path) -> None:
    """A child array whose indices are 1, 3, 5: what SLURM does to tasks without a counterpart (22.05 lets them wait for
    the whole parent array) never arises."""
    executor = SlurmExecutor(folder, AWAY)
    jobs = [sh(f"u{i}", f"[ {i} != 3 ] && [ {i} != 2 ]", kind="uptrain") for i in range(6)]
    ids = executor.submit(jobs + [sh(f"e{i}", "true", f"u{i}", kind="evaluate") for i in (5, 3, 1)])
    got = phases(executor, ids)
    assert {name: got[name] for name in ("e1", "e3", "e5")} == {
        "e1": Phase.DONE,
        "e3": Phase.CANCELLED,
        "e5": Phase.DONE,
    }
    assert ids["e5"].endswith("_5")


def test_a_parent_that_slurm_has_forgotten_counts_as_satisfied(cluster: LocalCluster, folder: Path) -> None:
    """Why a job checks its parents' records itself when it starts."""
    executor = SlurmExecutor(folder, AWAY)
    ids = executor.submit([Job("orphan", ("true",), after_ids=("999999",))])
    assert phases(executor, ids) == {"orphan": Phase.DONE}


def test_a_later_submission_waits_for_jobs_that_are_queued(cluster: LocalCluster, folder: Path, tmp_path: Path) -> None:
    executor = SlurmExecutor(folder, AWAY)
    first = executor.submit([sh("first", f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; touch {tmp_path}/made")])
    second = executor.submit([Job("second", ("test", "-e", f"{tmp_path}/made"), after_ids=tuple(first.values()))])
    assert executor.states(second.values())[second["second"]].phase is Phase.PENDING
    (tmp_path / "go").touch()
    assert phases(executor, second) == {"second": Phase.DONE}


def test_the_throttle_can_be_changed_while_it_runs(cluster: LocalCluster, folder: Path) -> None:
    executor = SlurmExecutor(folder, replace(AWAY, max_running=1))
    ids = executor.submit([sh(f"t{i}", "sleep 600") for i in range(4)])

    def count() -> int:
        return sum(state.phase is Phase.RUNNING for state in executor.states(ids.values()).values())

    assert eventually(lambda: count() == 1, every=0.2)
    assert {state.reason for state in executor.states(ids.values()).values()} >= {"JobArrayTaskLimit"}
    executor.profile = replace(executor.profile, max_running=3)
    executor.apply_max_running(ids.values())
    assert eventually(lambda: count() == 3, every=0.2)
    executor.cancel(ids.values())
    assert set(phases(executor, ids).values()) == {Phase.CANCELLED}


def test_what_can_never_run_is_refused_before_the_queue(cluster: LocalCluster, folder: Path) -> None:
    for profile, resources, message in (
        (Profile(partition="gpu"), Resources(), "job good: cluster.partition = gpu: this site has preemptible, urgent"),
        (Profile(), Resources(gpus=5), "5 GPUs per node requested, partition preemptible has 4"),
        (Profile(constraint="nowhere"), Resources(), "Invalid feature specification"),
    ):
        with pytest.raises(ValueError, match=message):
            SlurmExecutor(folder, profile).submit([Job("good", ("true",), resources)])
    assert not folder.exists()


def test_what_slurm_takes_is_queued_whatever_its_tables_say(cluster: LocalCluster, folder: Path) -> None:
    """A time limit above the partition's waits for ever as a rule; a QOS may lift it."""
    profile = Profile(partition="urgent", extra={"hold": True})
    executor, resources = SlurmExecutor(folder, profile), Resources(minutes=61)
    assert executor.doubts(resources, "job") == ["resources.minutes: 61 minutes requested, partition urgent has 60"]
    ids = executor.submit([Job("long", ("true",), resources)])
    assert executor.states(ids.values())[ids["long"]].phase is Phase.PENDING
    executor.cancel(ids.values())


def test_jobs_for_nodes_that_are_away_wait_for_them(cluster: LocalCluster, folder: Path) -> None:
    """`sbatch --test-only` refuses them, and sbatch takes them."""
    executor = SlurmExecutor(folder, Profile(constraint="n2", extra={"hold": True}))
    cluster.run("scontrol", "update", "nodename=n2", "state=drain", "reason=maintenance")
    try:
        with pytest.raises(ValueError, match="node configuration is not available"):
            executor.start_estimate(Resources())
        ids = executor.submit([sh("a", "true")])
        assert executor.states(ids.values())[ids["a"]].phase is Phase.PENDING
        executor.cancel(ids.values())
        with pytest.raises(ValueError, match="5 GPUs per node requested, partition preemptible has 4"):
            executor.submit([sh("b", "true", gpus=5)])
    finally:
        cluster.run("scontrol", "update", "nodename=n2", "state=resume")
    assert eventually(lambda: "drain" not in cluster.run("sinfo", "-h", "-n", "n2", "-o", "%T"), every=0.2)


def fake_sbatch(folder: Path, script: str) -> Path:
    """An sbatch that does this in place of submitting, but answers `--test-only` as the real one."""
    folder.mkdir()
    fake = folder / "sbatch"
    fake.write_text(f'#!/bin/sh\n[ "$1" != --test-only ] || exec {shutil.which("sbatch")} "$@"\n{script}\n')
    fake.chmod(0o755)
    return fake


def test_when_sbatch_fails_halfway_what_is_queued_and_what_is_left_is_told(
    cluster: LocalCluster, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = "echo 'sbatch: error: Batch job submission failed: no' >&2; exit 1"
    fake = fake_sbatch(
        tmp_path / "bin", f'grep -q evaluate "$1" && {{ {refuse}; }}\nexec {shutil.which("sbatch")} "$@"'
    )
    monkeypatch.setenv("PATH", str(fake.parent), prepend=":")
    executor = SlurmExecutor(folder, replace(AWAY, extra={"hold": True}))
    with pytest.raises(SubmissionRefusedError, match="submission failed: no") as refused:
        executor.submit([sh("a", "true"), sh("b", "true", "a", kind="evaluate")])
    executor.cancel(refused.value.submitted.values())
    assert (list(refused.value.submitted), refused.value.not_submitted) == (["a"], ["b"])
    assert sorted(record.array_id is None for record in records.recover(folder)) == [False, True]


def test_a_limit_on_submitted_jobs_is_respected(cluster: LocalCluster, folder: Path) -> None:
    queued = len(cluster.run("squeue", "-h", "-r", "-o", "%i").splitlines())
    executor = SlurmExecutor(folder, Profile(max_submit=queued + 3, extra={"hold": True}))
    jobs = [sh(f"e{i}", "true", f"u{i}") for i in range(4)] + [sh(f"u{i}", "true") for i in range(4)]
    with pytest.raises(SubmissionRefusedError) as refused:
        executor.submit(jobs)
    executor.cancel(refused.value.submitted.values())
    assert sorted(refused.value.submitted) == ["u0", "u1", "u2"], "parents first"
    assert sorted(refused.value.not_submitted) == ["e0", "e1", "e2", "e3", "u3"]


def test_start_estimates(cluster: LocalCluster, folder: Path) -> None:
    estimate = SlurmExecutor(folder).start_estimate(Resources(gpus=1))
    assert estimate is not None
    assert abs(estimate.timestamp() - time.time()) < 3600


DYING_LAUNCHER = """
import sys
from pathlib import Path
from slurm.jobs import Job
from slurm.submit import SlurmExecutor
SlurmExecutor(Path(sys.argv[1])).submit([Job(f"j{i}", ("echo", str(i))) for i in range(3)])
"""


def test_a_launcher_killed_around_sbatch_loses_no_job(cluster: LocalCluster, folder: Path, tmp_path: Path) -> None:
    """`sbatch` is replaced by one that kills the launcher, before or after the real sbatch has queued the jobs."""
    real = shutil.which("sbatch")
    for when, script in (("before", "kill -9 $PPID"), ("after", f'{real} "$@" > /dev/null; kill -9 $PPID')):
        fake = fake_sbatch(tmp_path / when, script)
        env = os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        died = subprocess.run([sys.executable, "-c", DYING_LAUNCHER, str(folder / when)], env=env, check=False)
        assert died.returncode == -signal.SIGKILL
        assert [record.array_id for record in records.read(folder / when)] == [None]
    assert [record.array_id for record in records.recover(folder / "before")] == [None], "it was never queued"
    (found,) = records.recover(folder / "after")
    executor = SlurmExecutor(folder / "after")
    assert set(phases(executor, found.ids()).values()) == {Phase.DONE}
    assert [executor.output(found.ids()[f"j{i}"]).read_text() for i in range(3)] == ["0\n", "1\n", "2\n"]


def test_an_id_is_recovered_from_the_outputs_when_slurm_has_forgotten_it(cluster: LocalCluster, folder: Path) -> None:
    record = records.new_record("job", {"a": 4}, None)
    records.write(folder, record)
    (folder / record.name / "123456_4_0_log.out").touch()
    (found,) = records.recover(folder)
    assert found.ids() == {"a": "123456_4"}
    assert [again.array_id for again in records.read(folder)] == ["123456"]


def test_cancelling_takes_waiting_descendants_along(cluster: LocalCluster, folder: Path) -> None:
    executor = SlurmExecutor(folder, AWAY)
    ids = executor.submit([sh("long", "sleep 300"), sh("next", "true", "long"), sh("other", "true")])
    assert eventually(lambda: running(executor, ids["long"]), every=0.2)
    executor.cancel([ids["long"], "999999_1"])
    assert phases(executor, ids) == {"long": Phase.CANCELLED, "next": Phase.CANCELLED, "other": Phase.DONE}


def test_a_forgotten_job_is_unknown_and_a_queue_that_does_not_answer_is_an_error(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert queue.states(["999999_0", "999999_1"]) == dict.fromkeys(["999999_0", "999999_1"], queue.FORGOTTEN)
    assert queue.states([]) == {}
    silent = tmp_path / "squeue"
    silent.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n")
    silent.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(queue.QueueError, match="Unable to contact"):
        queue.states(["1_0"])
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(queue.QueueError, match="squeue is not installed here"):
        queue.states(["1_0"])


@pytest.mark.parametrize("which", [[0, 1, 2], [1], [0, 2]])
def test_waiting_tasks_can_be_cancelled_together_or_singly(
    cluster: LocalCluster, folder: Path, which: list[int]
) -> None:
    executor = SlurmExecutor(folder, replace(AWAY, extra={"hold": True}))
    ids = list(executor.submit([sh(f"h{i}", "true") for i in range(3)]).values())
    executor.cancel([ids[i] for i in which])
    states = executor.states(ids)
    cancelled = {i for i, id in enumerate(ids) if states[id].ended}
    known = {i for i, id in enumerate(ids) if states[id].phase is not Phase.UNKNOWN}
    executor.cancel(ids)
    assert cancelled == set(which)
    assert known == set(range(3)) - (set() if len(which) == 3 else set(which)), "SLURM keeps no trace of single ones"


def test_a_command_that_was_warned_runs_again_and_ends_well(slow: Slow, cluster: LocalCluster) -> None:
    assert ended(slow.executor, [slow.ids["warned"]])[slow.ids["warned"]].phase is Phase.DONE
    lines = slow.lines("warned")
    assert [line for line in lines if line.startswith(("run", "warned"))] == ["run 0", "warned", "run 1"]


def test_a_requeued_job_starts_again_within_seconds(slow: Slow, cluster: LocalCluster) -> None:
    assert ended(slow.executor, [slow.ids["requeued"]])[slow.ids["requeued"]].phase is Phase.DONE
    assert [line for line in slow.lines("requeued") if line.startswith("run")] == ["run 0", "run 1"]


def test_a_cancelled_job_is_not_put_back(slow: Slow, cluster: LocalCluster) -> None:
    """Although its command exits as one that wants to go on."""
    assert ended(slow.executor, [slow.ids["cancelled"]])[slow.ids["cancelled"]].phase is Phase.CANCELLED
    assert "terminated" in slow.lines("cancelled")
    assert "run 1" not in slow.lines("cancelled")


def test_an_urgent_job_preempts_and_the_other_comes_back(slow: Slow, cluster: LocalCluster) -> None:
    got = ended(slow.executor, [slow.ids["urgent"], slow.ids["preempted"]])
    assert {state.phase for state in got.values()} == {Phase.DONE}
    lines = slow.lines("preempted")
    assert any("DUE TO PREEMPTION" in line for line in lines)
    assert [line for line in lines if line.startswith("run")] == ["run 0", "run 1"]


def test_a_job_on_a_node_that_is_lost_runs_elsewhere(slow: Slow, cluster: LocalCluster) -> None:
    assert ended(slow.executor, [slow.ids["stranded"]])[slow.ids["stranded"]].phase is Phase.DONE
    nodes = [line for line in slow.lines("stranded") if line.startswith("on ")]
    assert len(nodes) == 2
    assert nodes[0] != nodes[1]
    cluster.up()
    assert all(cluster.status().values())


def test_a_command_that_is_killed_outright_runs_again_a_few_times(slow: Slow, cluster: LocalCluster) -> None:
    got = ended(slow.executor, [slow.ids["killed"], slow.ids["hopeless"]])
    assert got[slow.ids["killed"]].phase is Phase.DONE
    assert got[slow.ids["hopeless"]].phase is Phase.FAILED
    for name, runs in (("killed", 2), ("hopeless", 1 + MAX_KILL_REQUEUES)):
        assert [line for line in slow.lines(name) if line.startswith("run")] == [f"run {i}" for i in range(runs)]
    assert "ExitCode=137:0" in cluster.run("scontrol", "show", "job", slow.ids["hopeless"])


def test_a_job_that_heeds_no_warning_times_out(slow: Slow, cluster: LocalCluster) -> None:
    state = ended(slow.executor, [slow.ids["too-long"]])[slow.ids["too-long"]]
    assert state.phase is Phase.TIMEOUT


def test_a_job_that_exports_nothing_runs_with_what_the_profile_sets(
    cluster: LocalCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_EXPORT_ENV", "NONE")
    monkeypatch.setenv("OF_THE_SHELL", "yes")
    shown = 'echo "$FROM_ENV,$FROM_SETUP,$OMP_NUM_THREADS,$OF_THE_SHELL"'
    jobs = [sh("a", shown, cpus=2)]
    setup = ("export FROM_SETUP=setup",)
    asked = SlurmExecutor(folder, replace(AWAY, setup=setup, extra={"export": "NONE"}), env={"FROM_ENV": "env"})
    ids = asked.submit(jobs)
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    plain = SlurmExecutor(folder, replace(AWAY, setup=setup), env={"FROM_ENV": "env"})
    more = plain.submit(jobs)
    for executor, found in ((asked, ids), (plain, more)):
        assert phases(executor, found) == {"a": Phase.DONE}
        assert executor.output(found["a"]).read_text() == "env,setup,2,\n"


def test_the_users_variables_for_sbatch_count_where_no_field_does(
    cluster: LocalCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PARTITION": "urgent",
        "COMMENT": "c",
        "TIMELIMIT": "59",
        "WAIT": "1",
        "NO_REQUEUE": "1",
    }.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    held = {"hold": True}
    plain, own = SlurmExecutor(folder, Profile(extra=held)), SlurmExecutor(folder, Profile("preemptible", extra=held))
    shown = []
    for executor in (plain, own):
        ids = executor.submit([sh("a", "true", minutes=7)])
        shown.append(cluster.run("scontrol", "show", "job", ids["a"]))
        executor.cancel(ids.values())
    assert ["Partition=urgent" in text for text in shown] == [True, False]
    assert all("TimeLimit=00:07:00" in text and "Requeue=1" in text for text in shown)
    assert own.overridden(Resources()).keys() - plain.overridden(Resources()).keys() == {"SBATCH_PARTITION"}
    assert plain.overridden(Resources())["SBATCH_TIMELIMIT"] == "cluster.resources.KIND.minutes or cluster.time"
    monkeypatch.setenv("SBATCH_PARTITION", "gone")
    with pytest.raises(ValueError, match="SBATCH_PARTITION = gone: this site has preemptible, urgent"):
        plain.submit([sh("a", "true")])


def test_a_job_can_submit_jobs(cluster: LocalCluster, folder: Path, tmp_path: Path) -> None:
    """With other memory, CPUs and binding than its own, of which SLURM tells it in variables."""
    program = "import sys; from pathlib import Path; from slurm.jobs import Job; from slurm.profile import Profile\n"
    program += "from slurm.submit import SlurmExecutor\n"
    program += "profile = Profile(constraint='n1|n2|n4', memory_gb=0.25)\n"
    program += f"inner = SlurmExecutor(Path({str(folder)!r}), profile)\n"
    program += (
        "print(*inner.submit([Job('in', ('sh', '-c', 'echo $SLURM_CPUS_PER_TASK $SLURM_MEM_PER_NODE'))]).values())"
    )
    outer = ["--constraint=n1|n2|n4", "--mem-per-cpu=50", "--cpus-per-task=3", f"--chdir={ROOT}", "--immediate=60"]
    id = cluster.run("srun", *outer, "--cpu-bind=none", sys.executable, "-c", program).strip()
    executor = SlurmExecutor(folder)
    assert ended(executor, [id])[id].phase is Phase.DONE
    assert executor.output(id).read_text() == "1 256\n"


def test_a_note_of_the_site_is_not_the_id(
    cluster: LocalCluster, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is its absence a loss: with `--quiet` sbatch prints nothing."""
    note = "echo 'Note: job 1 of 7 today'; echo 'job 2' >&2"
    fake = fake_sbatch(tmp_path / "bin", f'{note}\n{shutil.which("sbatch")} "$@"; {note}')
    monkeypatch.setenv("PATH", str(fake.parent), prepend=":")
    for extra in ({"hold": True}, {"hold": True, "quiet": True}):
        executor = SlurmExecutor(folder, Profile(extra=extra))
        ids = executor.submit([sh("a", "true")])
        assert executor.states(ids.values())[ids["a"]] == JobState(Phase.PENDING, "JobHeldUser")
        executor.cancel(ids.values())


def test_an_array_that_was_queued_although_sbatch_failed_is_found(
    cluster: LocalCluster, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1"
    fake = fake_sbatch(tmp_path / "bin", f'{shutil.which("sbatch")} "$@" > /dev/null; {late}')
    monkeypatch.setenv("PATH", str(fake.parent), prepend=":")
    executor = SlurmExecutor(folder, Profile(extra={"hold": True}))
    ids = executor.submit([sh("a", "true", kind="base"), sh("b", "true", "a", kind="uptrain")])
    assert [state.phase for state in executor.states(ids.values()).values()] == [Phase.PENDING, Phase.PENDING]
    executor.cancel(ids.values())


@contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    """It is there and does nothing."""
    process = psutil.Process(int(json.loads(daemon.pid_file.read_text())["pid"]))
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@pytest.mark.long
def test_a_controller_that_is_slow_or_away_costs_no_job(
    cluster: LocalCluster, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """slurmctld is stopped in its work, so that no question is answered; then a site's `sbatch --test-only` is slow."""
    daemon = cluster.daemon("slurmctld")
    executor = SlurmExecutor(folder, replace(AWAY, extra={"hold": True}))
    monkeypatch.setattr("slurm.command.PATIENCE_SECONDS", 3.0)
    with stopped(daemon):
        for ask in (lambda: queue.states(["1_0"]), lambda: executor.submit([sh("a", "true")])):
            with pytest.raises((queue.QueueError, SubmissionRefusedError), match="did not answer within 3 s"):
                ask()
    monkeypatch.setattr("slurm.command.PATIENCE_SECONDS", 30.0)
    assert eventually(lambda: "is UP" in cluster.run("scontrol", "ping", check=False), every=0.5)
    (found,) = records.recover(folder)
    shown = cluster.run("squeue", "-h", f"--name={found.name}", "-o", "%F").split()
    assert shown == [found.array_id] if found.array_id else not shown, "whether the request was heard or not"
    executor.cancel(found.ids().values())
    real, slow = shutil.which("sbatch"), tmp_path / "bin"
    slow.mkdir()
    (slow / "sbatch").write_text(f'#!/bin/sh\n[ "$1" != --test-only ] || exec sleep 60\nexec {real} "$@"\n')
    (slow / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(slow), prepend=":")
    monkeypatch.setattr("slurm.command.PATIENCE_SECONDS", 2.0)
    with pytest.raises(queue.QueueError, match="sbatch did not answer within 2 s"):
        executor.start_estimate(Resources())
    ids = executor.submit([sh("b", "true")])
    assert executor.states(ids.values())[ids["b"]].phase is Phase.PENDING, "sbatch itself is asked"
    executor.cancel(ids.values())
