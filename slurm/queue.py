"""What the queue says about jobs: one `squeue`, then `sacct` for what it has forgotten, if the site keeps accounts."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator

from submitit.slurm.slurm import read_job_id

from .arrays import ranges
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
PHASE_OF = {word: phase for phase, words in PHASES.items() for word in words}
FORGOTTEN = JobState(Phase.UNKNOWN, "not in the queue, and no accounting knows it")
IDS_PER_CALL = 500
"""Job ids on one command line."""


class QueueError(RuntimeError):
    """SLURM could not be asked, or refused; the text is its own."""


def command(*argv: str, timeout_seconds: float = 60.0) -> str:
    """Run a SLURM command; its stdout. Raises QueueError with its first line of complaint."""
    try:
        done = subprocess.run(
            argv, env=_plain_environment(), capture_output=True, text=True, check=False, timeout=timeout_seconds
        )
    except FileNotFoundError:
        raise QueueError(f"{argv[0]} is not installed here") from None
    except subprocess.TimeoutExpired:
        raise QueueError(f"{argv[0]} did not answer within {timeout_seconds:.0f} s") from None
    if done.returncode:
        complaint = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[0]
        raise QueueError(f"{argv[0]}: {complaint}")
    return done.stdout


def states(ids: Iterable[JobId]) -> dict[JobId, JobState]:
    """The state of each id (`12` or `12_3`); UNKNOWN where nothing knows the job any more.

    Raises QueueError if squeue itself cannot be asked: then nothing is known, which is different from UNKNOWN.
    """
    wanted = list(dict.fromkeys(ids))
    found = _from_squeue(wanted)
    if missing := [id for id in wanted if id not in found]:
        found |= _from_sacct(missing)
    return {id: found.get(id, FORGOTTEN) for id in wanted}


def parse_state(word: str, reason: str) -> JobState:
    """SLURM's word, which may carry more (`CANCELLED by 0`), and its reason."""
    phase = PHASE_OF.get(word.split()[0].rstrip("+") if word.strip() else "", Phase.UNKNOWN)
    said = "" if reason in ("None", "(null)") else reason
    more = word.strip() if word.strip() != phase and phase in (Phase.FAILED, Phase.CANCELLED, Phase.UNKNOWN) else ""
    return JobState(phase, said or more)


def _from_squeue(ids: list[JobId]) -> dict[JobId, JobState]:
    found: dict[JobId, JobState] = {}
    for some in _base_ids(ids):
        try:
            shown = command("squeue", "--noheader", "--array", "--states=all", f"--jobs={some}", "--format=%i|%T|%r")
        except QueueError as error:
            if "Invalid job id" not in str(error):
                raise
            continue  # what squeue says of a single id that it has forgotten
        for line in shown.splitlines():
            id, word, reason = line.split("|", 2)
            found[id] = parse_state(word, reason)
    return _of_each(ids, found)


def _of_each(ids: list[JobId], found: dict[JobId, JobState]) -> dict[JobId, JobState]:
    """When the last waiting tasks of an array are cancelled, SLURM may keep a single entry without an index."""
    return {id: found.get(id) or found[id.split("_")[0]] for id in ids if {id, id.split("_")[0]} & found.keys()}


def _from_sacct(ids: list[JobId]) -> dict[JobId, JobState]:
    found: dict[JobId, JobState] = {}
    columns = "--format=JobID,State,ExitCode,Reason"
    for some in _base_ids(ids):
        try:
            shown = command("sacct", "--noheader", "--allocations", "--parsable2", columns, f"--jobs={some}")
        except QueueError:
            return found  # no accounting here, or none just now: the caller's records have the last word anyway
        for line in shown.splitlines():
            id, word, code, reason = line.split("|", 3)
            for single in expand(id):
                found[single] = parse_state(
                    word, reason if reason != "None" or code == "0:0" else f"exit status {code}"
                )
    return _of_each(ids, found)


def _base_ids(ids: list[JobId]) -> Iterator[str]:
    """Comma lists of the ids without their array indices: one array is asked for once."""
    bases = sorted({id.split("_")[0] for id in ids})
    for start in range(0, len(bases), IDS_PER_CALL):
        yield ",".join(bases[start : start + IDS_PER_CALL])


def expand(id: str) -> list[JobId]:
    """`12_[0-2,5%1]`, as sacct shows waiting tasks, as single ids."""
    single: list[JobId] = []
    for base, *index in read_job_id(id):
        first, last = (index[0], index[-1]) if index else ("", "")
        single += [f"{base}_{number}" for number in range(int(first), int(last) + 1)] if index else [base]
    return single


def named(name: str) -> str | None:
    """The id of the array with this (unique) job name, if SLURM knows one. An array's id has no index."""
    shown = command("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F")
    if not shown.strip():
        try:
            shown = command(
                "sacct",
                "--noheader",
                "--allocations",
                "--parsable2",
                "--format=JobID",
                f"--name={name}",
                "--starttime=now-30days",
            )
        except QueueError:
            return None
    ids = [id for line in shown.splitlines() if (id := re.match(r"\d+", line.strip()))]
    return ids[0].group() if ids else None


def cancel(ids: Iterable[JobId]) -> None:
    """End these jobs (an array's id without an index means all its tasks); ids that have ended or are unknown are
    ignored."""
    tasks: dict[str, list[int]] = {}
    for id in ids:
        array, _, index = id.partition("_")
        tasks.setdefault(array, []).extend([int(index)] if index else [])
    wanted = [f"{array}_[{ranges(indices)}]" if indices else array for array, indices in tasks.items()]
    for start in range(0, len(wanted), IDS_PER_CALL):
        try:
            command("scancel", "--quiet", *wanted[start : start + IDS_PER_CALL])
        except QueueError as error:
            if "Invalid job id" not in str(error):
                raise


def throttle(array_id: str, max_running: int) -> None:
    """Let so many tasks of a queued array run at a time; 0 lifts the limit."""
    command("scontrol", "update", f"JobId={array_id}", f"ArrayTaskThrottle={max_running}")


def _plain_environment() -> dict[str, str]:
    """The environment without what would change the output's format."""
    changing = ("SQUEUE_", "SACCT_", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "SINFO_")
    return {key: value for key, value in os.environ.items() if not key.startswith(changing)} | {"SLURM_BITSTR_LEN": "0"}
