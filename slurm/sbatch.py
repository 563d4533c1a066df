"""Gives batch scripts to sbatch: in what environment, and what its answer means."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from .command import Answer, NoAnswerError, QueueError, answer

FULL = re.compile(
    r"(?:Assoc|QOS)\w*Submit\w*|[^:\n]*(?:temporarily (?:un|dis)abled?|temporarily unavailable|queue full)[^,\n]*", re.I
)
"""sbatch's words for: not so many jobs at this time. Fewer may be taken, or the same ones later."""
POLICY, REASON = re.compile(r"job submit limit", re.I), re.compile(r"\b(?:Assoc|QOS)[A-Z]\w+")
"""The message of every limit ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"),
and the word that says which one it is. It comes first; old versions of SLURM leave it out."""
UNREACHABLE = re.compile(
    r"unable to contact|timed out|zero bytes|connect(?:ion)? (?:failure|refused)|standby|unexpected message|"
    r"resolve_ctls|configuration source|protocol authentication",
    re.I,
)
"""sbatch's words for: the controller did not answer. Whether it has the job is not known."""
NO_NODES = re.compile(r"node configuration is not available|required node not available", re.I)
TOO_LARGE = re.compile(r"invalid job array specification", re.I)


class RefusedError(ValueError):
    """sbatch refuses the job, with its own words."""


class NoNodesError(RefusedError):
    """`--test-only` finds no nodes for the job. It looks at those alone that are up; sbatch itself takes jobs for nodes
    that are down or drained for a while (measured on SLURM 22.05)."""


class FullError(RuntimeError):
    """sbatch takes no array of this size at this time. `certain`: it has not taken this one."""

    def __init__(self, words: str, *, certain: bool = True) -> None:
        super().__init__(words)
        self.certain = certain


def submit(script: Path, environment: Mapping[str, str]) -> str | None:
    """Queue a batch script that asks for a parsable answer; returns the job's id. None: it was accepted, and no id is
    printed (`--quiet`).

    Raises FullError, RefusedError, and QueueError where sbatch does not answer; it may then be queued all the same.
    """
    try:
        given = answer("sbatch", str(script), environment=environment)
    except NoAnswerError as error:
        if words := FULL.search(error.output):  # it tries again and again, for two minutes
            raise FullError(f"sbatch: {words.group()}", certain=False) from None
        raise
    _raise_for(given)
    return job_id(given.out)


def job_id(printed: str) -> str | None:
    """The id in what sbatch printed: `12`, `12;cluster` or `Submitted batch job 12`, alone on a line. A site may print
    notes before and after it, in which there are numbers too."""
    found = re.findall(r"^(?:Submitted batch job )?(\d+)(?:;\S*| on cluster \S+)?\s*$", printed, re.MULTILINE)
    return found[-1] if found else None


def start_estimate(script: Path, environment: Mapping[str, str]) -> datetime | None:
    """When this batch script would start, by `sbatch --test-only`; None if SLURM does not say. Raises as `submit`."""
    given = answer("sbatch", "--test-only", str(script), environment=environment)
    _raise_for(given)
    match = re.search(r"to start at (\S+)", given.err)
    try:
        return datetime.fromisoformat(match.group(1)) if match else None
    except ValueError:
        return None


def _raise_for(given: Answer) -> None:
    if not given.status:
        return
    complaint = given.complaint
    if UNREACHABLE.search(complaint):
        raise QueueError(f"sbatch: {complaint}")
    reason = REASON.search(complaint)
    if FULL.search(complaint) or TOO_LARGE.search(complaint) or (POLICY.search(complaint) and not reason):
        raise FullError(reason.group() if reason else complaint)
    raise NoNodesError(complaint) if NO_NODES.search(complaint) else RefusedError(complaint)


VARIABLES = {
    "array": ("SBATCH_ARRAY_INX",),
    "cpus-per-task": ("SBATCH_CPUS_PER_GPU",),
    "gres": ("SBATCH_GRES", "SBATCH_GPUS", "SBATCH_GPUS_PER_NODE", "SBATCH_GPUS_PER_TASK"),
    "mem": ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"),
    "requeue": ("SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"),
    "switches": ("SBATCH_REQ_SWITCH",),
    "time": ("SBATCH_TIMELIMIT",),
}
"""sbatch's options and the variables that mean the same or exclude them, where the names differ."""
FIELDS = {
    "cpus-per-task": "cluster.resources.KIND.cpus",
    "exclusive": "cluster.resources.KIND.exclusive",
    "gres": "cluster.gres",
    "mem": "cluster.memory_gb",
    "time": "cluster.resources.KIND.minutes or cluster.time",
    **{name: f"cluster.{name}" for name in ("account", "constraint", "partition", "qos")},
}
"""The fields that set an option of sbatch; the others come from `extra` or are set for every job."""
_OF_OTHER_JOBS = re.compile(
    r"SLURM|SRUN_|SUBMITIT_|SBATCH_WAIT$|SBATCH_(?:CPU|MEM)_BIND|(?:MASTER_(?:ADDR|PORT)|(?:LOCAL_)?(?:RANK|WORLD_SIZE))$"
)
_GPUS_OF_OTHER_JOBS = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
_OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


def overridden(options: Iterable[str], extra: Iterable[str]) -> dict[str, str]:
    """The variables of sbatch in this environment that options of a batch script replace, each with the field that
    holds the option. sbatch itself would let the variable win."""
    added, fields = set(extra), {}
    for option in options:
        for variable in VARIABLES.get(option, (f"SBATCH_{option.upper().replace('-', '_')}",)):
            if variable in os.environ:
                own = f"cluster.extra.{option}" if option in added else FIELDS.get(option, f"mlkv's own --{option}")
                fields[variable] = own
    return fields


def environment(without: Iterable[str]) -> dict[str, str]:
    """The environment for sbatch, which jobs inherit: with the user's own variables for sbatch, but `without` these;
    without the variables of a SLURM job that this process runs in, but with those that name the cluster."""
    dropped = {*without, *(_GPUS_OF_OTHER_JOBS if "SLURM_JOB_ID" in os.environ else ())}
    return {
        name: value
        for name, value in os.environ.items()
        if name in _OF_THE_CLUSTER or not (name in dropped or _OF_OTHER_JOBS.match(name))
    }
