"""The store: a directory that holds every step ever run, shared by all sweeps, machines and users.

Plain files made for NFS. A step's record (`done.json`) is written last; a finished step is never modified. A claim is
an exclusively created file kept alive by a heartbeat; a stale one is taken over by renaming it. Losing a race costs a
duplicate attempt, never a corrupt step. A step is in stepdir.py, an execution of it in attempt.py; nothing
outside these three knows a path inside the store.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mlkv.files import discard
from sweeps.store.attempt import Attempt, Json
from sweeps.store.errors import StoreError
from sweeps.store.files import file_clock, read_json, utc_now, write_atomic, write_json
from sweeps.store.lines import append_rows, read_rows
from sweeps.store.names import check_name
from sweeps.store.stepdir import Claim, State, StateName, StepDir

__all__ = ["Attempt", "Claim", "SavedSweep", "State", "StateName", "StepDir", "Store", "StoreError", "TrackingDir"]


@dataclass(frozen=True)
class SavedSweep:
    """A frozen plan as it was submitted: `plan` (sweep-wide facts and steps) and one row per variant."""

    name: str
    number: int
    path: Path
    plan: Json
    variants: list[Json]

    @property
    def submissions(self) -> Path:
        """Where executors keep logs and job records of this plan."""
        return self.path / "submissions"

    @property
    def _cancel_file(self) -> Path:
        return self.path / "cancel"

    def request_cancel(self) -> None:
        """Ask whoever runs this plan to stop; a later launch clears the request."""
        self._cancel_file.touch()

    def clear_cancel(self) -> None:
        self._cancel_file.unlink(missing_ok=True)

    def cancel_requested(self) -> bool:
        return self._cancel_file.exists()


@dataclass(frozen=True)
class TrackingDir:
    """W&B's files of one sweep; a copy that can be thrown away. W&B makes `runs` in the folder it is given."""

    parent: Path

    @property
    def runs(self) -> Path:
        return self.parent / "wandb"

    def written(self, run: str) -> str:
        """What the newest whole copy of a run in here was made from; empty where there is none."""
        told = read_json(self.runs / "written" / f"{run}.json")
        return str(told["fingerprint"]) if told else ""

    def drop_before(self, folder: str, run: str) -> None:
        """Remove what was written of a run before the whole copy in `folder`."""
        for earlier in self.runs.glob(f"offline-run-*-{run}*"):
            if earlier.name < folder:
                discard(earlier)

    def mark_written(self, run: str, fingerprint: str) -> None:
        write_json(self.runs / "written" / f"{run}.json", {"fingerprint": fingerprint})


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    @classmethod
    def open(cls, root: Path) -> Store:
        """A store that can be written to, made if need be. Raises StoreError."""
        store = cls(root)
        try:
            store.root.mkdir(parents=True, exist_ok=True)
            file_clock(store.root)
        except OSError as error:
            raise StoreError(
                f"store = {store.root}: cannot be written ({error.strerror}); set store= or MLKV_STORE"
            ) from None
        return store

    def step(self, step_id: str) -> StepDir:
        return StepDir(self.root, step_id)

    def steps(self) -> Iterator[StepDir]:
        """Every step the store knows."""
        for path in sorted((self.root / "steps").glob("*/*")):
            yield StepDir(self.root, path.name)

    def find(self, prefix: str) -> StepDir:
        """The one step whose id begins with `prefix`. Raises StoreError."""
        found = [step for step in self.steps() if step.id.startswith(prefix)]
        if len(found) != 1:
            what = "no step" if not found else f"{len(found)} steps"
            raise StoreError(f"step {prefix}: {what} of that name in {self.root}")
        return found[0]

    def cache(self, name: str) -> Path:
        """A file that can be thrown away at any time."""
        return self.root / "cache" / name

    # Sweeps
    def sweep_names(self) -> list[str]:
        return sorted(path.name for path in (self.root / "sweeps").glob("*") if self._numbers(path.name))

    def _numbers(self, name: str) -> list[int]:
        paths = (self.root / "sweeps" / name).glob("*/plan.json")
        return sorted(int(path.parent.name) for path in paths if path.parent.name.isdigit())

    def check_sweep_name(self, name: str) -> None:
        """Raises StoreError for a name that no sweep may have here."""
        check_name("name", name)
        if name in self.import_names():
            raise StoreError(f"name = {name}: is that of imported results ({self.imported(name)}); choose another")

    def save_sweep(self, name: str, plan: Json, variants: list[Json], overrides: list[str]) -> SavedSweep:
        """A new numbered plan of a sweep, or the latest one where nothing in it changed. Raises StoreError."""
        self.check_sweep_name(name)
        if name in self.sweep_names() and self._is_same(latest := self.sweep(name), plan, variants):
            return latest
        number = max(self._numbers(name), default=0) + 1
        path = self.root / "sweeps" / name / str(number)
        path.mkdir(parents=True)
        (path / "overrides.txt").write_text("".join(f"{line}\n" for line in overrides), encoding="utf-8")
        rows = "".join(json.dumps(row, allow_nan=False) + "\n" for row in variants)
        (path / "variants.jsonl").write_text(rows, encoding="utf-8")
        write_json(path / "plan.json", {"name": name, "number": number, "created": utc_now(), **plan})
        return self.sweep(name, number)

    @staticmethod
    def _is_same(saved: SavedSweep, plan: Json, variants: list[Json]) -> bool:
        read_back = json.loads(json.dumps([plan, variants]))
        return read_back == [{key: saved.plan.get(key) for key in plan}, saved.variants]

    def sweep(self, name: str, number: int | None = None) -> SavedSweep:
        """The latest plan of a sweep, or the given one. Raises StoreError listing the sweeps there are."""
        numbers = self._numbers(name) if name in self.sweep_names() else []
        if not numbers or (number and number not in numbers):
            known = ", ".join(self.sweep_names()) or "none yet"
            raise StoreError(f"sweep {name}: not in {self.root} (sweeps there: {known})")
        path = self.root / "sweeps" / name / str(number or numbers[-1])
        with (path / "variants.jsonl").open(encoding="utf-8") as file:
            variants = [json.loads(line) for line in file]
        plan: Json = json.loads((path / "plan.json").read_text(encoding="utf-8"))
        return SavedSweep(name, int(path.name), path, plan, variants)

    # Results that others produced
    def imported(self, name: str) -> Path:
        """The table of an import, where there is one."""
        return self.root / "imports" / f"{name}.csv"

    def import_names(self) -> list[str]:
        return sorted(path.stem for path in (self.root / "imports").glob("*.csv") if not path.name.startswith("."))

    def check_import_name(self, name: str) -> None:
        """Raises StoreError for a name that no import may have here."""
        check_name("name", name)
        if name in self.sweep_names():
            raise StoreError(f"name = {name}: is a sweep's; set --name")

    def save_import(self, name: str, table: str) -> None:
        """Keep a table under a name, in place of one that is there. Raises StoreError for a name not to be had."""
        self.check_import_name(name)
        write_atomic(self.imported(name), table)

    def planning(self, step_id: str) -> SavedSweep | None:
        """Of the sweeps that have the step in their latest plan, the one that was planned last."""
        plans = [saved for name in self.sweep_names() if step_id in (saved := self.sweep(name)).plan["steps"]]
        return max(plans, key=lambda saved: str(saved.plan.get("created")), default=None)

    # The queue
    @property
    def queue(self) -> Path:
        """Where submission to SLURM keeps its records and the jobs' output."""
        return self.root / "queue"

    def note_jobs(self, rows: Iterable[Json]) -> None:
        """Write down which steps each job runs, before it is submitted, and which jobs were cancelled."""
        append_rows(self._jobs_file, rows)

    @property
    def _jobs_file(self) -> Path:
        return self.queue / "jobs.jsonl"

    def noted_jobs(self) -> list[Json]:
        return read_rows(self._jobs_file).rows

    def unreadable_jobs(self) -> str | None:
        """That some of what was noted of jobs is lost, in one line; None where all of it is there."""
        skipped = read_rows(self._jobs_file).skipped
        return f"{self._jobs_file}: {skipped} lines are no JSON and were skipped" if skipped else None

    # Tracking
    def tracking(self, sweep: str | None) -> TrackingDir:
        """Where W&B's files of a sweep lie; one place for all steps that were run by themselves. Raises StoreError."""
        if sweep is None:
            return TrackingDir(self.root / "tracking")
        if sweep not in self.sweep_names():
            check_name("sweep", sweep)
        return TrackingDir(self.root / "sweeps" / sweep)

    # Code
    @cached_property
    def code_hash(self) -> str:
        from sweeps.store.code import tree_hash

        return tree_hash()

    def code(self, tree_hash: str) -> Path:
        """Where the snapshot of that code lies, if there is one."""
        return self.root / "code" / tree_hash

    def snapshot_code(self) -> Path:
        """A copy of the code as it is now, which jobs import, so that editing the checkout changes no queued job. It is
        named by its own content: the checkout may change while it is copied."""
        from sweeps.store.code import copy_tree, tree_hash

        if (known := self.code(self.code_hash)).is_dir():
            return known
        temporary = self.root / "code" / f".copy-{secrets.token_hex(6)}"
        try:
            copy_tree(temporary)
            target = self.code(tree_hash(temporary))
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():  # else somebody's copy of the same tree is in place
                    raise
        finally:
            discard(temporary)
        return target
