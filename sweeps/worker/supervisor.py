"""Runs steps in order, around a process that computes.

A supervisor, light and hard to kill, around a child that computes (child_main.py). It claims a step, keeps the claim
alive, passes on signals, and alone writes records. Exit status: 0 all done, 1 a step failed, 3 blocked, 4 interrupted,
5 interrupted again and again from outside: the same line runs it once more, but the queue had better not.
"""

from __future__ import annotations

import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sweeps.steps.registry import trains
from sweeps.store.attempt import Attempt
from sweeps.store.console import say
from sweeps.store.errors import StoreError
from sweeps.store.files import utc_now
from sweeps.store.host import host
from sweeps.store.outside import describe_error
from sweeps.store.schema import as_json
from sweeps.store.stepdir import Claim, StepDir
from sweeps.store.store import Store
from sweeps.tracking.supervisor import Mirror
from sweeps.worker.answers import interrupted_from_outside, taken_over
from sweeps.worker.child_process import Child
from sweeps.worker.heartbeat import BEAT_SECONDS, Heartbeat
from sweeps.worker.job_context import SIGNALS, JobContext, free_port, out_of_memory_kills

DONE, FAILED, BLOCKED, INTERRUPTED, STUCK = 0, 1, 3, 4, 5
_GRAVITY = (DONE, BLOCKED, FAILED, STUCK, INTERRUPTED)
"""Of several outcomes the last one here is the job's: what was interrupted goes on, whatever failed beside it."""
TRIES = 3
"""How many attempts in a row may die, or use up their time, without getting further than the one before."""
OTHERS = (SIGNALS[signal.SIGTERM], SIGNALS[signal.SIGINT])
"""What ends an attempt through no fault of its own."""
OWN_SIGNALS = frozenset(
    {
        signal.SIGILL,
        signal.SIGTRAP,
        signal.SIGABRT,
        signal.SIGFPE,
        signal.SIGSEGV,
        signal.SIGPIPE,
        signal.SIGALRM,
        signal.SIGVTALRM,
        signal.SIGPROF,
        signal.SIGSYS,
    }
)
"""What a process brings upon itself. Any other signal comes from outside, SIGBUS too: what a file mapped into memory
holds could not be read."""
GRACE_SECONDS = 60.0
"""How long a child may take to save its state once it was asked to stop."""
_LIBRARIES = ("torch", "transformers", "lm_eval", "datasets", "numpy")


class Worker:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._job = JobContext.current()
        self._child = Child(store)
        self._mirror = Mirror(store)
        self._stopping_since: float | None = None
        self._stopped_by = ""

    def run(self, steps: Sequence[str]) -> int:
        """Run what is not done; go on past failures to steps that do not depend on them."""
        for number in SIGNALS:
            signal.signal(number, self._on_stop)
        worst = DONE
        for step in steps:
            status = INTERRUPTED if self._stopping_since else self._step(step)
            worst = max(worst, status, key=_GRAVITY.index)
            say(f"{utc_now()} {step} {_WORDS[status]}")
        self._child.close()
        self._mirror.close()
        return worst

    def _on_stop(self, number: int, frame: Any) -> None:
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
        self._stopped_by = SIGNALS[signal.Signals(number)]
        self._child.stop()

    def _step(self, step_id: str) -> int:
        step = self._store.step(step_id)
        try:
            return self._until_ended(step)
        except OSError as error:
            say(f"{step_id}: the store: {describe_error(error)}", sys.stderr)
            return DONE if _is_done(step) else INTERRUPTED
        except StoreError as error:  # a file that somebody has to look at: no other attempt would fare better
            say(f"{step_id}: {error}", sys.stderr)
            return BLOCKED

    def _until_ended(self, step: StepDir) -> int:
        """Run the step until it is done, whoever does it, or it is clear that this job will not have it done. Raises
        OSError where the store cannot be read or written."""
        while not step.record():
            if self._stopping_since:
                return INTERRUPTED
            if self._failed_before(step):
                return FAILED
            if not self._inputs_are_sound(step.id):
                return BLOCKED
            if claim := step.claim():
                try:
                    status = self._attempt(claim)
                finally:
                    claim.release()
                if status is not None:
                    return status
            elif not step.record():
                time.sleep(BEAT_SECONDS)  # another worker is at it
        return DONE

    def _failed_before(self, step: StepDir) -> bool:
        """Whether an earlier run of this very job has found that the step fails."""
        if not self._job.run or not (last := step.attempt()):
            return False
        environment, ended = last.environment(), last.exit()
        same_job = environment is not None and environment.job == self._job.id
        return same_job and ended is not None and ended.state == "failed"

    def _inputs_are_sound(self, step_id: str) -> bool:
        """Every parent done, with the bytes its record names. A parent that is not is set aside to be run again."""
        spec = self._store.step(step_id).spec()
        if spec is None:
            say(f"{step_id}: no such step in {self._store.root}", sys.stderr)
            return False
        for parent in map(self._store.step, spec.get("parents", {}).values()):
            if parent.record() is None:
                say(f"{step_id}: waits for {parent.id}, which is not done", sys.stderr)
                return False
            if wrong := parent.corrupted():
                parent.set_aside(wrong)
                say(f"{step_id}: input {parent.id} is corrupt ({wrong}); set aside to be run again", sys.stderr)
                return False
        return True

    def _attempt(self, claim: Claim) -> int | None:
        """Run the step once; its status, or None where that is to be seen: the child died, or another worker took the
        step over."""
        attempt = claim.attempt
        with Heartbeat(claim) as heartbeat:
            try:
                answer = self._run_and_publish(claim, heartbeat)
            except OSError as error:
                self._child.kill()
                answer = interrupted_from_outside(describe_error(error))
        if _is_done(claim.step):
            answer = {**answer, "state": "done"}  # by this attempt or another one
            claim.step.tidy(attempt)
        elif answer["state"] == "done" or heartbeat.claim_is_lost or not claim.holds():
            answer = taken_over()
        if answer.get("outside"):
            attempt.drop_unfinished()
        try:
            attempt.finish(answer["state"], answer.get("reason", ""), answer.get("returncode"), answer.get("own", True))
        except OSError as error:
            say(f"{claim.step.id}: {answer.get('reason')}; and {describe_error(error)}", sys.stderr)
        self._mirror.ended(claim)
        if answer["state"] != "interrupted":
            return {"done": DONE, "failed": FAILED}[answer["state"]]
        if self._stopping_since:
            return INTERRUPTED
        if answer.get("outside"):
            return STUCK if fruitless(claim.step.attempts(), whatever_ended_them=True) >= TRIES else INTERRUPTED
        return None

    def _run_and_publish(self, claim: Claim, heartbeat: Heartbeat) -> dict[str, Any]:
        attempt, started, clock = claim.attempt, utc_now(), time.monotonic()
        killed_before, group = out_of_memory_kills(), self._group(claim.step)
        origin = self._origin(claim.step)  # now: no output is to be lost because this cannot be read at the end
        attempt.write_environment(_environment() | self._whose(group))
        self._child.ask(claim.step.id, attempt.number, group)
        self._mirror.began(claim, self._child.pid)
        answer, peak = self._watch(heartbeat)
        if answer["state"] == "vanished":
            answer = self._explain(answer, peak, out_of_memory_kills() > killed_before)
        answer = self._judge(claim, answer)
        if answer["state"] == "done":
            record = {"started": started, "finished": utc_now(), **self._seconds(clock), "peak_memory_bytes": peak}
            results = {"metrics": answer["metrics"], "facts": answer["facts"]}
            claim.step.publish(claim, record | origin | results)
        return answer

    def _group(self, step: StepDir) -> dict[str, str] | None:
        """The first process's place among those that will train this step together."""
        if self._job.ranks == 1 or not trains(step.spec() or {}):
            return None
        address = "127.0.0.1" if self._job.nodes == 1 else socket.gethostname()
        return self._job.group(address, free_port())

    def _whose(self, group: dict[str, str] | None) -> dict[str, Any]:
        told: dict[str, Any] = {"job": self._job.id, "run": self._job.run} if self._job.id else {}
        return told | ({"group": group} if group else {})

    def _explain(self, answer: dict[str, Any], peak: int, memory_ran_out: bool) -> dict[str, Any]:
        """What the end of a child without an answer means."""
        if memory_ran_out:
            asked = "raise cluster.resources.KIND.memory_gb"
            reason = f"out of memory: the kernel killed it at {peak / 2**30:.1f} GiB or more; {asked}"
            return {**answer, "state": "failed", "reason": reason}
        ended = answer["returncode"] < 0 and -answer["returncode"] not in OWN_SIGNALS
        return {**answer, "state": "interrupted" if ended or self._stopping_since else "failed"}

    def _judge(self, claim: Claim, answer: dict[str, Any]) -> dict[str, Any]:
        """Name the signal behind an interruption; a step that only ever gets so far has failed."""
        if answer["state"] != "interrupted" or answer.get("outside"):
            return answer
        reason = "; ".join(filter(None, [answer.get("reason"), self._stopped_by]))
        answer = {**answer, "reason": reason, "own": self._stopped_by not in OTHERS}
        if answer["own"] and (count := fruitless(claim.step.attempts())) >= TRIES:
            return {**answer, "state": "failed", "reason": f"{count} attempts in a row got no further: {reason}"}
        return answer

    def _watch(self, heartbeat: Heartbeat) -> tuple[dict[str, Any], int]:
        """The child's answer and the most memory it was seen to hold, in bytes."""
        peak = 0
        while True:
            peak = max(peak, self._child.resident_bytes())
            if answer := self._child.answer(timeout=BEAT_SECONDS):
                return answer, peak
            overdue = self._stopping_since and time.monotonic() - self._stopping_since > GRACE_SECONDS
            if overdue or heartbeat.claim_is_lost:
                self._child.kill()

    def _origin(self, step: StepDir) -> dict[str, Any]:
        """What the record will say of where and from what the output was made."""
        spec = step.spec()
        parents = [self._store.step(parent).record() for parent in (spec.parents.values() if spec else ())]
        return {
            **_environment(),
            "code": self._store.code_hash,
            "work": step.how().work,
            "inputs": {parent.id: as_json(parent.outputs) for parent in parents if parent},
        }

    def _seconds(self, since: float) -> dict[str, float]:
        wall = time.monotonic() - since
        devices = max(1, len(_visible_gpus())) * self._job.nodes
        return {"wall_seconds": round(wall, 3), "device_seconds": round(wall * devices, 3)}


def _is_done(step: StepDir) -> bool:
    """Whether it has a record, as far as the store can be read."""
    try:
        return step.record() is not None
    except OSError:
        return False


def fruitless(attempts: Sequence[Attempt], whatever_ended_them: bool = False) -> int:
    """How many attempts in a row, up to the latest, ended by themselves and no further than an earlier one."""
    reached = [row.step or 0 if (row := attempt.progress()) else 0 for attempt in attempts]
    count = 0
    for i in reversed(range(len(attempts))):
        ended = attempts[i].exit()
        by_itself = i == len(attempts) - 1 or (ended is not None and ended.own) or whatever_ended_them
        if not by_itself or reached[i] > max(reached[:i], default=0):
            break
        count += 1
    return count


_WORDS = {DONE: "done", FAILED: "failed", BLOCKED: "blocked", INTERRUPTED: "interrupted", STUCK: "interrupted"}


def _visible_gpus() -> list[str]:
    return [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]


def _environment() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return {
        "host": host(),
        "device": f"cuda:{','.join(gpus)}" if (gpus := _visible_gpus()) else platform.machine(),
        "versions": versions,
    }
