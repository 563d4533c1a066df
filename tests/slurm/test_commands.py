"""Every question to SLURM ends in an answer or in one line, whatever its commands do: stand-ins for them do it all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm import command, queue, sbatch, site
from slurm.command import Answer, NoAnswerError, QueueError
from slurm.jobs import Job, JobState, Phase
from slurm.profile import Profile
from slurm.sbatch import FullError, RefusedError
from slurm.submit import SlurmExecutor, SubmissionRefusedError

PROGRAMS = ("sbatch", "squeue", "sacct", "scontrol", "sinfo", "scancel")
HEADERS = {
    "squeue": "JOBID|STATE|REASON",
    "sacct": "JobID|State|ExitCode|Reason",
    "sinfo": "PARTITION|NODES|CPUS|MEMORY|GRES|TIMELIMIT",
}
FAULTS = {
    "missing": None,
    "not executable": "",
    "no interpreter": "#!/no/such/program\n",
    "silent": "#!/bin/sh\nsleep 5\n",
    "failing": "#!/bin/sh\nexit 3\n",
    "failing with notes": "#!/bin/sh\necho Welcome; echo 'maintenance on\nMonday' >&2; exit 1\n",
    "unreachable": "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n",
    "printing nothing": "#!/bin/sh\n",
    "printing something else": "#!/bin/sh\necho 'job 1 | 2 | 3'; echo '|||||'\n",
    "printing bytes": "#!/bin/sh\nprintf '\\377\\376\\n'\n",
    "printing a broken table": "#!/bin/sh\ncase ${0##*/} in "
    + " ".join(f"{name}) echo '{header}';;" for name, header in HEADERS.items())
    + " esac\necho 'x|||||'; echo '1_[|a'\n",
    "killed": "#!/bin/sh\nkill -9 $$\n",
}
QUESTIONS: dict[str, Callable[[Path], object]] = {
    "states": lambda script: queue.states(["1_0", "2_3"]),
    "array_id_of": lambda script: queue.array_id_of("mlkv-base-1"),
    "queued_jobs": lambda script: queue.queued_jobs("root"),
    "cancel": lambda script: queue.cancel(["1_0"]),
    "throttle": lambda script: queue.throttle("1", 2),
    "nodes": lambda script: site.nodes(),
    "nodes_away": lambda script: site.nodes_away(Profile()),
    "max_array_size": lambda script: site.max_array_size(),
    "submit": lambda script: sbatch.submit(script, os.environ),
    "start_estimate": lambda script: sbatch.start_estimate(script, os.environ),
}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts stand-ins for SLURM's commands first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(text: str | None, *names: str, mode: int = 0o755) -> None:
        for name in names or PROGRAMS:
            (folder / name).unlink(missing_ok=True)
            if text is not None:
                (folder / name).write_text(text)
                (folder / name).chmod(mode)
            elif not names:
                monkeypatch.setenv("PATH", str(folder))

    return write


def complaint(ask: Callable[[Path], object], script: Path) -> str | None:
    """What the error says that a question ends in; any other exception passes."""
    try:
        ask(script)
    except (QueueError, RefusedError, FullError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_command_does_a_question_ends_in_an_answer_or_one_line(
    fault: str, programs: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "PATIENCE_SECONDS", 0.02 if fault == "silent" else 60.0)
    programs(FAULTS[fault], mode=0o644 if fault == "not executable" else 0o755)
    lines = {name: said for name, ask in QUESTIONS.items() if (said := complaint(ask, tmp_path / "script.sh"))}
    assert {name for name, said in lines.items() if len(said.splitlines()) != 1 or not said.strip()} == set()
    unanswered = set(lines)
    if not fault.startswith("printing"):
        assert unanswered == set(QUESTIONS) - {"max_array_size"}, "that has a default"
    elif fault != "printing a broken table":
        assert {"states", "array_id_of", "queued_jobs", "nodes", "nodes_away"} <= unanswered, (
            "no table is not an empty table"
        )


def test_a_slow_command_says_how_long_it_had(programs: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PATIENCE_SECONDS", 0.02)
    programs(FAULTS["silent"])
    with pytest.raises(NoAnswerError, match=r"^squeue did not answer within 0 s$"):
        queue.states(["1"])


def test_an_sbatch_that_tries_for_minutes_is_a_full_queue(
    programs: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MaxJobCount is reached."""
    monkeypatch.setattr(command, "PATIENCE_SECONDS", 0.1)
    said = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying"
    programs(f"#!/bin/sh\necho '{said}' >&2; exec sleep 5\n", "sbatch")
    with pytest.raises(FullError, match="Slurm temporarily unable to accept job") as full:
        sbatch.submit(tmp_path / "script.sh", os.environ)
    assert not full.value.certain


def test_notes_around_a_table_are_none_of_it(programs: Callable[..., None]) -> None:
    rows = "JOBID|STATE|REASON\\n7_0|RUNNING|None\\n7_1|PENDING|Priority\\n"
    programs(f"#!/bin/sh\necho 'maintenance of job 12|34'; printf '{rows}'; echo; echo 'Have a nice day'\n", "squeue")
    assert queue.states(["7_0", "7_1"]) == {"7_0": JobState(Phase.RUNNING), "7_1": JobState(Phase.PENDING, "Priority")}


def test_hidden_partitions_are_asked_about_too(programs: Callable[..., None], tmp_path: Path) -> None:
    programs(f'#!/bin/sh\necho "$0 $@" >> {tmp_path}/asked\nexit 1\n', "squeue", "sinfo")
    for ask in (
        lambda: queue.states(["1"]),
        lambda: queue.array_id_of("a"),
        lambda: queue.queued_jobs("a"),
        site.nodes,
    ):
        with pytest.raises(QueueError):
            ask()
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 4
    assert all(" --all " in line for line in asked)


@pytest.mark.parametrize(
    ("printed", "id"),
    [
        ("12\n", "12"),
        ("12;mlkv\n", "12"),
        ("Submitted batch job 12\n", "12"),
        ("Submitted batch job 12 on cluster mlkv\n", "12"),
        ("Note: job 1 of 3 today\nYour job 7 uses 3 hours.\n12\n", "12"),
        ("Submitted batch job 12\nEstimate for job 99: 3 h\n", "12"),
        ("", None),
        ("job 1\n", None),
        ("sbatch: your job 3 will wait\n", None),
    ],
)
def test_the_id_is_what_sbatch_prints_alone_on_a_line(printed: str, id: str | None) -> None:
    assert sbatch.job_id(printed) == id


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (
            "sbatch: error: QOSMaxSubmitJobPerUserLimit\nallocation failure: Job violates accounting/QOS policy",
            FullError,
        ),
        ("sbatch: error: AssocGrpSubmitJobsLimit\nsbatch: error: Batch job submission failed: Job violates", FullError),
        (
            "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit,",
            FullError,
        ),
        (
            "sbatch: error: QOSMaxWallDurationPerJobLimit\nallocation failure: Job violates … (job submit limit",
            RefusedError,
        ),
        ("sbatch: error: Batch job submission failed: Resource temporarily unavailable", FullError),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", FullError),
        ("sbatch: error: Batch job submission failed: Invalid job array specification", FullError),
        ("allocation failure: Invalid partition name specified", RefusedError),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", QueueError),
        ("allocation failure: Unable to contact slurm controller (connect failure)", QueueError),
        ("sbatch: unrecognized option '--bogus=1'", RefusedError),
    ],
)
def test_sbatchs_words_say_whether_to_wait_to_ask_again_or_to_give_up(
    error: str, kind: type[Exception], programs: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "error").write_text(f"NOTICE: be nice\n{error}\n")
    programs(f"#!/bin/sh\ncat {tmp_path}/error >&2; exit 1\n", "sbatch")
    for ask in (QUESTIONS["submit"], QUESTIONS["start_estimate"]):
        with pytest.raises(kind) as raised:
            ask(tmp_path / "script.sh")
        assert type(raised.value) is kind
        assert "be nice" not in str(raised.value)


def test_a_complaint_is_slurms_own_words_once() -> None:
    busy = "sbatch: error: busy, retrying\n"
    err = f"hello\n{busy}{busy}sbatch: error: Batch job submission failed: no"
    assert Answer("sbatch", 1, "", err).complaint == "busy, retrying; Batch job submission failed: no"
    assert Answer("sbatch", 1, "out\n", "").complaint == "out"
    assert Answer("sbatch", 7, "", "").complaint == "exit status 7"


def test_a_command_keeps_the_bytes_that_it_had_in_the_shell(programs: Callable[..., None], tmp_path: Path) -> None:
    programs("#!/bin/sh\necho 12\n", "sbatch")
    executor = SlurmExecutor(tmp_path / "queue", Profile(setup=("echo \udcfe",)))
    assert executor.submit([Job("a", ("echo", "\udcff"))]) == {"a": "12_0"}
    (directory,) = (tmp_path / "queue").iterdir()
    assert b"\xff" in (directory / "tasks.sh").read_bytes()
    assert b"\xfe" in (directory / "12_submission.sh").read_bytes()


def test_who_is_not_queued_is_named_whatever_the_reason(programs: Callable[..., None], tmp_path: Path) -> None:
    """The second array is too many for the queue, and `max_submit` leaves out a third job by itself."""
    full = "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1"
    programs(
        f'#!/bin/sh\n[ "$1" = --test-only ] || {{ [ ! -e {tmp_path}/once ] || {{ {full}; }}; }}\n'
        f'[ "$1" = --test-only ] || touch {tmp_path}/once\necho 12\n',
        "sbatch",
    )
    programs("#!/bin/sh\necho 'JOBID|STATE'\n", "squeue")
    jobs = [Job("a", ("true",), kind="x"), Job("b", ("true",), kind="y"), Job("c", ("true",), kind="z")]
    with pytest.raises(SubmissionRefusedError) as refused:
        SlurmExecutor(tmp_path / "queue", Profile(max_submit=2)).submit(jobs)
    assert (refused.value.submitted, refused.value.not_submitted) == ({"a": "12_0"}, ["b", "c"])


def test_the_users_variables_reach_sbatch_and_those_of_a_surrounding_job_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    users = {
        "SBATCH_ACCOUNT": "a",
        "SBATCH_RESERVATION": "r",
        "SBATCH_EXPORT": "NONE",
        "SLURM_CONF": "c",
        "HOME_OF": "h",
    }
    jobs = {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "9", "SLURM_CPU_BIND": "x", "SLURMD_NODENAME": "n", "RANK": "1"}
    jobs |= {
        "CUDA_VISIBLE_DEVICES": "0",
        "SLURM_EXPORT_ENV": "NONE",
        "SRUN_DEBUG": "3",
        "WORLD_SIZE": "2",
        "SBATCH_WAIT": "1",
    }
    for name, value in (users | jobs | {"SBATCH_PARTITION": "p"}).items():
        monkeypatch.setenv(name, value)
    env = sbatch.environment(without=["SBATCH_PARTITION"])
    assert users.items() <= env.items()
    assert not env.keys() & {*jobs, "SBATCH_PARTITION"}
    monkeypatch.delenv("SLURM_JOB_ID")
    assert sbatch.environment(without=[])["CUDA_VISIBLE_DEVICES"] == "0", "a user's own, outside any job"


def test_a_variable_that_an_option_replaces_is_named_with_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "PARTITION",
        "TIMELIMIT",
        "GRES",
        "GPUS_PER_NODE",
        "MEM_PER_CPU",
        "RESERVATION",
        "NO_REQUEUE",
        "ACCOUNT",
    ):
        monkeypatch.setenv(f"SBATCH_{name}", "1")
    assert sbatch.overridden(["partition", "time", "gres", "mem", "reservation", "requeue"], ["reservation"]) == {
        "SBATCH_PARTITION": "cluster.partition",
        "SBATCH_TIMELIMIT": "cluster.resources.KIND.minutes or cluster.time",
        "SBATCH_GRES": "cluster.gres",
        "SBATCH_GPUS_PER_NODE": "cluster.gres",
        "SBATCH_MEM_PER_CPU": "cluster.memory_gb",
        "SBATCH_RESERVATION": "cluster.extra.reservation",
        "SBATCH_NO_REQUEUE": "mlkv's own --requeue",
    }
