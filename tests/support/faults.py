"""What the tests of sweeps on SLURM share: small lines, what a store tells, and faults done to a step that trains."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from slurm.local_cluster.cluster import LocalCluster
from slurm.local_cluster.daemons import end, listeners
from sweeps.store.stepdir import State, StepDir
from sweeps.store.store import Store
from tests.support.processes import PATIENCE, eventually
from tests.support.read_back import present
from tests.support.shell import ROOT, Shell

SMALL = ["layout=mqa", "sweep.baselines=[]", "evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]"]
SMALL += ["evaluate.axis=null", "measure.batch_sizes=[]"]
SLURM = ["cluster=slurm_local"]
HELD = "+cluster.extra={hold:true}"


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


def weights(store: Store) -> str:
    """The content of the one uptrained checkpoint."""
    return present(the(store, "uptrain").record()).outputs["model.safetensors"].sha256


def steps_done(state: State) -> int:
    """The training steps that the newest row of a step's metrics says are done."""
    return (state.progress and state.progress.step) or 0


def newest(store: Store, kind: str) -> StepDir:
    return max((s for s in store.steps() if s.kind == kind), key=lambda s: s.path.stat().st_mtime)


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
        return state.name == "RUNNING" and steps_done(state) >= number

    def job(self) -> str:
        """The id of the job that the latest attempt runs in."""
        last = self.step.attempt()
        assert last is not None
        return present(present(last.environment()).job)

    def jobs(self) -> set[str]:
        """The ids of the jobs that attempts ran in."""
        return {present(present(attempt.environment()).job) for attempt in self.step.attempts()}

    def supervisor(self) -> psutil.Process:
        return psutil.Process(json.loads(self.step.claim_file.read_text())["pid"])

    def child(self) -> psutil.Process:
        """The process that computes."""
        (child,) = (p for p in self.supervisor().children() if "sweeps.worker.child_main" in p.cmdline())
        return child

    @contextmanager
    def held_at(self, number: int) -> Iterator[psutil.Process]:
        """Its process stands still once it has got so far, so that a fault finds it there on any machine."""
        wait(lambda: self.reached(number), self)
        (child := self.child()).suspend()
        try:
            yield child
        finally:
            with suppress(psutil.NoSuchProcess):
                child.resume()

    def preempt(self, node: str) -> None:
        """An urgent job takes the node; this one goes back into the queue."""
        before, urgent = self.job(), ["--partition=urgent", f"--constraint={node}", "--cpus-per-task=8"]
        self.cluster.run("sbatch", *urgent, "--wrap=true", "--output=/dev/null")
        wait(lambda: "PENDING" in self.cluster.run("squeue", "-h", "-j", before, "-o", "%T"), self)

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

    def weights(self) -> str:
        return weights(self.shell.store)


STEPS = 240
UPTRAIN = [f"uptrain.steps={STEPS}", "uptrain.save_every=20", "uptrain.log_every=5"]


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


def wait(condition: Callable[[], object], *faults: Fault, seconds: float = PATIENCE) -> None:
    before = {f.name: f.step.state() for f in faults}
    assert eventually(lambda: bool(condition()), seconds, every=0.1), f"before: {before}; now: " + "; ".join(
        f"{f.name}: {f.step.state()}" for f in faults
    )


def nothing_was_repeated(fault: Fault) -> bool:
    """At most the work since the last checkpoint was done again, and no finished step was begun again."""
    store = fault.shell.store
    finished = all(count == 1 for id, count in attempts(store).items() if id != fault.step.id)
    rows = [[row.step or 0 for row in attempt.metrics() if "loss" in row.fields] for attempt in fault.step.attempts()]
    began = [steps[0] for steps in rows if steps]
    ended = [steps[-1] for steps in rows if steps]
    return finished and all(later > earlier - 25 for later, earlier in zip(began[1:], ended[:-1], strict=True))
