"""The frozen plans of sweeps: `sweeps/<name>/<number>`, each a folder that appears whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mlkv.files import discard
from sweeps.store import typed_json
from sweeps.store.errors import StoreError
from sweeps.store.files import TEMPORARY_FOLDER, file_clock, is_number, write_atomic, write_folder_once
from sweeps.store.lines import read_rows
from sweeps.store.others import ORIGIN
from sweeps.store.outside import plain_reason
from sweeps.store.schema import Origin, PlanFile, VariantRow
from sweeps.store.typed_json import as_json

TRACKED, SUBMISSIONS = "wandb", "submissions"
"""Folders beside a sweep's plans and in each: W&B's files, and what executors keep."""
ABANDONED_SECONDS = 3600.0
"""A plan that has been in the writing for so long belongs to nobody."""


@dataclass(frozen=True)
class SavedSweep:
    """A frozen plan as it was submitted: `plan` (sweep-wide facts and steps) and one row per variant."""

    name: str
    number: int
    path: Path
    plan: PlanFile
    variants: list[VariantRow]

    def damaged(self, field: str, reason: object) -> StoreError:
        """The error of a field of the plan that cannot be used, in one line."""
        words = " ".join(str(reason).split())
        return StoreError(_advice(self.name, self.path, f"{self.path / 'plan.json'}: {field}: {words}"))

    @property
    def submissions(self) -> Path:
        """Where executors keep logs and job records of this plan."""
        return self.path / SUBMISSIONS

    def origin(self) -> Origin | None:
        """Whose plan was unpacked; None for one that was made here. Raises DamagedFileError."""
        return typed_json.load(Origin, self.path / ORIGIN)

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


class SweepFolder:
    """The numbered plans of one sweep."""

    def __init__(self, sweeps: Path, name: str) -> None:
        self.name = name
        self.path = sweeps / name

    def numbers(self) -> list[int]:
        """Of the plans that were written to their end. Raises StoreError where the folder cannot be listed."""
        return [number for number in self._begun() if (self.path / str(number) / "plan.json").exists()]

    @property
    def _note_file(self) -> Path:
        return self.path / "note.txt"

    def note(self) -> str:
        """What people wrote about the sweep, in one line; empty where nobody did, or where it cannot be read."""
        with suppress(OSError):
            return " ".join(self._note_file.read_text(encoding="utf-8", errors="replace").split())
        return ""

    def write_note(self, text: str) -> None:
        """Replaces the note; an empty one stays as a file, whose time tells that there was a change. Raises OSError."""
        write_atomic(self._note_file, f"{text}\n" if text else "")

    def note_time(self) -> float:
        """When the note was last written, in seconds since the epoch; 0 where it never was."""
        try:
            return self._note_file.stat().st_mtime
        except OSError:
            return 0.0

    def has_plan(self) -> bool:
        """Whether there is one to be read; not where the folder cannot even be listed."""
        try:
            return bool(self.numbers())
        except StoreError:
            return False

    def _begun(self) -> list[int]:
        try:
            return sorted(int(path.name) for path in self.path.iterdir() if is_number(path.name))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StoreError(f"sweep {self.name}: {self.path}: cannot be read ({plain_reason(error)})") from None

    def problem(self) -> str | None:
        """Why it is not known what this sweep needs, and what to do, in one line."""
        try:
            last = max(self._begun(), default=0)
            if last and last not in self.numbers():
                return self._advice(last, f"{self.path / str(last)} has no plan.json")
            self.read()
        except StoreError as error:
            return str(error)
        return None

    def misnamed(self) -> str | None:
        """What to do with a sweep that earlier code gave a name that no sweep can have now; in one line."""
        if "/" not in self.name:
            return None
        better = Path(str(self.path).removesuffix(self.name)) / self.name.replace("/", "-")
        return f"no sweep can be called {self.name}: move {self.path} to {better}"

    def _advice(self, number: int, fault: str) -> str:
        return _advice(self.name, self.path / str(number), fault)

    def read(self, number: int | None = None) -> SavedSweep:
        """The latest plan, or the given one, which must be among `numbers`. Raises StoreError for a damaged one."""
        number = number or self.numbers()[-1]
        path = self.path / str(number)
        try:
            plan = typed_json.load(PlanFile, path / "plan.json")
            rows = read_rows(VariantRow, path / "variants.jsonl", ended=True)
        except StoreError as error:
            raise StoreError(self._advice(number, str(error))) from None
        except OSError as error:
            raise StoreError(f"sweep {self.name}: {path}: cannot be read ({plain_reason(error)})") from None
        if plan is None:
            raise StoreError(self._advice(number, f"{path / 'plan.json'} is gone"))
        if rows.skipped or not _has_all(plan, rows.rows):
            raise StoreError(self._advice(number, f"{path / 'variants.jsonl'} is not whole"))
        return SavedSweep(self.name, number, path, plan, rows.rows)

    def save(self, plan: PlanFile, variants: list[VariantRow], overrides: list[str], created: str) -> SavedSweep:
        """A new plan, or the latest one where nothing in it changed but its name, number and time, which are given
        here; others may be saving theirs at the same time. Raises OSError, and then has left nothing half-written."""
        while True:
            # The number comes before the comparison: a plan that another launcher writes between the two takes this
            # number, and the next round compares with it.
            number = max(self._begun(), default=0) + 1
            latest = self._latest()
            if latest and _is_same(latest, plan, variants):
                return latest
            dated = replace(plan, name=self.name, number=number, created=created)
            files = {"overrides.txt": "".join(f"{line}\n" for line in overrides), **_files(dated, variants)}
            if write_folder_once(self.path / str(number), files):
                self._drop_abandoned()
                return self.read(number)

    def save_unpacked(self, plan: PlanFile, variants: list[VariantRow], origin: Origin) -> None:
        """The first plan, of somebody else. Raises OSError."""
        files = {ORIGIN: json.dumps(as_json(origin), indent=1) + "\n", **_files(replace(plan, number=1), variants)}
        write_folder_once(self.path / "1", files)

    def _latest(self) -> SavedSweep | None:
        """The latest plan; one that is damaged, or behind one that is, is like no other."""
        return self.read() if self.has_plan() and not self.problem() else None

    def _drop_abandoned(self) -> None:
        """What launchers left that died while they wrote."""
        with suppress(OSError):
            now = file_clock(self.path)
            for path in self.path.glob(f"{TEMPORARY_FOLDER}*"):
                if now - path.stat().st_mtime > ABANDONED_SECONDS:
                    discard(path)


def sweep_folders(sweeps: Path) -> Iterator[SweepFolder]:
    """Every folder with numbered plans in it, by name; also those that earlier code made for a name with a slash, and
    those that cannot be listed."""
    for top in sorted(sweeps.glob("*")):
        closed: list[OSError] = []
        for path, folders, _ in os.walk(top, onerror=closed.append):
            if any(map(is_number, folders)):
                yield SweepFolder(sweeps, Path(path).relative_to(sweeps).as_posix())
            if Path(path).name in (TRACKED, SUBMISSIONS):
                folders.clear()  # what is in there is W&B's, or an executor's
            folders[:] = sorted(name for name in folders if not name.startswith(TEMPORARY_FOLDER))
        for error in closed:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                yield SweepFolder(sweeps, Path(error.filename).relative_to(sweeps).as_posix())


def _files(plan: PlanFile, variants: list[VariantRow]) -> dict[str, str]:
    return {
        "variants.jsonl": "".join(json.dumps(as_json(row), allow_nan=False) + "\n" for row in variants),
        "plan.json": json.dumps(as_json(plan), indent=1, allow_nan=False) + "\n",
    }


def _advice(name: str, folder: Path, fault: str) -> str:
    return f"sweep {name}: {fault}: run the sweep's line again, which makes a new plan, or delete {folder}"


def _has_all(plan: PlanFile, rows: list[VariantRow]) -> bool:
    """Whether there are as many rows as the plan's steps name variants."""
    named = {label for step in plan.steps.values() for label in step.variants}
    return len(named) <= len(rows)


def _is_same(saved: SavedSweep, plan: PlanFile, variants: list[VariantRow]) -> bool:
    """As they are in files, where a tuple is a list."""
    dated = replace(plan, name=saved.plan.name, number=saved.plan.number, created=saved.plan.created)
    plain = replace(dated, cluster=as_json(plan.cluster))  # all other fields are typed, so a file gives them back
    if (plain, variants) == (saved.plan, saved.variants):
        return True  # found in a tenth of the time
    return bool(as_json([dated, variants]) == as_json([saved.plan, saved.variants]))
