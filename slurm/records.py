"""One directory per submitted array: its commands, its output, and a record that maps job names to SLURM's ids.

The record is written before sbatch runs, and again with the id. A launcher that dies in between loses nothing: the
array's name is unique, so its id can still be learnt from SLURM, or from the output files, whose names hold it.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from submitit.core.utils import JobPaths

from . import queue
from .jobs import JobId

RECORD = "record.json"
PREFIX = "mlkv-"
"""How the names of all our arrays begin."""


@dataclass(frozen=True)
class ArrayRecord:
    """name: the array's job name in SLURM.
    tasks: our job's name → task index.
    array_id: None as long as it is not known.
    """

    name: str
    tasks: Mapping[str, int]
    created: float
    dependency: str | None = None
    array_id: str | None = None

    @property
    def kind(self) -> str:
        """Of its jobs."""
        return self.name.removeprefix(PREFIX).rpartition("-")[0]

    def ids(self) -> dict[str, JobId]:
        """Job name → id; empty as long as the array's id is not known."""
        return {} if self.array_id is None else {name: f"{self.array_id}_{i}" for name, i in self.tasks.items()}


def new_record(kind: str, tasks: Mapping[str, int], dependency: str | None) -> ArrayRecord:
    return ArrayRecord(f"{PREFIX}{kind}-{secrets.token_hex(4)}", dict(tasks), time.time(), dependency)


def write(folder: Path, record: ArrayRecord) -> None:
    directory = folder / record.name
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{RECORD}.{secrets.token_hex(4)}"  # process ids are not unique among hosts
    try:
        with temporary.open("w") as handle:
            json.dump(asdict(record), handle, indent=1)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(directory / RECORD)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read(folder: Path) -> list[ArrayRecord]:
    """All records of a folder, oldest first. Raises queue.QueueError for a damaged one: what its jobs do is not known,
    and to pass over it would submit them again."""
    return sorted(map(_read_one, folder.glob(f"*/{RECORD}")), key=lambda record: (record.created, record.name))


def _read_one(path: Path) -> ArrayRecord:
    try:
        record = ArrayRecord(**json.loads(path.read_bytes()))
        record.ids()
        if not isinstance(record.created, int | float) or not isinstance(record.name, str):
            raise TypeError("name, created: of another type")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise queue.QueueError(f"{path}: is damaged ({reason}); cancel its jobs (scancel), then delete it") from None
    return record


def recover(folder: Path) -> list[ArrayRecord]:
    """As `read`, with the ids that a launcher could not write before it died. A record that stays without an id was
    never queued, or its jobs ended before they wrote a line and SLURM has forgotten them.

    Raises queue.QueueError where SLURM is needed for an id and does not answer.
    """
    records = []
    for record in read(folder):
        if record.array_id is None and (id := queue.array_id_of(record.name) or _id_in_outputs(folder / record.name)):
            record = replace(record, array_id=id)
            with suppress(OSError):  # the id can be found again, and a reader need not be able to write here
                write(folder, record)
        records.append(record)
    return records


def output(folder: Path, record: ArrayRecord, index: int) -> Path:
    """The file with a task's stdout and stderr (rank 0's, where there are several); its runs append to one file."""
    return Path(JobPaths(folder / record.name, f"{record.array_id}_{index}", 0).stdout)


def _id_in_outputs(directory: Path) -> str | None:
    numbers: Iterator[str] = (path.name.split("_")[0] for path in directory.glob("*_*_*_log.out"))
    return next((number for number in numbers if number.isdigit()), None)
