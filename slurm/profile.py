"""The settings of one site, the same for every job. Fields are sbatch's options of the same name unless noted."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .jobs import Job
from .resources import Resources

RESERVED = (
    "array",
    "dependency",
    "kill-on-invalid-dep",
    "output",
    "error",
    "open-mode",
    "signal",
    "job-name",
    "requeue",
)
"""sbatch options that `extra` may not set, because submission sets them."""


@dataclass(frozen=True)
class Profile:
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gres: str = "gpu:{gpus}"
    """Requested by jobs that need GPUs; `gpu:a100:{gpus}` names a type."""
    constraint: str | None = None
    time: int | None = None
    """Time limit in minutes of every job, in place of its resources' `minutes`."""
    memory_gb: float | None = None
    """Per node, for jobs whose resources do not set it."""
    setup: tuple[str, ...] = ()
    """Shell lines to run on the node before the command (`module load …`, `source …`)."""
    python: str | None = None
    """Shell words in place of this process's interpreter: another path, or `apptainer exec image.sif python`."""
    max_running: int | None = None
    """How many tasks of one array run at a time."""
    max_submit: int | None = None
    """How many jobs may be in the queue, where sacctmgr does not tell the site's limit."""
    warning_seconds: int = 120
    """The command gets SIGUSR2 this many seconds before its time limit (SLURM may add up to a minute)."""
    max_requeues: int = 100
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further sbatch options by their long name: `{"reservation": "mine", "nice": 100, "exclusive": True}`."""

    def __post_init__(self) -> None:
        minimum = {
            "time": 1,
            "memory_gb": 0.001,
            "max_running": 1,
            "max_submit": 1,
            "warning_seconds": 1,
            "max_requeues": 0,
        }
        for name, low in minimum.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} = {value}: must be at least {low}")
        if taken := [name for name in self.extra if name.replace("_", "-") in RESERVED]:
            raise ValueError(f"extra.{taken[0]}: set by submission itself (also {', '.join(RESERVED)})")
        try:
            self.gres.format(gpus=1)
        except (KeyError, IndexError, ValueError):
            raise ValueError(f"gres = {self.gres!r}: the only field it can have is {{gpus}}") from None

    def minutes(self, resources: Resources) -> int:
        return self.time or resources.minutes

    def parameters(self, resources: Resources) -> dict[str, Any]:
        """The keywords of submitit.SlurmExecutor.update_parameters for jobs with these resources."""
        memory_gb = resources.memory_gb or self.memory_gb
        options = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gres": self.gres.format(gpus=resources.gpus) if resources.gpus else None,
            "mem": f"{round(memory_gb * 1024)}M" if memory_gb else None,
            "exclusive": resources.exclusive or None,
        }
        return {name: value for name, value in options.items() if value is not None} | {
            "time": self.minutes(resources),
            "nodes": resources.nodes,
            "ntasks_per_node": resources.tasks,
            "cpus_per_task": resources.cpus,
            "signal_delay_s": self.warning_seconds,
            "wckey": None,  # submitit's own default is refused where wckeys are enforced
            "stderr_to_stdout": True,
            # Since SLURM 22.05 srun does not inherit the job's --cpus-per-task. When one rank fails, the others
            # would wait for it in a collective operation until the time limit.
            "srun_args": [f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=1"],
        }

    def command(self, job: Job) -> str:
        """The job's argv as one shell line, with `python` in place of this interpreter."""
        if self.python and job.argv[0] == sys.executable:
            return " ".join([self.python, shlex.join(job.argv[1:])])
        return shlex.join(job.argv)
