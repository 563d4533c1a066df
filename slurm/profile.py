"""How one site wants its jobs: what stays the same whatever runs. Fields are sbatch's options of the same name unless
said otherwise."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .jobs import Job, Resources

OURS = ("array", "dependency", "kill-on-invalid-dep", "output", "error", "open-mode", "signal", "job-name", "requeue")
"""sbatch options that `extra` may not set: submission relies on them."""


@dataclass(frozen=True)
class Profile:
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gres: str = "gpu:{gpus}"
    """Asked for by jobs that need GPUs; `gpu:a100:{gpus}` names a type."""
    constraint: str | None = None
    time: int | None = None
    """Minutes for every job, in place of what its resources say."""
    memory_gb: float | None = None
    """Per node, for jobs whose resources leave it open."""
    setup: tuple[str, ...] = ()
    """Shell lines before the command, on the node (`module load …`, `source …`)."""
    python: str | None = None
    """Shell words in place of this process's interpreter: another path, or `apptainer exec image.sif python`."""
    max_running: int | None = None
    """Tasks of one array at a time."""
    max_submit: int | None = None
    """Jobs in the queue at a time, where the site does not say so through sacctmgr."""
    warning_seconds: int = 120
    """SIGUSR2 reaches the command so long before its time limit (SLURM may round up by a minute)."""
    max_requeues: int = 100
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further sbatch options by their long name: `{"reservation": "mine", "nice": 100, "exclusive": True}`."""

    def __post_init__(self) -> None:
        least = {
            "time": 1,
            "memory_gb": 0.001,
            "max_running": 1,
            "max_submit": 1,
            "warning_seconds": 1,
            "max_requeues": 0,
        }
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} = {value}: must be at least {low}")
        if taken := [name for name in self.extra if name.replace("_", "-") in OURS]:
            raise ValueError(f"extra.{taken[0]}: set by submission itself (also {', '.join(OURS)})")
        try:
            self.gres.format(gpus=1)
        except (KeyError, IndexError, ValueError):
            raise ValueError(f"gres = {self.gres!r}: only {{gpus}} can stand in it") from None

    def minutes(self, resources: Resources) -> int:
        return self.time or resources.minutes

    def parameters(self, resources: Resources) -> dict[str, Any]:
        """The keywords of submitit.SlurmExecutor.update_parameters for jobs with these resources."""
        memory_gb = resources.memory_gb or self.memory_gb
        given = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gres": self.gres.format(gpus=resources.gpus) if resources.gpus else None,
            "mem": f"{round(memory_gb * 1024)}M" if memory_gb else None,
            "exclusive": resources.exclusive or None,
        }
        return {name: value for name, value in given.items() if value is not None} | {
            "time": self.minutes(resources),
            "nodes": resources.nodes,
            "ntasks_per_node": resources.tasks_per_node,
            "cpus_per_task": resources.cpus,
            "signal_delay_s": self.warning_seconds,
            "wckey": None,  # submitit's own default is refused where wckeys are enforced
            "stderr_to_stdout": True,
            # Since 22.05 srun no longer takes the job's --cpus-per-task over; one rank's end must end the others.
            "srun_args": [f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=1"],
        }

    def command(self, job: Job) -> str:
        """The job's argv as one shell line, with `python` in place of this interpreter."""
        if self.python and job.argv[0] == sys.executable:
            return " ".join([self.python, shlex.join(job.argv[1:])])
        return shlex.join(job.argv)
