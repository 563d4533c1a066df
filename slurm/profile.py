"""The settings of one site, the same for every job. Fields are sbatch's options of the same name unless noted."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from .jobs import Job
from .limits import lines_of, memory_option, text_of, time_option
from .resources import Gigabytes, Minutes, Resources

RESERVED = (
    "array",
    "dependency",
    "error",
    "job-name",
    "kill-on-invalid-dep",
    "open-mode",
    "output",
    "parsable",
    "requeue",
    "signal",
    "test-only",
    "wait",
    "wrap",
)
"""sbatch options that `extra` may not set, because submission sets them or reads what they change."""
FIELD_OF = {
    "account": "account",
    "constraint": "constraint",
    "cpus-per-task": "resources.KIND.cpus",
    "gres": "gres",
    "mem": "memory_gb",
    "nodes": "resources.KIND.nodes",
    "ntasks-per-node": "resources.KIND.tasks_per_node",
    "partition": "partition",
    "qos": "qos",
    "time": "time",
}
"""sbatch options that `extra` may not set, because there is a field for them: the two could say different things."""
Names = Annotated[
    str,
    BeforeValidator(text_of),
    WithJsonSchema({"type": ["string", "integer", "array"], "items": {"type": ["string", "integer"]}, "minItems": 1}),
]
"""One name, or several joined by commas; configurations may write a list."""
_OPTION = re.compile(r"[a-z][a-z0-9-]*", re.ASCII)


@dataclass(frozen=True)
class Profile:
    partition: Names | None = None
    account: Names | None = None
    qos: Names | None = None
    gres: str | None = "gpu:{gpus}"
    """Requested by jobs that need GPUs; `gpu:a100:{gpus}` names a type, None requests nothing."""
    constraint: Names | None = None
    time: Minutes | None = None
    """Time limit in minutes of every job, in place of its resources' `minutes`."""
    memory_gb: Gigabytes | None = None
    """Per node, for jobs whose resources do not set it."""
    setup: Annotated[
        tuple[str, ...],
        BeforeValidator(lines_of),
        WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}}),
    ] = ()
    """Shell lines to run on the node before the command (`module load …`, `source …`)."""
    python: str | None = None
    """Shell words in place of this process's interpreter: another path, or `apptainer exec image.sif python`."""
    max_running: int | None = None
    """How many tasks of one array run at a time."""
    max_submit: int | None = None
    """How many jobs of the user's may be in the queue; unset: as many as sbatch takes."""
    warning_seconds: int = 120
    """The command gets SIGUSR2 this many seconds before its time limit (SLURM may add up to a minute)."""
    max_requeues: int = 100
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further sbatch options by their long name: `{"nice": 100, "exclude": ["n1", "n2"], "spread-job": True}`.
    A list is joined by commas; True stands for an option without a value; False and None leave the option out."""

    def __post_init__(self) -> None:
        minimum = {
            "time": 1,
            "memory_gb": 0,
            "max_running": 1,
            "max_submit": 1,
            "warning_seconds": 1,
            "max_requeues": 0,
        }
        for name, low in minimum.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} = {value}: must be at least {low}")
        for name in ("partition", "account", "qos", "constraint", "gres"):
            if len((getattr(self, name) or "").splitlines()) > 1:
                raise ValueError(f"{name}: must be one line")
        for name, value in self.extra.items():
            _check_option(name, value)
        try:
            fields = {found[1:] for found in Formatter().parse(self.gres or "")} - {
                (None, None, None),
                ("gpus", "", None),
            }
        except ValueError:  # a brace without its partner
            fields = {(self.gres, "", None)}
        if fields:
            raise ValueError(f"gres = {self.gres!r}: the only field it can have is {{gpus}}")

    @property
    def options(self) -> dict[str, str | bool]:
        """`extra` as sbatch reads it: option → value, True for an option without a value."""
        given = {name: value for name, value in self.extra.items() if value is not None and value is not False}
        return {name.replace("_", "-"): _option_value(value) for name, value in given.items()}

    def minutes(self, resources: Resources) -> int:
        return self.time or resources.minutes

    def memory_of(self, resources: Resources) -> float | None:
        """GB per node; None: the site's default."""
        return self.memory_gb if resources.memory_gb is None else resources.memory_gb

    def parameters(self, resources: Resources) -> dict[str, Any]:
        """The keywords of submitit.SlurmExecutor.update_parameters for jobs with these resources."""
        memory_gb = self.memory_of(resources)
        options = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gres": self.gres.format(gpus=resources.gpus) if self.gres and resources.gpus else None,
            "mem": None if memory_gb is None else memory_option(memory_gb),
            "exclusive": resources.exclusive or None,
        }
        return {name: value for name, value in options.items() if value is not None} | {
            "time": time_option(self.minutes(resources)),
            "nodes": resources.nodes,
            "ntasks_per_node": resources.tasks,
            "cpus_per_task": resources.cpus,
            "signal_delay_s": self.warning_seconds,
            "wckey": None,  # submitit's own default is refused where wckeys are enforced
            "stderr_to_stdout": True,
            # Since SLURM 22.05 srun does not inherit the job's --cpus-per-task. When one rank fails, the others
            # would wait for it in a collective operation until the time limit.
            # With `--export=NONE` the batch script sees almost no variables, and srun would pass on none of those that
            # the script sets.
            "srun_args": [f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=1", "--export=ALL"],
        }

    def command(self, job: Job) -> str:
        """The job's argv as one shell line, with `python` in place of this interpreter."""
        if self.python and job.argv[0] == sys.executable:
            return " ".join([self.python, shlex.join(job.argv[1:])])
        return shlex.join(job.argv)


def _check_option(name: str, value: Any) -> None:
    """Raises ValueError for an option of `extra` that submission or a field sets, or that has no such value."""
    option = name.replace("_", "-")
    if not _OPTION.fullmatch(option):
        raise ValueError(f"extra.{name}: no option of sbatch has such a name; write it out, in small letters")
    if option in RESERVED:
        raise ValueError(f"extra.{name}: set by submission itself (also {', '.join(RESERVED)})")
    if option in FIELD_OF:
        raise ValueError(f"extra.{name}: set cluster.{FIELD_OF[option]} instead")
    parts = value if isinstance(value, list | tuple) else [value]
    if any(not isinstance(part, str | int | float | None) for part in parts):
        raise ValueError(f"extra.{name} = {value}: must be a text, a number, true, or a list of texts and numbers")
    if len(str(_option_value(value)).splitlines()) > 1:
        raise ValueError(f"extra.{name}: must be one line")


def _option_value(value: Any) -> str | bool:
    if value is True:
        return True
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
