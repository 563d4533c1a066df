"""LocalExecutor with real subprocesses: order, the cap, shares, failure, and that nothing it started outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slurm.jobs import Job, Phase
from slurm.local import LocalExecutor
from slurm.resources import Resources
from tests.support.processes import PATIENCE, alive, eventually, number_in

ROOT = Path(__file__).resolve().parents[2]


def sh(name: str, script: str, *after: str, **resources: object) -> Job:
    return Job(name, ("sh", "-c", script), Resources(**resources), after)  # type: ignore[arg-type]


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[LocalExecutor]:
    with LocalExecutor(tmp_path / "logs", slots=2, cores=6, gpus=[], grace_seconds=1) as executor:
        yield executor


def test_output_and_states(executor: LocalExecutor) -> None:
    ids = executor.submit([sh("good", "echo out; echo err >&2"), sh("bad", "exit 7"), sh("shot", "kill -USR1 $$")])
    assert executor.wait(PATIENCE)
    states = executor.states(ids.values())
    assert states[ids["good"]].phase is Phase.DONE
    assert executor.output(ids["good"]).read_text() == "out\nerr\n"
    assert (states[ids["bad"]].phase, states[ids["bad"]].reason) == (Phase.FAILED, "exit status 7")
    assert (states[ids["shot"]].phase, states[ids["shot"]].reason) == (Phase.FAILED, "ended by SIGUSR1")


def test_a_command_that_does_not_exist_fails_alone(executor: LocalExecutor) -> None:
    ids = executor.submit([Job("missing", ("/nowhere/at-all",)), sh("fine", "true")])
    assert executor.wait(PATIENCE)
    states = executor.states(ids.values())
    assert [states[ids[name]].phase for name in ("missing", "fine")] == [Phase.FAILED, Phase.DONE]
    assert "No such file" in executor.output(ids["missing"]).read_text()


def test_descendants_of_a_failure_are_cancelled_and_siblings_go_on(executor: LocalExecutor, tmp_path: Path) -> None:
    started = tmp_path / "started"
    jobs = [
        sh("grandchild", f"touch {started}", "child"),
        sh("child", f"touch {started}", "parent"),
        sh("parent", "exit 1"),
        sh("sibling", "true"),
        sh("nephew", "true", "sibling"),
    ]
    ids = executor.submit(jobs)
    assert executor.wait(PATIENCE)
    phases = {name: executor.states([id])[id].phase for name, id in ids.items()}
    assert phases == {
        "parent": Phase.FAILED,
        "child": Phase.CANCELLED,
        "grandchild": Phase.CANCELLED,
        "sibling": Phase.DONE,
        "nephew": Phase.DONE,
    }
    assert executor.states([ids["grandchild"]])[ids["grandchild"]].reason == "child ended CANCELLED"
    assert not started.exists()


def test_a_later_submission_waits_for_an_earlier_one(executor: LocalExecutor, tmp_path: Path) -> None:
    first = executor.submit([sh("first", f"sleep 0.3; touch {tmp_path}/made")])
    second = executor.submit([Job("second", ("test", "-e", f"{tmp_path}/made"), after_ids=(first["first"],))])
    assert executor.wait(PATIENCE)
    assert executor.states(second.values())[second["second"]].phase is Phase.DONE


def test_cores_and_gpus_are_divided_between_slots(tmp_path: Path) -> None:
    show = "echo $OMP_NUM_THREADS $MKL_NUM_THREADS [$CUDA_VISIBLE_DEVICES]"
    show += f"; while [ ! -e {tmp_path}/all-run ]; do sleep 0.02; done"
    with LocalExecutor(tmp_path, cores=8, gpus=["0", "1", "5", "7"]) as executor:
        assert executor.slots == 4
        jobs = [sh(f"one{i}", show, gpus=1) for i in range(2)] + [sh("two", show, gpus=2), sh("none", show)]
        ids = executor.submit(jobs)
        executor.poll()
        outputs = [executor.output(ids[job.name]) for job in jobs]
        assert eventually(lambda: all(output.exists() and output.read_text() for output in outputs[:3]))
        (tmp_path / "all-run").touch()  # and makes room for the last
        assert executor.wait(PATIENCE)
        lines = [output.read_text().strip() for output in outputs]
    assert lines == ["2 2 [0]", "2 2 [1]", "4 4 [5,7]", "2 2 []"]


def test_default_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    for cores, gpus, slots in ((16, None, 2), (16, [], 8), (3, [], 1), (1, [], 1)):
        with LocalExecutor(tmp_path, cores=cores, gpus=gpus) as executor:
            assert executor.slots == slots


def test_cores_are_those_of_the_affinity() -> None:
    program = "from slurm.local import visible_cores; print(visible_cores())"
    one = str(min(os.sched_getaffinity(0)))
    shown = subprocess.run(
        ["taskset", "-c", one, sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "1"


def test_an_exclusive_job_runs_alone_and_is_not_starved(executor: LocalExecutor, tmp_path: Path) -> None:
    mark = "echo start %s $(date +%%s%%N) >> {0}; sleep 0.2; echo end %s $(date +%%s%%N) >> {0}".format(
        tmp_path / "log"
    )
    jobs = [sh(f"j{i}", mark % (i, i)) for i in range(3)]
    jobs.insert(1, sh("alone", mark % ("alone", "alone"), exclusive=True))
    executor.submit(jobs)
    assert executor.wait(PATIENCE)
    events = [line.split()[:2] for line in (tmp_path / "log").read_text().splitlines()]
    at = events.index(["start", "alone"])
    assert at == 2, "it was second in line"
    assert events[at + 1] == ["end", "alone"]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (sh("a", "true", gpus=1), "resources.gpus = 1"),
        (sh("a", "true", nodes=2), "nodes = 2"),
        (sh("a", "true", "b"), "unknown jobs"),
        (sh("a", "true", "a"), "in a circle"),
        (Job("a", ("true",), after_ids=("99",)), "after_ids names unknown jobs"),
    ],
)
def test_a_job_that_can_never_run_is_refused(executor: LocalExecutor, job: Job, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        executor.submit([job])
    assert executor.idle


def test_a_repeated_name_is_refused(executor: LocalExecutor) -> None:
    with pytest.raises(ValueError, match="used twice"):
        executor.submit([sh("a", "true"), sh("a", "true")])


def test_cancel_ends_a_running_job_and_what_waits_for_it(executor: LocalExecutor, tmp_path: Path) -> None:
    ids = executor.submit([sh("long", f"echo $$ > {tmp_path}/pid; exec sleep 60"), sh("next", "true", "long")])
    executor.poll()
    pid = number_in(tmp_path / "pid")
    executor.cancel([ids["long"], "unknown"])
    assert executor.wait(PATIENCE)
    assert not alive(pid)
    assert {state.phase for state in executor.states(ids.values()).values()} == {Phase.CANCELLED}


def test_a_job_gets_its_grace_to_save(tmp_path: Path) -> None:
    script = f"trap 'sleep 0.3; touch {tmp_path}/saved; exit 0' TERM; touch {tmp_path}/up; while :; do sleep 0.05; done"
    with LocalExecutor(tmp_path / "logs", slots=1, gpus=[], grace_seconds=PATIENCE) as executor:
        executor.submit([sh("saver", script)])
        executor.poll()
        assert eventually((tmp_path / "up").exists)
    assert (tmp_path / "saved").exists()


def test_a_job_that_ignores_sigterm_is_killed_with_its_children(executor: LocalExecutor, tmp_path: Path) -> None:
    script = f"trap '' TERM; sh -c 'echo $$ > {tmp_path}/inner; sleep 60' & echo $$ > {tmp_path}/outer; wait; sleep 60"
    executor.submit([sh("stubborn", script)])
    executor.poll()
    pids = [number_in(tmp_path / "inner"), number_in(tmp_path / "outer")]
    executor.close()
    assert eventually(lambda: not any(alive(pid) for pid in pids))


SHOW = "echo $MLKV_LOCAL_JOB $MLKV_LOCAL_RANK of $MLKV_LOCAL_RANKS with $OMP_NUM_THREADS"


def test_processes_of_one_job_know_which_they_are(executor: LocalExecutor) -> None:
    ids = executor.submit([sh("pair", SHOW, tasks_per_node=2), sh("alone", SHOW), sh("many", SHOW, tasks_per_node=3)])
    assert executor.wait(PATIENCE)
    printed = {name: sorted(executor.output(id).read_text().splitlines()) for name, id in ids.items()}
    assert [line.split(" ", 1)[1] for line in printed["pair"]] == ["0 of 2 with 3", "1 of 2 with 3"]
    assert [line.split(" ", 1)[1] for line in printed["alone"]] == ["0 of 1 with 3"]
    assert [line.split(" ", 1)[1] for line in printed["many"]] == [f"{i} of 3 with 2" for i in range(3)]
    assert [len({line.split()[0] for line in lines}) for lines in printed.values()] == [1, 1, 1]
    assert len({lines[0].split()[0] for lines in printed.values()}) == 3, "no two jobs have one name"


def test_a_process_that_fails_ends_the_others_of_its_job(executor: LocalExecutor, tmp_path: Path) -> None:
    script = f"[ $MLKV_LOCAL_RANK = 0 ] || {{ touch {tmp_path}/up; exec sleep 60; }}\n"
    script += f"while [ ! -e {tmp_path}/up ]; do sleep 0.01; done; exit 7"
    ids = executor.submit([sh("pair", script, tasks_per_node=2)])
    assert executor.wait(PATIENCE)
    state = executor.states(ids.values())[ids["pair"]]
    assert (state.phase, state.reason) == (Phase.FAILED, "exit status 7")


def test_what_a_job_leaves_behind_ends_with_it(executor: LocalExecutor, tmp_path: Path) -> None:
    ids = executor.submit([sh("forgetful", f"sleep 60 & echo $! > {tmp_path}/pid; exit 0")])
    assert executor.wait(PATIENCE)
    assert executor.states(ids.values())[ids["forgetful"]].phase is Phase.DONE
    assert eventually(lambda: not alive(number_in(tmp_path / "pid")))


def test_an_exception_in_the_launcher_ends_the_jobs(tmp_path: Path) -> None:
    pids = []

    def interrupted() -> None:
        with LocalExecutor(tmp_path, slots=1, gpus=[]) as executor:
            executor.submit([sh("long", f"echo $$ > {tmp_path}/pid; exec sleep 60")])
            executor.poll()
            pids.append(number_in(tmp_path / "pid"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not alive(pids[0])


LAUNCHER = """
import pathlib, sys
from slurm.jobs import Job
from slurm.local import LocalExecutor
folder = pathlib.Path(sys.argv[1])
saves = sys.argv[2] == "saves"
inner = f"trap {'exit' if saves else ':'} TERM; echo $$ > {folder}/inner; for i in $(seq 60); do sleep 1; done"
at_the_end = f"touch {folder}/told; exit" if saves else ":"
outer = f"trap '{at_the_end}' TERM; sh -c '{inner}' & echo $$ > {folder}/outer; wait; wait"
executor = LocalExecutor(folder, slots=1, gpus=[], grace_seconds=float(sys.argv[3]))
executor.submit([Job("long", ("sh", "-c", outer))])
executor.wait()
"""


@pytest.mark.parametrize(("job", "grace"), [("saves", PATIENCE), ("is stubborn", 0.5)])
def test_jobs_die_with_a_launcher_that_is_killed_outright(job: str, grace: float, tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path), job, str(grace)], cwd=ROOT)
    try:
        pids = [number_in(tmp_path / "inner"), number_in(tmp_path / "outer")]
    finally:
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
    assert eventually(lambda: not any(alive(pid) for pid in pids))
    assert (tmp_path / "told").exists() is (job == "saves"), "SIGTERM comes first, so that a worker can save"


@st.composite
def graphs(draw: st.DrawFn) -> list[Job]:
    """Up to ten jobs, each after some earlier ones, given in any order; some fail."""
    jobs = []
    for i in range(draw(st.integers(1, 10))):
        parents = draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()
        fails = draw(st.integers(0, 5)) == 0
        script = f"echo start {i} >> events; {'exit 1' if fails else f'echo end {i} >> events'}"
        jobs.append(sh(str(i), script, *(str(parent) for parent in parents)))
    return draw(st.permutations(jobs))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=graphs(), slots=st.integers(1, 3))
def test_any_graph_respects_order_and_the_cap(jobs: list[Job], slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder, LocalExecutor(Path(folder), slots=slots, gpus=[]) as executor:
        monkeypatch.chdir(folder)
        Path("events").touch()
        ids = executor.submit(jobs)
        most = 0
        while not executor.idle:
            executor.poll()
            most = max(most, executor.running)
        events = [line.split() for line in Path("events").read_text().splitlines()]
        ended = {name for what, name in events if what == "end"}
        phases = {name: executor.states([id])[id].phase for name, id in ids.items()}
        assert most <= slots
        for job in jobs:
            runnable = all(parent in ended for parent in job.after)
            assert (["start", job.name] in events) == runnable
            expected = Phase.DONE if job.name in ended else Phase.FAILED if runnable else Phase.CANCELLED
            assert phases[job.name] is expected
            for parent in job.after if runnable else ():
                assert events.index(["end", parent]) < events.index(["start", job.name])
        os.chdir(ROOT)
