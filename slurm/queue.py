"""States of jobs: one `squeue`, then `sacct` for jobs that slurmctld has forgotten, where the site has accounting."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from submitit.slurm.slurm import read_job_id

from .arrays import ranges
from .command import QueueError as QueueError
from .command import output, table
from .jobs import JobId, JobState, Phase

PHASES = {
    Phase.PENDING: (
        "PENDING",
        "CONFIGURING",
        "REQUEUED",
        "REQUEUE_FED",
        "REQUEUE_HOLD",
        "RESV_DEL_HOLD",
        "SPECIAL_EXIT",
    ),
    Phase.RUNNING: ("RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"),
    Phase.DONE: ("COMPLETED",),
    Phase.FAILED: ("FAILED", "BOOT_FAIL", "NODE_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL"),
    Phase.CANCELLED: ("CANCELLED", "REVOKED"),
    Phase.TIMEOUT: ("TIMEOUT", "DEADLINE"),
    Phase.PREEMPTED: ("PREEMPTED",),
    Phase.OUT_OF_MEMORY: ("OUT_OF_MEMORY",),
}
_SHOWN_ID = re.compile(r"\d+(?:_(?:\d+|\[[\d,%-]+\]))?")
PHASE_OF = {word: phase for phase, words in PHASES.items() for word in words}
FORGOTTEN = JobState(Phase.UNKNOWN, "not in the queue, and no accounting knows it")
IDS_PER_CALL = 500
"""Job ids on one command line."""


def states(ids: Iterable[JobId]) -> dict[JobId, JobState]:
    """The state of each id (`12` or `12_3`); UNKNOWN where neither squeue nor sacct knows the job.

    Raises QueueError if squeue does not answer: a job may then still be running, which UNKNOWN rules out.
    """
    unique = list(dict.fromkeys(ids))
    known = _from_squeue(unique)
    # slurmctld forgets a job MinJobAge seconds (by default 300) after its end.
    if missing := [id for id in unique if id not in known]:
        known |= _from_sacct(missing)
    return {id: known.get(id, FORGOTTEN) for id in unique}


def parse_state(word: str, reason: str) -> JobState:
    """A state from SLURM's word for it, which may say more than the phase (`CANCELLED by 0`), and SLURM's reason."""
    phase = PHASE_OF.get(word.split()[0].rstrip("+") if word.strip() else "", Phase.UNKNOWN)
    given = "" if reason in ("None", "(null)") else reason
    detail = word.strip() if word.strip() != phase and phase in (Phase.FAILED, Phase.CANCELLED, Phase.UNKNOWN) else ""
    return JobState(phase, given or detail)


def _from_squeue(ids: list[JobId]) -> dict[JobId, JobState]:
    known: dict[JobId, JobState] = {}
    for chunk in _base_ids(ids):
        try:
            rows = _squeue("--array", f"--jobs={chunk}", "--format=%i|%T|%r", columns=("JOBID", "STATE", "REASON"))
        except QueueError as error:
            if "Invalid job id" not in str(error):
                raise
            continue  # squeue's error for a single id that it has forgotten
        known |= {id: parse_state(word, reason) for id, word, reason in rows}
    return _of_each(ids, known)


def _of_each(ids: list[JobId], known: dict[JobId, JobState]) -> dict[JobId, JobState]:
    """The states of `ids`, by their own entry or by their array's: when the last waiting tasks of an array are
    cancelled, SLURM may keep a single entry without an index."""
    return {id: known.get(id) or known[id.split("_")[0]] for id in ids if {id, id.split("_")[0]} & known.keys()}


def _from_sacct(ids: list[JobId]) -> dict[JobId, JobState]:
    known: dict[JobId, JobState] = {}
    for chunk in _base_ids(ids):
        try:
            rows = _sacct(f"--jobs={chunk}", columns=("JobID", "State", "ExitCode", "Reason"))
        except QueueError:
            return known  # no accounting, or none just now: these jobs stay UNKNOWN and the store decides
        for id, word, code, reason in rows:
            state = parse_state(word, reason if reason != "None" or code == "0:0" else f"exit status {code}")
            known |= dict.fromkeys(expand(id) if _SHOWN_ID.fullmatch(id) else (), state)
    return _of_each(ids, known)


def _squeue(*argv: str, columns: tuple[str, ...]) -> list[list[str]]:
    # --all: else it leaves out jobs in partitions that a site hides, and those would be taken for lost.
    return table("squeue", "--all", "--states=all", *argv, columns=columns)


def _sacct(*argv: str, columns: tuple[str, ...]) -> list[list[str]]:
    return table("sacct", "--allocations", "--parsable2", f"--format={','.join(columns)}", *argv, columns=columns)


def _base_ids(ids: list[JobId]) -> Iterator[str]:
    """The ids of arrays, without task indices and each once, joined by commas for one command line each."""
    bases = sorted({id.split("_")[0] for id in ids})
    for start in range(0, len(bases), IDS_PER_CALL):
        yield ",".join(bases[start : start + IDS_PER_CALL])


def expand(id: str) -> list[JobId]:
    """Single ids out of `12_[0-2,5%1]`, the form in which sacct shows waiting tasks."""
    single: list[JobId] = []
    for base, *index in read_job_id(id):
        first, last = (index[0], index[-1]) if index else ("", "")
        single += [f"{base}_{number}" for number in range(int(first), int(last) + 1)] if index else [base]
    return single


def array_id_of(name: str) -> str | None:
    """The id of the array with this job name, which is unique; None if SLURM knows none. It has no task index."""
    rows = _squeue(f"--name={name}", "--format=%F|%j", columns=("ARRAY_JOB_ID", "NAME"))
    if not rows:
        try:
            rows = _sacct(f"--name={name}", "--starttime=now-30days", columns=("JobID", "JobName"))
        except QueueError:
            return None
    ids = [id for shown, _ in rows if (id := re.match(r"\d+", shown))]
    return ids[0].group() if ids else None


def queued_jobs(user: str) -> int:
    """How many jobs of a user are in the queue, each task of an array counted."""
    format = ("--array", f"--user={user}", "--format=%i|%T")
    return len(table("squeue", "--all", *format, columns=("JOBID", "STATE")))


def cancel(ids: Iterable[JobId]) -> None:
    """End these jobs; an array's id without an index means all its tasks. Jobs that have ended or are unknown are left
    alone."""
    tasks: dict[str, list[int]] = {}
    for id in ids:
        array, _, index = id.partition("_")
        tasks.setdefault(array, []).extend([int(index)] if index else [])
    targets = [f"{array}_[{ranges(indices)}]" if indices else array for array, indices in tasks.items()]
    for start in range(0, len(targets), IDS_PER_CALL):
        try:
            output("scancel", "--quiet", *targets[start : start + IDS_PER_CALL])
        except QueueError as error:
            if "Invalid job id" not in str(error):
                raise


def throttle(array_id: str, max_running: int) -> None:
    """Limit how many tasks of a queued array run at a time; 0 lifts the limit. One that has ended is left alone."""
    try:
        output("scontrol", "update", f"JobId={array_id}", f"ArrayTaskThrottle={max_running}")
    except QueueError as error:
        if not re.search(r"Invalid job id|already (?:completing|finished)", str(error)):
            raise
