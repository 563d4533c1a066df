"""The store: a directory that holds every step ever run, shared by all sweeps, machines and users.

Plain files made for NFS. A step's record (`done.json`) is written last; a finished step is never modified. A claim is
an exclusively created file kept alive by a heartbeat; a stale one is taken over by renaming it. Losing a race costs a
duplicate attempt, never a corrupt step. A step is in stepdir.py, an execution of it in attempt.py, a
sweep's frozen plans in plans.py; nothing outside these knows a path inside the store.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from mlkv.files import discard
from mlkv.registry import FOLDER, Extension
from sweeps.store import typed_json
from sweeps.store.attempt import Attempt
from sweeps.store.errors import DamagedFileError, StoreError
from sweeps.store.files import file_clock, read_cache, rename_once, utc_now, write_atomic, write_json, write_once
from sweeps.store.journal import SearchJournal
from sweeps.store.lines import append_rows, read_rows
from sweeps.store.names import check_name, same_place
from sweeps.store.outside import plain_reason
from sweeps.store.plans import TRACKED, SavedSweep, SweepFolder, sweep_folders
from sweeps.store.schema import Address, JobRow, Origin, PlanFile, VariantRow, WrittenMark
from sweeps.store.states import StepState
from sweeps.store.stepdir import Claim, State, StepDir
from sweeps.store.typed_json import as_json
from sweeps.store.user_cache import user_cache

__all__ = ["Attempt", "Claim", "SavedSweep", "State", "StepDir", "StepState", "Store", "StoreError", "TrackingDir"]


@dataclass(frozen=True)
class TrackingDir:
    """W&B's files of one sweep; a copy that can be thrown away. W&B makes `runs` in the folder it is given."""

    parent: Path

    @property
    def runs(self) -> Path:
        return self.parent / TRACKED

    def written(self, run: str) -> str:
        """What the newest whole copy of a run in here was made from; empty where there is none."""
        with suppress(DamagedFileError, OSError):
            if mark := typed_json.load(WrittenMark, self.mark(run)):
                return mark.fingerprint
        return ""

    def address(self) -> str:
        """The web address of the project that runs were last sent to; empty where none was, as far as is known."""
        with suppress(DamagedFileError, OSError):
            if known := typed_json.load(Address, self._address):
                return known.project
        return ""

    def note_address(self, project: str) -> None:
        if project != self.address():
            with suppress(OSError):  # it only saves a look at W&B's page
                write_json(self._address, as_json(Address(project=project)))

    @property
    def _address(self) -> Path:
        return self.runs / "address.json"

    def drop_hollow(self, run: str) -> None:
        """Remove the folders that W&B's client leaves of a run that it sent: without a `.wandb` file they hold nothing,
        and a dashboard would show each as one more run."""
        with suppress(OSError):
            for folder in self.runs.glob(f"run-*-{run}"):
                if not any(file.stat().st_size for file in folder.glob("*.wandb")):
                    discard(folder)
            for link in self.runs.glob("*"):
                if link.is_symlink() and not link.exists():
                    discard(link)

    def drop_before(self, folder: str, run: str) -> None:
        """Remove what was written of a run before the whole copy in `folder`."""
        for earlier in self.runs.glob(f"offline-run-*-{run}*"):
            if earlier.name < folder:
                discard(earlier)

    def mark_written(self, run: str, fingerprint: str) -> None:
        write_json(self.mark(run), as_json(WrittenMark(fingerprint=fingerprint)))

    def note_alert(self, about: str) -> bool:
        """Note that people are told of something; false where they have been. Raises OSError."""
        name = hashlib.sha256(about.encode()).hexdigest()[:16]
        return write_once(self.runs / "alerts" / name, f"{about}\n")

    def mark(self, run: str) -> Path:
        """The file that says what the copy of a run was made from."""
        return self.runs / "written" / f"{run}.json"


class Store:
    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.expanduser(root)).absolute()

    @classmethod
    def open(cls, root: Path) -> Store:
        """A store that can be written to, made if need be. Raises StoreError."""
        store = cls(root)
        try:
            store.root.mkdir(parents=True, exist_ok=True)
            file_clock(store.root)
        except OSError as error:
            raise StoreError(
                f"store = {store.root}: cannot be written ({plain_reason(error)}); set --store or MLKV_STORE"
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
        """A file that earlier code left; it can be thrown away at any time."""
        return self.root / "cache" / name

    # Sweeps
    def sweep_folders(self) -> Iterator[SweepFolder]:
        """Everything that looks like a sweep, whether it can be read or not."""
        return sweep_folders(self.root / "sweeps")

    def sweep_names(self) -> list[str]:
        """Sweeps that have a plan."""
        return sorted(path.name for path in (self.root / "sweeps").glob("*") if self._sweep(path.name).has_plan())

    def sweep_problem(self, name: str) -> str | None:
        """Why a sweep's latest plan cannot be read, or is older than an unfinished one; in one line. None for a name
        that is not there."""
        found = (folder.problem() or folder.misnamed() for folder in self.sweep_folders() if folder.name == name)
        return next(found, None)

    def sweep_path(self, name: str) -> Path:
        """The folder of all plans of a sweep."""
        return self._sweep(name).path

    def note(self, name: str) -> str:
        """What people wrote about a sweep; empty where nobody did."""
        return self._sweep(name).note()

    def write_note(self, name: str, text: str) -> None:
        """Replaces the note; an empty one removes it. Raises OSError."""
        self._sweep(name).write_note(text)

    def note_time(self, name: str) -> float:
        """When the note was last written, in seconds since the epoch; 0 where it never was."""
        return self._sweep(name).note_time()

    def _sweep(self, name: str) -> SweepFolder:
        return SweepFolder(self.root / "sweeps", name)

    def check_sweep_name(self, name: str) -> None:
        """Raises StoreError for a name that no sweep may have here."""
        check_name("name", name)
        if name in self.import_names():
            raise StoreError(f"name = {name}: is that of imported results ({self.imported(name)}); choose another")
        self._check_case(name, self._sweep(name).path)

    def save_sweep(self, name: str, plan: PlanFile, variants: list[VariantRow], overrides: list[str]) -> SavedSweep:
        """A new numbered plan of a sweep, or the latest one where nothing in it changed. Raises StoreError."""
        self.check_sweep_name(name)
        try:
            return self._sweep(name).save(plan, variants, overrides, created=utc_now())
        except OSError as error:
            raise StoreError(
                f"sweep {name}: its plan cannot be written to {self.root} ({plain_reason(error)})"
            ) from None

    def save_unpacked(self, name: str, plan: PlanFile, variants: list[VariantRow], origin: Origin) -> None:
        """The first plan of a sweep, as somebody else packed it. Raises StoreError and OSError."""
        self.check_sweep_name(name)
        self._sweep(name).save_unpacked(plan, variants, origin)

    def sweep(self, name: str, number: int | None = None) -> SavedSweep:
        """The latest plan of a sweep, or the given one. Raises StoreError listing the sweeps there are, or for a
        damaged plan."""
        names = self.sweep_names()
        if name in names and number in (None, *self._sweep(name).numbers()):
            return self._sweep(name).read(number)
        known = ", ".join(names) or "none yet"
        raise StoreError(self.sweep_problem(name) or f"sweep {name}: not in {self.root} (sweeps there: {known})")

    def plans(self, name: str) -> list[SavedSweep]:
        """Every plan of a sweep that can be read, the latest first."""
        folder, found = self._sweep(name), []
        for number in reversed(folder.numbers()):
            with suppress(StoreError):
                found.append(folder.read(number))
        return found

    def journal(self, name: str) -> SearchJournal:
        """What a search has chosen so far."""
        return SearchJournal(self._sweep(name).path, name)

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
        self._check_case(name, self.imported(name))

    def _check_case(self, name: str, path: Path) -> None:
        if other := same_place(path):
            raise StoreError(f"name = {name}: this file system takes it for {other}; choose another, or that spelling")

    def save_import(self, name: str, table: str) -> None:
        """Save a table under a name; it replaces an older one. Raises StoreError for a name that is not allowed."""
        self.check_import_name(name)
        write_atomic(self.imported(name), table)

    def planning(self, step_id: str) -> SavedSweep | None:
        """Of the sweeps that have the step in their latest plan, the one that was planned last."""
        plans = [saved for saved in self._readable_sweeps() if step_id in saved.plan.steps]
        return max(plans, key=lambda saved: saved.plan.created, default=None)

    def _readable_sweeps(self) -> Iterator[SavedSweep]:
        """The latest plan of every sweep, without damaged ones."""
        for name in self.sweep_names():
            with suppress(StoreError):
                yield self.sweep(name)

    # The queue
    @property
    def queue(self) -> Path:
        """Where submission to SLURM keeps its records and the jobs' output."""
        return self.root / "queue"

    def note_jobs(self, rows: Iterable[JobRow]) -> None:
        """Write down which steps each job runs, before it is submitted, and which jobs were cancelled."""
        append_rows(self._jobs_file, map(as_json, rows))

    @property
    def _jobs_file(self) -> Path:
        return self.queue / "jobs.jsonl"

    def noted_jobs(self) -> list[JobRow]:
        return read_rows(JobRow, self._jobs_file).rows

    def unreadable_jobs(self) -> str | None:
        """One line that says which notes on jobs cannot be read; None where all can."""
        skipped = read_rows(JobRow, self._jobs_file).skipped
        return f"{self._jobs_file}: {skipped} lines are no JSON and were skipped" if skipped else None

    # Tracking
    def tracking(self, sweep: str | None) -> TrackingDir:
        """Where W&B's files of a sweep lie; one place for all steps that were run by themselves. Raises StoreError."""
        if sweep is None:
            return TrackingDir(self.root / "tracking")
        if sweep not in self.sweep_names():
            check_name("sweep", sweep)
        return TrackingDir(self._sweep(sweep).path)

    # Code
    @cached_property
    def code_hash(self) -> str:
        """Of all code that jobs import."""
        from sweeps.store.code import tree_hash

        return tree_hash()

    def result_code(self, kind: str) -> str:
        """Of what the code that can change the results of a kind of step does."""
        from sweeps.store.result_code import KINDS_OF_EXTENSIONS

        return self._result_codes.get(kind, self._result_codes[KINDS_OF_EXTENSIONS])

    @cached_property
    def _result_codes(self) -> dict[str, str]:
        """Each tree is read once, as that takes half a second and a sweep starts many workers."""
        from sweeps.store.result_code import DEFINITION, KINDS_OF_EXTENSIONS, result_hashes

        known = user_cache("result_code") / f"{self.code_hash}.json"
        cached = read_cache(known)
        if str(cached.get(KINDS_OF_EXTENSIONS)).startswith(DEFINITION):
            return cached
        found = result_hashes()
        with suppress(OSError):
            write_json(known, found)
        return found

    def extension(self, digest: str) -> Path | None:
        """The copy of an extension file with this SHA-256, which jobs run, if there is one."""
        return next((self.root / "code" / FOLDER / digest).glob("*.py"), None)

    def copy_extension(self, extension: Extension) -> None:
        """Raises OSError. The copy goes by the digest of its content, so editing the original changes no job."""
        write_once(self.root / "code" / FOLDER / extension.digest / extension.path.name, extension.source.decode())

    def task_files(self, digest: str) -> Path:
        """Where the copy of a task definition and its files lies, if there is one."""
        return self.root / "code" / "tasks" / digest

    def copy_task(self, digest: str, copy: Callable[[Path], None]) -> None:
        """`copy` fills a folder. Raises OSError. Like an extension, the copy goes by the digest of its content."""
        target = self.task_files(digest)
        if target.is_dir():
            return
        temporary = target.with_name(f".copy-{secrets.token_hex(6)}")
        try:
            temporary.mkdir(parents=True)
            copy(temporary)
            rename_once(temporary, target)
        finally:
            discard(temporary)

    def packages(self, name: str) -> Path:
        """The requirements file of the packages that were installed where an attempt ran."""
        return self.root / "packages" / name / "requirements.txt"

    def note_packages(self, text: str) -> str | None:
        """The name of a list of packages, which is kept once for all attempts; None where it cannot be written."""
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        with suppress(OSError):
            if not self.packages(name).exists():
                write_once(self.packages(name), text)
            return name
        return None

    def code(self, tree_hash: str) -> Path:
        """Where the snapshot of that code lies, if there is one."""
        return self.root / "code" / tree_hash

    def snapshot_code(self) -> Path:
        """A copy of the code as it is now, which jobs import, so that editing the checkout changes no queued job. It is
        named by its own content: the checkout may change while it is copied. Raises OSError."""
        from sweeps.store.code import copy_tree, tree_hash

        if (known := self.code(self.code_hash)).is_dir():
            return known
        return self._copied(copy_tree, tree_hash)

    def snapshot_driver(self) -> Path:
        """The same of what a job imports and reads that plans while it runs. Raises OSError."""
        from sweeps.store.code import DRIVER, copy_tree, tree_hash

        return self._copied(partial(copy_tree, folders=DRIVER), lambda copy: f"driver-{tree_hash(copy, DRIVER)}")

    def _copied(self, copy: Callable[[Path], None], name: Callable[[Path], str]) -> Path:
        temporary = self.root / "code" / f".copy-{secrets.token_hex(6)}"
        try:
            copy(temporary)
            target = self.code(name(temporary))
            rename_once(temporary, target)  # else somebody else's copy of the same tree is in place
        finally:
            discard(temporary)
        return target
