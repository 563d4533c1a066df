"""The limits of a site: array size, partitions, nodes, jobs that a user may queue.

Whether a job can run is for sbatch to say (sbatch.py). What is read here adds words to its answer, and never refuses a
job by itself: a site has rules that none of these tables show.
"""

from __future__ import annotations

import os
import pwd
import re
from dataclasses import dataclass

from .command import QueueError, output, table
from .limits import UNLIMITED
from .profile import Profile
from .queue import queued_jobs
from .resources import Resources

_AWAY = re.compile(r"down|drain|fail|unknown|perfctrs|.*\*$")
"""States of nodes that start no job just now; a star marks those that do not answer."""
DEFAULT_ARRAY_SIZE = 1001
"""SLURM's own MaxArraySize, where a site does not say."""


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
    """The largest number of tasks in an array; task indices are below it. Where scontrol does not tell it, SLURM's
    default: a larger array than the site allows is cut when sbatch refuses it."""
    try:
        match = re.search(r"^MaxArraySize\s*=\s*(\d+)", output("scontrol", "show", "config"), re.MULTILINE)
    except QueueError:
        match = None
    return max(1, int(match.group(1))) if match else DEFAULT_ARRAY_SIZE


def nodes() -> list[Nodes]:
    """Every kind of node in every partition; in hidden ones too, as sbatch takes jobs for them. Raises QueueError."""
    columns = ("PARTITION", "NODES", "CPUS", "MEMORY", "GRES", "TIMELIMIT")
    rows = table("sinfo", "--all", "--exact", "--format=%P|%D|%c|%m|%G|%l", columns=columns)
    try:
        return [parse_nodes("|".join(row)) for row in rows]
    except (ValueError, IndexError):
        raise QueueError(f"sinfo printed {'|'.join(rows[0])[:60]!r}, which is no line of its table") from None


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


def nodes_away(profile: Profile) -> bool:
    """Whether nodes of the partition are down, drained or failing just now, or the partition is. Raises
    QueueError."""
    rows = table("sinfo", "--all", "--format=%P|%a|%T", columns=("PARTITION", "AVAIL", "STATE"))
    wanted = (profile.partition or os.environ.get("SBATCH_PARTITION") or "").split(",")
    usable = [row for row in rows if row[0].rstrip("*") in wanted or (wanted == [""] and row[0].endswith("*"))]
    return any(avail != "up" or _AWAY.match(state) for _, avail, state in usable)


def problems(profile: Profile, resources: Resources, kinds: list[Nodes]) -> list[str]:
    """Why no node of the partition could ever run such a job, by sinfo's table: a line for each reason, with what the
    site has."""
    wanted = profile.partition or os.environ.get("SBATCH_PARTITION")
    partitions = sorted({kind.partition for kind in kinds})
    if wanted and (unknown := set(wanted.split(",")) - set(partitions)):
        name = "cluster.partition" if profile.partition else "SBATCH_PARTITION"
        return [f"{name} = {sorted(unknown)[0]}: this site has {', '.join(partitions)}"]
    usable = [kind for kind in kinds if (kind.partition in wanted.split(",") if wanted else kind.default)]
    if not usable:
        return [f"cluster.partition is empty and this site has no default: choose from {', '.join(partitions)}"]
    usable_names = "/".join(sorted({kind.partition for kind in usable}))
    memory_mb = round((profile.memory_of(resources) or 0) * 1024)
    limits = {
        "gpus": (resources.gpus, max(kind.gpus for kind in usable), "GPUs per node"),
        "cpus": (resources.cpus * resources.tasks, max(kind.cpus for kind in usable), "CPUs per node"),
        "memory_gb": (memory_mb, max(kind.memory_mb for kind in usable), "MB per node"),
        "minutes": (min(profile.minutes(resources), UNLIMITED), max(kind.minutes for kind in usable), "minutes"),
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
    """The number of jobs that this user may still queue by the profile's own limit; UNLIMITED where it has none. Raises
    QueueError."""
    if profile.max_submit is None:
        return UNLIMITED
    return max(0, profile.max_submit - queued_jobs(user()))


def user() -> str:
    """The user whose jobs these are: SLURM goes by the process's user id, and not by USER or LOGNAME."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
