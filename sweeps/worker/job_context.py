"""The job a worker runs in: who it is in the queue, which of the job's processes, and what the machine did to it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeps.store.schema import Environment
from sweeps.store.variables import variable

QUEUED = "MLKV_QUEUED"
"""Set in jobs that SLURM runs. Elsewhere SLURM's variables are those of another job."""

TOGETHER = ("MLKV_LOCAL_JOB", "MLKV_LOCAL_RANK", "MLKV_LOCAL_RANKS")
"""Set in jobs of this machine (slurm/local.py, slurm/guard.py): which, which of its processes, how many there are."""

SIGNALS = {
    signal.SIGUSR2: "warned by SIGUSR2 (time limit or preemption)",
    signal.SIGTERM: "ended by SIGTERM (cancelled, preempted, or its launcher closed)",
    signal.SIGINT: "interrupted from the keyboard",
    signal.SIGHUP: "ended by SIGHUP (its terminal was closed)",
}


@dataclass(frozen=True)
class JobContext:
    """A job's id, which of its runs this is, and which of its processes. Without a queue: no id, one process."""

    id: str = ""
    run: int = 0
    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    local_ranks: int = 1

    @classmethod
    def current(cls, environment: Mapping[str, str] = os.environ) -> JobContext:
        if not {QUEUED, "SLURM_PROCID", "SLURM_JOB_ID"} <= environment.keys():
            return cls._of_this_machine(environment)

        def number(name: str, default: int) -> int:
            return variable(name, int, default, "a whole number", environment)

        array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
        ranks, nodes = number("SLURM_STEP_NUM_TASKS", 1), number("SLURM_STEP_NUM_NODES", 1)
        return cls(
            id=f"{array}_{task}" if array else environment["SLURM_JOB_ID"],
            run=number("SLURM_RESTART_COUNT", 0),
            rank=number("SLURM_PROCID", 0),
            ranks=ranks,
            local_rank=number("SLURM_LOCALID", 0),
            local_ranks=max(1, ranks // nodes),
        )

    @classmethod
    def _of_this_machine(cls, environment: Mapping[str, str]) -> JobContext:
        """A process outside a job has no job id."""
        job = environment.get(TOGETHER[0], "")
        rank, ranks = (
            variable(name, int, default, "a whole number", environment)
            for name, default in zip(TOGETHER[1:], (0, 1), strict=True)
        )
        if ranks == 1:
            return cls()
        return cls(job, rank=rank, ranks=ranks, local_rank=rank, local_ranks=ranks)

    @property
    def nodes(self) -> int:
        return self.ranks // self.local_ranks

    def same_run(self, environment: Environment | None) -> bool:
        """Whether an attempt's environment was written by this run of this job."""
        if not self.id or environment is None:
            return False
        return (environment.job, environment.run) == (self.id, self.run)

    def group(self, address: str, port: int) -> dict[str, str]:
        """torch.distributed's environment of this process."""
        numbers = {
            "RANK": self.rank,
            "WORLD_SIZE": self.ranks,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_ranks,
            "MASTER_PORT": port,
        }
        return {"MASTER_ADDR": address} | {name: str(number) for name, number in numbers.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def out_of_memory_kills(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes of this job's control group the kernel has killed because memory ran out; 0 where the kernel
    does not report it."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            name = "memory.events" if not controllers else "memory.oom_control"
            found = _kills(root / controllers / path.lstrip("/") / name)
            if found is not None:
                return found
    return 0


def _kills(file: Path) -> int | None:
    try:
        counts = dict(line.split(" ", 1) for line in file.read_text().splitlines() if " " in line)
    except OSError:
        return None
    return int(counts.get("oom_kill", 0))
