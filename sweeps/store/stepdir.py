"""One step's directory: what it is, how it went, the right to run it, and what it left. Part of the store; see
sweeps.store.store."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from sweeps.store.attempt import Attempt, Json
from sweeps.store.axis import Axis, Rows
from sweeps.store.files import file_clock, read_json, sha256, tree, write_json, write_once
from sweeps.store.host import host

StateName = Literal["DONE", "RUNNING", "PENDING", "FAILED", "INTERRUPTED", "LOST", "CANCELLED"]
SetAside = Literal["corrupt", "pruned"]
STALE_SECONDS = float(os.environ.get("MLKV_STALE_SECONDS", "60"))
"""A claim of another host whose heartbeat is older than this belongs to nobody."""


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

    def __init__(self, root: Path, step_id: str) -> None:
        self._root, self.id = root, step_id
        self.kind = step_id.rsplit("-", 1)[0]
        self.path = Path(f"{root}/steps/{self.kind}/{step_id}")

    @property
    def out(self) -> Path:
        return self.path / "out"

    @property
    def work(self) -> Path:
        return self.path / "work"

    @property
    def claim_file(self) -> Path:
        return self.path / "claim.json"

    @property
    def _record_file(self) -> Path:
        return self.path / "done.json"

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
        return file_clock(self._root) - (attempts[-1].last_beat() if attempts else 0.0) > STALE_SECONDS

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

    def set_aside(self, reason: str, label: SetAside = "corrupt") -> None:
        """Withdraw the record and drop the output, so that the step is run when it is wanted again; the record stays
        for reading."""
        record = self.record()
        if record is None:
            return
        number = len(self._aside()) + 1
        write_json(self.path / f"done.{label}-{number}.json", {**record, "set_aside": reason})
        self._record_file.unlink(missing_ok=True)
        shutil.rmtree(self.out, ignore_errors=True)

    def _aside(self) -> list[Path]:
        """Withdrawn records, oldest first."""
        return sorted(self.path.glob("done.*-*.json"), key=lambda path: int(path.stem.rsplit("-", 1)[1]))

    def _set_aside_reason(self) -> str:
        aside = self._aside()
        return f"set aside: {(read_json(aside[-1]) or {}).get('set_aside')}" if aside else ""

    # Making room
    def outputs(self) -> list[Path]:
        """The output and the resume checkpoints, as far as there are any."""
        return [path for path in (self.out, self.work) if path.exists()]

    def leftovers(self) -> list[Path]:
        """Outputs of attempts that did not win. While the step runs, one of them is being written."""
        return [attempt.out for attempt in self.attempts() if attempt.out.exists()]

    def drop_leftovers(self) -> None:
        for path in self.leftovers():
            shutil.rmtree(path, ignore_errors=True)

    def prune(self) -> None:
        """Drop everything but spec, logs and records; a done step is to be run again when it is wanted again."""
        self.set_aside("pruned, as no sweep needed it", "pruned")
        for path in self.outputs():
            shutil.rmtree(path, ignore_errors=True)
        self.drop_leftovers()


def describe(path: Path) -> Json:
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def _process_start(pid: int) -> float | None:
    """When a process of this host started; tells a living claim holder from a recycled pid."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.NoSuchProcess, ValueError):
        return None
