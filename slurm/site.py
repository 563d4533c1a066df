"""The limits of a site, read before anything is queued: array size, partitions, nodes, jobs that a user may queue."""

from __future__ import annotations

import getpass
import re
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from .profile import Profile
from .queue import QueueError, command
from .resources import Resources

UNLIMITED = 10**9


@dataclass(frozen=True)
class Nodes:
    """Equal nodes of one partition. `minutes`: the partition's longest time limit."""

    partition: str
    default: bool
    count: int
    cpus: int
    memory_mb: int
    gpus: int
    minutes: int


def max_array_size() -> int:
    """The largest number of tasks in an array; task indices are below it. Raises QueueError."""
    shown = command("scontrol", "show", "config")
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    if match is None:
        raise QueueError("`scontrol show config` does not print MaxArraySize")
    return int(match.group(1))


def nodes() -> list[Nodes]:
    """Every kind of node in every partition that this user may see. Raises QueueError."""
    shown = command("sinfo", "--noheader", "--exact", "--format=%P|%D|%c|%m|%G|%l")
    return [parse_nodes(line) for line in shown.splitlines()]


def parse_nodes(line: str) -> Nodes:
    partition, count, cpus, memory, gres, limit = line.split("|")
    gpus = sum(int(number) for number in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", gres))
    size = (int(count), int(cpus.rstrip("+")), int(memory.rstrip("+")), gpus)
    return Nodes(partition.rstrip("*"), partition.endswith("*"), *size, parse_minutes(limit))


def parse_minutes(text: str) -> int:
    """SLURM's `days-hours:minutes:seconds` (left parts may be missing), rounded down to minutes."""
    if not text[0].isdigit():
        return UNLIMITED
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, _ = [*parts, 0, 0][:3] if days else [*[0] * (3 - len(parts)), *parts]
    return int(days or 0) * 24 * 60 + hours * 60 + minutes


def problems(profile: Profile, resources: Resources, kinds: list[Nodes]) -> list[str]:
    """Why no node of the partition could ever run such a job: one line for each reason, with what the site has."""
    partitions = sorted({kind.partition for kind in kinds})
    if profile.partition and (unknown := set(profile.partition.split(",")) - set(partitions)):
        return [f"cluster.partition = {sorted(unknown)[0]}: this site has {', '.join(partitions)}"]
    chosen = profile.partition.split(",") if profile.partition else None
    usable = [kind for kind in kinds if (kind.partition in chosen if chosen else kind.default)]
    if not usable:
        return [f"cluster.partition is empty and this site has no default: choose from {', '.join(partitions)}"]
    usable_names = "/".join(sorted({kind.partition for kind in usable}))
    memory_mb = round((resources.memory_gb or profile.memory_gb or 0) * 1024)
    limits = {
        "gpus": (resources.gpus, max(kind.gpus for kind in usable), "GPUs per node"),
        "cpus": (resources.cpus * resources.tasks, max(kind.cpus for kind in usable), "CPUs per node"),
        "memory_gb": (memory_mb, max(kind.memory_mb for kind in usable), "MB per node"),
        "minutes": (profile.minutes(resources), max(kind.minutes for kind in usable), "minutes"),
        "nodes": (resources.nodes, _node_count(usable), "nodes"),
    }
    return [
        f"resources.{name}: {requested} {unit} requested, partition {usable_names} has {most}"
        for name, (requested, most, unit) in limits.items()
        if requested > most
    ]


def _node_count(usable: list[Nodes]) -> int:
    """The most nodes that one job can have: SLURM starts a job in one partition, whatever list it is given."""
    partitions = {kind.partition for kind in usable}
    return max(sum(kind.count for kind in usable if kind.partition == partition) for partition in partitions)


def room(profile: Profile) -> int:
    """The number of jobs that this user may still queue: the lowest of the profile's, the association's and the QOS's
    limit on submitted jobs, less the user's jobs in the queue. UNLIMITED where no limit is known; sbatch may know more
    (a partition's QOS)."""
    limits = [limit for limit in (profile.max_submit, *_accounted_limits(profile)) if limit is not None]
    if not limits:
        return UNLIMITED
    queued = command("squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i")
    return max(0, min(limits) - len(queued.splitlines()))


def start_estimate(script: Path) -> datetime | None:
    """When this batch script would start, by `sbatch --test-only`; None if SLURM does not say. Raises ValueError with
    SLURM's own words where it would refuse the job."""
    done = subprocess.run(
        ["sbatch", "--test-only", str(script)], capture_output=True, text=True, check=False, timeout=60
    )
    message = done.stderr.strip()
    if done.returncode:
        raise ValueError(message.removeprefix("allocation failure: ") or "sbatch --test-only failed")
    match = re.search(r"to start at (\S+)", message)
    return datetime.fromisoformat(match.group(1)) if match else None


def _accounted_limits(profile: Profile) -> list[int]:
    """MaxSubmitJobs of the user's associations with the account, and of the QOS that applies."""
    try:
        user = [f"user={getpass.getuser()}"] + ([f"account={profile.account}"] if profile.account else [])
        shown = _table("association", *user, columns="MaxSubmitJobs,DefaultQOS")
        defaults = {qos for _, qos in shown if qos}
        names = [profile.qos] if profile.qos else sorted(defaults) or ["normal"]
        of_qos = _table("qos", *names, columns="MaxSubmitJobsPU,MaxSubmitJobsPA")
    except QueueError:
        return []  # a site without accounting has no such limits
    return [int(cell) for cell in [*(row[0] for row in shown), *(cell for row in of_qos for cell in row)] if cell]


def _table(what: str, *which: str, columns: str) -> list[list[str]]:
    shown = command("sacctmgr", "--noheader", "--parsable2", "show", what, *which, f"format={columns}")
    return [line.split("|") for line in shown.splitlines()]
