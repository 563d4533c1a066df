"""What accounting adds: states of jobs the queue has forgotten, and the site's own limits."""

from __future__ import annotations

import getpass
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm import queue, records
from slurm.jobs import Job, Phase
from slurm.local_cluster.cluster import LocalCluster
from slurm.profile import Profile
from slurm.submit import SlurmExecutor, SubmissionRefusedError
from tests.support.processes import eventually
from tests.support.users import as_user

pytestmark = pytest.mark.slow


@pytest.fixture
def accounted(accounted_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    monkeypatch.setenv("SLURM_CONF", str(accounted_cluster.slurm_conf))
    return accounted_cluster


@pytest.fixture
def limited(accounted: LocalCluster) -> Iterator[str]:
    """A QOS that lets a user have three jobs queued."""
    user = getpass.getuser()
    accounted.run("sacctmgr", "-i", "add", "qos", "small", "set", "MaxSubmitJobsPerUser=3", check=False)
    accounted.run("sacctmgr", "-i", "modify", "user", user, "set", "qos+=small")
    yield "small"
    queue.cancel(accounted.run("squeue", "-h", "-o", "%F").split())


def test_states_outlive_the_queue_and_a_lost_id_is_found_by_name(accounted: LocalCluster, folder: Path) -> None:
    executor = SlurmExecutor(folder)
    jobs = [
        Job(name, ("sh", "-c", script)) for name, script in (("good", "true"), ("bad", "exit 3"), ("long", "sleep 99"))
    ]
    ids = executor.submit([*jobs, Job("next", ("true",), after=("bad",))])
    assert eventually(lambda: queue.states([ids["long"]])[ids["long"]].phase is Phase.RUNNING, every=0.2)
    executor.cancel([ids["long"]])
    forgotten = ("squeue", "-h", "-t", "all", "-o", "%i")
    assert eventually(lambda: not accounted.run(*forgotten).strip(), every=0.5), "MinJobAge is 2 s"

    states = executor.states(ids.values())
    assert states[ids["good"]].phase is Phase.DONE
    assert (states[ids["bad"]].phase, states[ids["bad"]].reason) == (Phase.FAILED, "exit status 3:0")
    assert states[ids["long"]].phase is Phase.CANCELLED
    assert states[ids["next"]].phase in (Phase.CANCELLED, Phase.UNKNOWN)

    record = records.read(folder)[0]
    records.write(folder, records.ArrayRecord(record.name, record.tasks, record.created))
    assert records.recover(folder)[0].array_id == record.array_id


def test_a_qos_that_limits_submission_takes_what_it_takes(accounted: LocalCluster, folder: Path, limited: str) -> None:
    executor = SlurmExecutor(folder, Profile(qos=limited, extra={"hold": True}))
    with pytest.raises(SubmissionRefusedError, match="QOSMaxSubmitJobPerUserLimit") as refused:
        executor.submit([Job(f"j{i}", ("true",)) for i in range(5)])
    assert sorted(refused.value.submitted) == ["j0", "j1", "j2"]
    assert refused.value.not_submitted == ["j3", "j4"]
    assert refused.value.full
    assert len(list(folder.iterdir())) == 1, "an array that the queue did not take leaves nothing behind"


@pytest.mark.parametrize(
    ("profile", "message"),
    [(Profile(account="nobody"), "Invalid account"), (Profile(qos="nothing"), "Invalid qos")],
)
def test_an_account_or_qos_that_does_not_exist_is_refused(
    accounted: LocalCluster, folder: Path, profile: Profile, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SlurmExecutor(folder, profile).submit([Job("a", ("true",))])
    assert not folder.exists()


@pytest.fixture
def capped(accounted: LocalCluster, limited: str) -> Iterator[str]:
    """A partition whose QOS lets a user have three jobs queued; no question to SLURM but sbatch's answer shows it."""
    accounted.run("scontrol", "create", "partitionname=capped", "nodes=n1", f"qos={limited}", "maxtime=60")
    yield "capped"
    queue.cancel(accounted.run("squeue", "-h", "-o", "%F").split())
    assert eventually(lambda: not accounted.run("squeue", "-h", "-p", "capped", "-o", "%i").strip(), every=0.2)
    accounted.run("scontrol", "delete", "partitionname=capped")


def test_a_limit_that_no_table_shows_is_filled_and_the_rest_waits(
    accounted: LocalCluster, folder: Path, capped: str
) -> None:
    executor = SlurmExecutor(folder, Profile(partition=capped, extra={"hold": True}))
    first = [Job(f"u{i}", ("true",), kind="uptrain") for i in range(2)]
    jobs = [*first, *(Job(f"e{i}", ("true",), after=(f"u{i}",), kind="evaluate") for i in range(2))]
    with pytest.raises(SubmissionRefusedError, match="QOSMaxSubmitJobPerUserLimit") as refused:
        executor.submit(jobs)
    assert (refused.value.full, refused.value.not_submitted) == (True, ["e1"])
    ids = refused.value.submitted
    assert f"aftercorr:{ids['u0'].split('_')[0]}" in accounted.run("scontrol", "show", "job", ids["e0"])
    for _ in range(2):  # a full queue is no refusal for ever, and leaves nothing behind
        with pytest.raises(SubmissionRefusedError) as again:
            executor.submit([Job("e1", ("true",), kind="evaluate")])
        assert (again.value.full, again.value.submitted) == (True, {})
    assert len(list(folder.iterdir())) == 2
    executor.cancel([ids["e0"]])
    assert list(executor.submit([Job("e1", ("true",), kind="evaluate")])) == ["e1"]


NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed: SLURM hides nothing from its own")
def test_jobs_in_a_hidden_partition_are_taken_and_found_again(
    accounted: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounted.run("scontrol", "create", "partitionname=secret", "nodes=n2", "hidden=yes", "maxtime=60")
    accounted.run("sacctmgr", "-i", "add", "user", "nobody", "account=research", check=False)
    for above in (accounted.state, accounted.slurm_conf.parent, *accounted.state.resolve().parents):
        above.chmod(above.stat().st_mode | 0o011)
    job = Job("a", ("true",))

    def queue_and_look(folder: str) -> object:
        executor = SlurmExecutor(Path(folder), Profile(partition="secret", extra={"hold": True, "chdir": "/"}))
        ids = executor.submit([job])
        (record,) = records.read(Path(folder))
        known = queue.array_id_of(record.name) == record.array_id
        found = executor.states(ids.values())[ids["a"]].phase, known, executor.doubts(job.resources, "a")
        executor.cancel(ids.values())
        return found

    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, NOBODY, NOBODY)
        seen = as_user(
            NOBODY, NOBODY, lambda: subprocess.run(["sinfo", "-h"], capture_output=True, text=True, check=True).stdout
        )
        found = as_user(NOBODY, NOBODY, lambda: queue_and_look(folder))
    accounted.run("scontrol", "delete", "partitionname=secret", check=False)
    assert "preemptible" in str(seen)
    assert "secret" not in str(seen)
    assert found == ["PENDING", True, []]


@pytest.mark.long
def test_accounting_that_is_away_stops_no_sweep(accounted: LocalCluster, folder: Path) -> None:
    executor = SlurmExecutor(folder)
    accounted.daemon("slurmdbd").stop()
    try:
        ids = executor.submit([Job("a", ("true",))])
        assert eventually(lambda: executor.states(ids.values())[ids["a"]].ended, every=0.5)
        assert executor.states(["999999_0"]) == {"999999_0": queue.FORGOTTEN}
    finally:
        accounted.up(accounting=True)
