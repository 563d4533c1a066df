"""What accounting adds: states of jobs the queue has forgotten, and the site's own limits."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm import queue, records, site
from slurm.jobs import Job, Phase
from slurm.local_cluster.cluster import LocalCluster
from slurm.profile import Profile
from slurm.submit import SlurmExecutor, SubmissionRefusedError
from tests.support.processes import eventually

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
    assert site.room(executor.profile) == 3
    with pytest.raises(SubmissionRefusedError, match="lets 3 more jobs into the queue") as refused:
        executor.submit([Job(f"j{i}", ("true",)) for i in range(5)])
    assert sorted(refused.value.submitted) == ["j0", "j1", "j2"]
    assert refused.value.not_submitted == ["j3", "j4"]
    assert site.room(executor.profile) == 0


def test_without_a_limit_there_is_room_for_all(accounted: LocalCluster) -> None:
    assert site.room(Profile()) == site.UNLIMITED


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
