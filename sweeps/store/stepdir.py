"""One step's directory: what it is, how it went, who may run it, and what it left. Part of the store; see
sweeps.store.store."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from mlkv.files import DISCARDED, discard, share
from sweeps.store import others, typed_json
from sweeps.store.attempt import Attempt
from sweeps.store.axis import Axis, Rows
from sweeps.store.claim import ClaimFile
from sweeps.store.errors import DamagedFileError
from sweeps.store.files import describe, file_clock, is_number, read_object, sha256, tree, write_json, write_once
from sweeps.store.schema import ClaimHolder, Files, LoggedRow, Origin, Record, Runtime, Spec
from sweeps.store.seal import seal_holds, sealed
from sweeps.store.states import StepState
from sweeps.store.typed_json import as_json
from sweeps.store.variables import stale_seconds

SetAside = Literal["corrupt", "pruned"]
LISTEN_SECONDS = 3.0
"""How long to wait for a new heartbeat before such a claim is taken over: some heartbeats of a living holder."""


@dataclass(frozen=True)
class State:
    """A step's state, read from its files alone. `progress` is the newest row of its metrics."""

    name: StepState
    reason: str = ""
    attempt: int = 0
    progress: LoggedRow | None = None


class Claim:
    """The right to run a step, held while the holder's process lives or, seen from elsewhere, its heartbeat goes on."""

    def __init__(self, step: StepDir, attempt: Attempt, holder: ClaimHolder) -> None:
        self.step, self.attempt, self._holder = step, attempt, holder

    def holds(self) -> bool:
        """Whether this process still has the claim: while a process was suspended, another one may have taken the step
        over. A claim file that is missing is created again. One that cannot be read counts as ours: to stop would lose
        work, and a second attempt at a step does no harm."""
        try:
            found = self.step.claims.read()
            if found is None:
                return not self.step.record() and self.step.claims.retake(self._holder)
            return found == self._holder
        except (OSError, DamagedFileError):
            return True

    def release(self) -> None:
        self.step.claims.release(self._holder)


class StepDir:
    """One step's directory. Reading methods never raise for a step that was never run."""

    def __init__(self, root: Path, step_id: str) -> None:
        self._root, self.id = root, step_id
        self.kind = step_id.rsplit("-", 1)[0]
        self._folder = f"{root}/steps/{self.kind}/{step_id}"

    @cached_property
    def path(self) -> Path:
        return Path(self._folder)

    @cached_property
    def claims(self) -> ClaimFile:
        return ClaimFile(self.path / "claim.json")

    @property
    def out(self) -> Path:
        return self.path / "out"

    @property
    def work(self) -> Path:
        return self.path / "work"

    @property
    def claim_file(self) -> Path:
        return self.claims.path

    @property
    def _record_file(self) -> Path:
        return self.path / "done.json"

    # What it is
    def write_spec(self, spec: Spec, how: Runtime) -> None:
        """`spec` is the identity and is written once; `how` is where and how fast, and each new plan replaces it."""
        write_once(self.path / "spec.json", json.dumps(as_json(spec), indent=1, allow_nan=False) + "\n")
        with suppress(DamagedFileError):  # it is written anew
            if as_json(self.how()) == as_json(how):
                return
        write_json(self.path / "how.json", as_json(how))

    def spec(self) -> Spec | None:
        return typed_json.load_once(Spec, f"{self._folder}/spec.json")

    def how(self) -> Runtime:
        return typed_json.load_once(Runtime, f"{self._folder}/how.json") or Runtime()

    # How it went
    def record(self) -> Record | None:
        return typed_json.load_once(Record, f"{self._folder}/done.json")

    def attempts(self) -> list[Attempt]:
        try:
            numbers = sorted(int(p.name) for p in (self.path / "attempts").iterdir() if is_number(p.name))
        except FileNotFoundError:
            return []
        return [Attempt(self.path / "attempts" / str(number)) for number in numbers]

    def attempt(self) -> Attempt | None:
        """The attempt that won, or the latest one."""
        attempts = self.attempts()
        record = self.record()
        winners = [attempt for attempt in attempts if record and attempt.number == record.attempt] or attempts
        return winners[-1] if winners else None

    def metrics(self) -> list[LoggedRow]:
        attempt = self.attempt()
        return attempt.metrics() if attempt else []

    def history(self, axis: Axis) -> Rows:
        """What all attempts logged, as one sequence that only moves forward."""
        found = Rows()
        for attempt in self.attempts():
            axis.new_attempt()
            found += axis.rows(attempt.metrics())
        return found

    def state(self) -> State:
        """By the step's files alone. Raises DamagedFileError and OSError."""
        if record := self.record():
            return State(StepState.DONE, others.whose(self.path, record), record.attempt)
        attempts = self.attempts()
        if not attempts:
            return State(StepState.PENDING, self._set_aside_reason())
        last = attempts[-1]
        claim = self.claims.read()
        if claim and not self._is_stale(claim):
            return State(StepState.RUNNING, f"on {claim.host}", last.number, last.progress())
        if record := self.record():  # written, and the claim released, since we looked
            return State(StepState.DONE, attempt=record.attempt)
        ended = last.exit()
        if ended is None:
            return State(StepState.LOST, "its process ended and left no exit status", last.number, last.progress())
        if ended.state == "done":  # its record was withdrawn
            return State(StepState.PENDING, self._set_aside_reason(), last.number)
        name = StepState.FAILED if ended.state == "failed" else StepState.INTERRUPTED
        return State(name, ended.reason, last.number, last.progress())

    # Whose it is
    def origin(self) -> Origin | None:
        """Whose result was unpacked here; None for one that was made in this store. Raises DamagedFileError."""
        return others.origin_of(self.path)

    def others(self) -> list[others.Other]:
        """Other results of this step, which do not count. Raises DamagedFileError."""
        return list(others.others(self.path))

    def unpacked_at(self) -> float:
        """When a result of it was last unpacked, in seconds since the epoch; 0 where none was."""
        return others.unpacked_at(self.path)

    def left_out(self) -> list[str]:
        """Outputs of a finished step that were not unpacked with it, so that no step can be made from them."""
        return [name for name in self._absent() if not name.endswith(others.CODE)]

    def _absent(self) -> list[str]:
        record = self.record()
        return others.absent(self.out, record.outputs, self.origin()) if record else []

    def put_beside(self) -> None:
        """Withdraw a result that was unpacked without its outputs, so that the step is run here; it stays beside.
        Raises OSError."""
        if not others.put_beside(self.path, self.path):
            for name in reversed(others.PARTS):
                discard(self.path / name)

    # Running it
    def claim(self) -> Claim | None:
        """A new attempt with the exclusive right to run it; None where another process runs the step or it is done.

        A claim whose holder seems dead is removed, and then all who want the step compete for a new one as for the
        first. Should the holder live after all, it finds another's claim at its next beat and stops: the cost of an
        error is one attempt that was made twice, and publishing lets only one of them win.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if held := self.claims.read():
            if not self._is_stale(held) or self._is_heard(held):
                return None
            self.claims.drop(held)
        if self.record() or not (mine := self.claims.take()):
            return None
        try:
            if self.record() or self._publish_earlier(moved=True) or self._publish_earlier(moved=False):
                self.claims.release(mine)
                return None
            discard(self.out)  # published without a record, and no record to be found that fits
            self.work.mkdir(exist_ok=True)
            attempt = self._new_attempt()
            attempt.out.mkdir()
            attempt.beat()
            return Claim(self, attempt, mine)
        except OSError:
            self.claims.release(mine)
            raise

    def _new_attempt(self) -> Attempt:
        (self.path / "attempts").mkdir(parents=True, exist_ok=True)
        while True:
            number = max((attempt.number for attempt in self.attempts()), default=0) + 1
            attempt = Attempt(self.path / "attempts" / str(number))
            with suppress(FileExistsError):  # `note_not_begun` of another process took the number
                attempt.path.mkdir()
                return attempt

    def note_not_begun(self, state: Literal["failed", "interrupted"], reason: str, log: str = "") -> None:
        """Write down why a job could not even begin an attempt: as one that ended at once, so that every reader shows
        it as it shows others. Nothing where the step is done, unknown here, or in another process's hands. Raises
        OSError."""
        with suppress(DamagedFileError):  # what a damaged file says does not count
            if self.record() or not self.path.is_dir():
                return
        with suppress(DamagedFileError):
            if (claim := self.claims.read()) and not self._is_stale(claim):
                return
        attempt = self._new_attempt()
        if log:
            attempt.log(log.rstrip())
        attempt.finish(state, reason, None, own=False)

    def _is_stale(self, claim: ClaimHolder) -> bool:
        """Whether its holder is gone: on the holder's machine by its process, elsewhere by the newest heartbeat."""
        running = self.claims.is_running(claim)
        if running is not None:
            return not running
        return self._now() - self._last_sign_of_life() > stale_seconds()

    def _last_sign_of_life(self) -> float:
        return max([self.claims.modified(), *(attempt.last_beat() for attempt in self.attempts())])

    def _is_heard(self, claim: ClaimHolder) -> bool:
        """Whether a holder on another machine writes one more heartbeat. The last heartbeat of a living holder can look
        old: where a clock was just set forward, or where hosts stamp files by their own clocks."""
        if self.claims.is_running(claim) is not None:
            return False
        before = self._last_sign_of_life()
        time.sleep(LISTEN_SECONDS)
        return self._last_sign_of_life() != before

    def _now(self) -> float:
        """By the file server's clock, which stamps the heartbeats, or by ours where nothing can be written."""
        try:
            return file_clock(self._root)
        except OSError:
            return time.time()

    def publish(self, claim: Claim, record: Record) -> bool:
        """Move the attempt's output into place and write the record, to which this adds the outputs and the seal; false
        when another attempt was first, or has taken the step over. Raises OSError, with the output still there: whoever
        claims the step next publishes it.

        The record comes last, and its text is on disk before the output moves: a process that dies in between, on
        whatever line, leaves an output and the record to check it by, and hours of training are not repeated. Creating
        done.json fails where there is one, so of two attempts that publish at once exactly one has won.
        """
        attempt = claim.attempt
        share(attempt.out)
        outputs = {name: describe(path) for name, path in tree(attempt.out)}
        attempt.write_record(sealed(replace(record, outputs=outputs)))
        if not claim.holds():
            return self._won_by(attempt)
        if self.out.exists() and not self._publish_earlier(moved=True):
            discard(self.out)  # no attempt has a record for it
        if not self.record():
            attempt.out.rename(self.out)
            self._publish_record(attempt)
        return self._won_by(attempt)

    def _publish_earlier(self, *, moved: bool) -> bool:
        """Publish what an earlier attempt could not, as its disk was full or its process was killed: an output that is
        byte for byte as in the record that the attempt had made ready. `moved`: it already lies in place."""
        for attempt in self.attempts():
            record = attempt.record()
            place = self.out if moved else attempt.out
            if record and attempt.out.exists() != moved and place.is_dir() and not difference(place, record.outputs):
                if not moved:
                    discard(self.out)
                    attempt.out.rename(self.out)
                self._publish_record(attempt)
                return True
        return False

    def _publish_record(self, attempt: Attempt) -> None:
        """The attempt's record, byte for byte: a record of later code may have keys that this code does not know."""
        write_once(self._record_file, attempt.record_file.read_text(encoding="utf-8"))
        discard(self.work)

    def _won_by(self, attempt: Attempt) -> bool:
        """Whether the record is this attempt's."""
        self.tidy(attempt)
        record = self.record()
        return record is not None and record.attempt == attempt.number

    def tidy(self, attempt: Attempt) -> None:
        """Delete the files of an attempt that are not needed once the step is done."""
        with suppress(OSError):
            if record := self.record():
                discard(self.work)
                if record.attempt != attempt.number:
                    discard(attempt.out)
                    discard(attempt.record_file)

    # Trusting it
    def corrupted(self) -> str | None:
        """What is wrong with a finished step's outputs, or None. Reads every byte. What was left out of the pack that
        the step was unpacked from is not wrong."""
        if not (record := self.record()):
            return None
        absent = set(self._absent())
        return difference(self.out, {name: each for name, each in record.outputs.items() if name not in absent})

    def seal_holds(self) -> bool | None:
        """Whether the record is as it was written; None for one without a seal, or none at all."""
        record = read_object(self._record_file)
        return seal_holds(record) if record else None

    def set_aside(self, reason: str, label: SetAside = "corrupt") -> None:
        """Withdraw the record and drop the output, so that the step is run when it is wanted again; the record stays
        for reading."""
        record = read_object(self._record_file)  # unparsed, so that keys of later code are preserved
        if record is None:
            return
        number = max(map(_number_aside, self._aside()), default=0) + 1
        write_json(self.path / f"done.{label}-{number}.json", {**record, "set_aside": reason})
        self._record_file.unlink(missing_ok=True)
        discard(self.out)

    def _aside(self) -> list[Path]:
        """Withdrawn records, oldest first."""
        named = self.path.glob("done.*-*.json")
        return sorted((path for path in named if path.stem.rsplit("-", 1)[1].isdecimal()), key=_number_aside)

    def _set_aside_reason(self) -> str:
        aside = self._aside()
        record = typed_json.load(Record, aside[-1]) if aside else None
        return f"set aside: {record.set_aside}" if record else ""

    # Making room
    def outputs(self) -> list[Path]:
        """The output and the resume checkpoints, as far as there are any."""
        return [path for path in (self.out, self.work, self.path / others.FOLDER) if path.exists()]

    def leftovers(self) -> list[Path]:
        """Outputs of attempts that did not win, except for one that only has to be published, and what could not be
        removed whole before. While the step runs, an output is being written."""
        publishable = [] if self.record() else [attempt.out for attempt in self.attempts() if attempt.record()]
        outputs = [
            attempt.out for attempt in self.attempts() if attempt.out.exists() and attempt.out not in publishable
        ]
        return outputs + [path for depth in ("", "attempts/*/") for path in self.path.glob(f"{depth}{DISCARDED}*")]

    def drop_leftovers(self) -> None:
        for path in self.leftovers():
            discard(path)

    def prune(self) -> None:
        """Drop everything but spec, logs and records; a done step is to be run again when it is wanted again."""
        self.set_aside("pruned, as no sweep needed it", "pruned")
        for attempt in self.attempts():
            discard(attempt.record_file)
        for path in self.outputs():
            discard(path)
        self.drop_leftovers()


def difference(folder: Path, outputs: Files) -> str | None:
    """What is not as a record says of its outputs, or None. Reads every byte."""
    for name, expected in outputs.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected.bytes or sha256(path) != expected.sha256:
            return f"{name} does not have the content that was recorded"
    return None


def _number_aside(path: Path) -> int:
    """N of `done.corrupt-N.json`."""
    return int(path.stem.rsplit("-", 1)[1])
