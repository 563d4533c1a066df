"""The store: a directory that holds every step ever run, shared by all sweeps, machines and users.

Plain files made for NFS. A step's record (`done.json`) is written last; a finished step is never modified. A claim is
an exclusively created file kept alive by a heartbeat; a stale one is taken over by renaming it. Losing a race costs a
duplicate attempt, never a corrupt step. Nothing outside this module knows a path inside the store.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import psutil

from sweeps.attempt import Attempt, Json
from sweeps.axis import Axis, Rows
from sweeps.files import read_json, sha256, tree, utc_now, write_json, write_once
from sweeps.job import host

StateName = Literal["DONE", "RUNNING", "PENDING", "FAILED", "INTERRUPTED", "LOST", "CANCELLED"]
STALE_SECONDS = float(os.environ.get("MLKV_STALE_SECONDS", "60"))
"""A claim of another host whose heartbeat is older than this belongs to nobody."""


class StoreError(ValueError):
    """The store cannot be used as it is; the message says what to do, in one line."""


@dataclass(frozen=True)
class State:
    """Where a step stands, read from its files alone. `progress` is the newest row of its metrics."""

    name: StateName
    reason: str = ""
    attempt: int = 0
    progress: Json | None = None


class Claim:
    """The right to run a step, held while the holder's heartbeat goes on."""

    def __init__(self, step: StepDir, attempt: Attempt) -> None:
        self.step, self.attempt = step, attempt

    def release(self) -> None:
        self.step.claim_file.unlink(missing_ok=True)


class StepDir:
    """One step's directory. Reading methods never raise for a step that was never run."""

    def __init__(self, store: Store, step_id: str) -> None:
        self.store, self.id = store, step_id
        self.kind = step_id.rsplit("-", 1)[0]
        self.path = store.root / "steps" / self.kind / step_id
        self.out = self.path / "out"
        self.work = self.path / "work"
        self.claim_file = self.path / "claim.json"
        self._record_file = self.path / "done.json"

    # What it is
    def write_spec(self, spec: Json, how: Json) -> None:
        """`spec` is the identity and is written once; `how` is where and how fast, the last plan's word."""
        write_once(self.path / "spec.json", json.dumps(spec, indent=1, allow_nan=False) + "\n")
        if read_json(self.path / "how.json") != how:
            write_json(self.path / "how.json", how)

    def spec(self) -> Json | None:
        return read_json(self.path / "spec.json")

    def how(self) -> Json:
        return read_json(self.path / "how.json") or {}

    # How it went
    def record(self) -> Json | None:
        return read_json(self._record_file)

    def attempts(self) -> list[Attempt]:
        try:
            numbers = sorted(int(p.name) for p in (self.path / "attempts").iterdir() if p.name.isdigit())
        except FileNotFoundError:
            return []
        return [Attempt(self.path / "attempts" / str(number)) for number in numbers]

    def attempt(self) -> Attempt | None:
        """The attempt that won, or the latest one."""
        attempts = self.attempts()
        won = (self.record() or {}).get("attempt")
        winners = [attempt for attempt in attempts if attempt.number == won] or attempts
        return winners[-1] if winners else None

    def metrics(self) -> list[Json]:
        attempt = self.attempt()
        return attempt.metrics() if attempt else []

    def history(self) -> Rows:
        """What all attempts logged, as one sequence that only moves forward."""
        axis, found = Axis(self.kind), Rows()
        for attempt in self.attempts():
            axis.new_attempt()
            found += axis.rows(attempt.metrics())
        return found

    def state(self) -> State:
        if record := self.record():
            return State("DONE", attempt=record["attempt"])
        attempts = self.attempts()
        if not attempts:
            return State("PENDING", self._set_aside_reason())
        last = attempts[-1]
        claim = read_json(self.claim_file)
        if claim and not self._is_stale(claim):
            return State("RUNNING", f"on {claim['host']}", last.number, last.progress())
        ended = last.exit()
        if ended is None:
            return State("LOST", "its process vanished without a word", last.number, last.progress())
        if ended["state"] == "done":  # its record was withdrawn
            return State("PENDING", self._set_aside_reason(), last.number)
        name: StateName = "FAILED" if ended["state"] == "failed" else "INTERRUPTED"
        return State(name, ended["reason"], last.number, last.progress())

    # Running it
    def claim(self) -> Claim | None:
        """A new attempt and the sole right to run it, or None while somebody else is at it or the step is done."""
        self.path.mkdir(parents=True, exist_ok=True)
        held = read_json(self.claim_file)
        if held and not self._is_stale(held):
            return None
        if held:
            self._take_over(held)
        me = json.dumps({"host": host(), "pid": os.getpid(), "started": _process_start(os.getpid())})
        if self.record() or not write_once(self.claim_file, me):
            return None
        if self.record():
            self.claim_file.unlink()
            return None
        shutil.rmtree(self.out, ignore_errors=True)  # published without a record: its writer died in between
        self.work.mkdir(exist_ok=True)
        return Claim(self, self._new_attempt())

    def _new_attempt(self) -> Attempt:
        number = max((attempt.number for attempt in self.attempts()), default=0) + 1
        attempt = Attempt(self.path / "attempts" / str(number))
        attempt.out.mkdir(parents=True)
        attempt.beat()
        return attempt

    def _take_over(self, held: Json) -> None:
        name = f"claim.stale-{held['host']}-{held['pid']}-{time.time_ns()}.json"
        try:
            self.claim_file.rename(self.path / name)
        except FileNotFoundError:
            return  # another one was faster; the exclusive creation decides
        taken = read_json(self.path / name)
        if taken != held:  # renamed a fresh claim away: give it back
            write_once(self.claim_file, json.dumps(taken))

    def _is_stale(self, claim: Json) -> bool:
        if claim["host"] == host():
            return _process_start(claim["pid"]) != claim["started"]
        attempts = self.attempts()
        return self.store.now() - (attempts[-1].last_beat() if attempts else 0.0) > STALE_SECONDS

    def publish(self, claim: Claim, record: Json) -> bool:
        """Move the attempt's output into place and write the record; false when another attempt was first."""
        outputs = {name: describe(path) for name, path in tree(claim.attempt.out)}
        try:
            claim.attempt.out.rename(self.out)
        except OSError:
            shutil.rmtree(claim.attempt.out)
            return False
        record = {"id": self.id, "kind": self.kind, "attempt": claim.attempt.number, **record, "outputs": outputs}
        if not write_once(self._record_file, json.dumps(record, indent=1, allow_nan=False) + "\n"):
            return False
        shutil.rmtree(self.work, ignore_errors=True)
        return True

    # Trusting it
    def corrupted(self) -> str | None:
        """What is wrong with a finished step's outputs, or None. Reads every byte."""
        for name, expected in (self.record() or {}).get("outputs", {}).items():
            path = self.out / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
                return f"{name} does not have the content that was recorded"
        return None

    def set_aside(self, reason: str) -> None:
        """Withdraw the record of a bad output, so that the step is run again; the record stays for reading."""
        number = len(list(self.path.glob("done.corrupt-*.json"))) + 1
        record = self.record()
        if record is None:
            return
        write_json(self.path / f"done.corrupt-{number}.json", {**record, "set_aside": reason})
        self._record_file.unlink(missing_ok=True)
        shutil.rmtree(self.out, ignore_errors=True)

    def _set_aside_reason(self) -> str:
        bad = sorted(self.path.glob("done.corrupt-*.json"))
        return f"set aside: {(read_json(bad[-1]) or {}).get('set_aside')}" if bad else ""


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
            store.now()
        except OSError as error:
            raise StoreError(
                f"store = {store.root}: cannot be written ({error.strerror}); set store= or MLKV_STORE"
            ) from None
        return store

    def now(self) -> float:
        """Seconds since the epoch by the clock that stamps this store's files."""
        probe = self.root / f".clock-{socket.gethostname()}-{os.getpid()}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    def step(self, step_id: str) -> StepDir:
        return StepDir(self, step_id)

    def steps(self) -> Iterator[StepDir]:
        """Every step the store knows."""
        for path in sorted((self.root / "steps").glob("*/*")):
            yield StepDir(self, path.name)

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

    def save_sweep(self, name: str, plan: Json, variants: list[Json], overrides: list[str]) -> SavedSweep:
        """A new numbered plan of a sweep, or the latest one where nothing in it changed."""
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
        numbers = self._numbers(name)
        if not numbers or (number and number not in numbers):
            known = ", ".join(self.sweep_names()) or "none yet"
            raise StoreError(f"sweep {name}: not in {self.root} (sweeps there: {known})")
        path = self.root / "sweeps" / name / str(number or numbers[-1])
        with (path / "variants.jsonl").open(encoding="utf-8") as file:
            variants = [json.loads(line) for line in file]
        plan: Json = json.loads((path / "plan.json").read_text(encoding="utf-8"))
        return SavedSweep(name, int(path.name), path, plan, variants)

    # The queue
    @property
    def queue(self) -> Path:
        """Where submission to SLURM keeps its records and the jobs' output."""
        return self.root / "queue"

    def note_jobs(self, rows: Iterable[Json]) -> None:
        """Write down which steps each job runs, before it is submitted."""
        self.queue.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with (self.queue / "jobs.jsonl").open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def noted_jobs(self) -> list[Json]:
        try:
            lines = (self.queue / "jobs.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    # Tracking
    def tracking(self, sweep: str | None) -> TrackingDir:
        """Where W&B's files of a sweep lie; one place for all steps that were run by themselves."""
        return TrackingDir(self.root / "sweeps" / sweep if sweep else self.root / "tracking")

    # Code
    @cached_property
    def code_hash(self) -> str:
        from sweeps.code import tree_hash

        return tree_hash()

    def code(self, tree_hash: str) -> Path:
        """Where the snapshot of that code lies, if there is one."""
        return self.root / "code" / tree_hash

    def snapshot_code(self) -> Path:
        """A copy of the code as it is now, which jobs import, so that editing the checkout changes no queued job. It is
        named by its own content: the checkout may change while it is copied."""
        from sweeps.code import copy_tree, tree_hash

        if (known := self.code(self.code_hash)).is_dir():
            return known
        temporary = self.root / "code" / f".copy-{socket.gethostname()}-{os.getpid()}"
        copy_tree(temporary)
        target = self.code(tree_hash(temporary))
        try:
            temporary.rename(target)
        except OSError:
            shutil.rmtree(temporary)  # somebody else's copy of the same tree is in place
        return target


def describe(path: Path) -> Json:
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def _process_start(pid: int) -> float | None:
    """When a process of this host started; tells a living claim holder from a recycled pid."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.NoSuchProcess, ValueError):
        return None
