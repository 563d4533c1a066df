"""The supervisor of a job: runs steps in order, each in a child process that computes (child_main.py).

The supervisor imports little and survives a crash of its child. It claims a step, keeps the claim alive and passes on
signals; only it writes records. Exit status: 0 all done, 1 a step failed, 3 blocked, 4 interrupted, 5 interrupted
several times from outside: the same command line runs it again, but the queue should not.
"""

from __future__ import annotations

import os
import platform
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Literal, NamedTuple, TypedDict

from mlkv.signature import OUT_OF_MEMORY
from sweeps.steps.extensions import is_training
from sweeps.steps.registry import kind_of
from sweeps.store.attempt import Attempt
from sweeps.store.console import say
from sweeps.store.errors import StoreError
from sweeps.store.files import utc_now
from sweeps.store.host import host
from sweeps.store.outside import describe_error
from sweeps.store.schema import Environment, Record
from sweeps.store.states import StepState
from sweeps.store.stepdir import Claim, StepDir
from sweeps.store.store import Store
from sweeps.tracking.supervisor import Mirror
from sweeps.worker.child_process import Child
from sweeps.worker.heartbeat import BEAT_SECONDS, Heartbeat
from sweeps.worker.job_context import SIGNALS, JobContext, free_port, out_of_memory_kills
from sweeps.worker.messages import TAKEN_OVER, Answer, Request, answer_to
from sweeps.worker.packages import installed_packages

DONE, FAILED, BLOCKED, INTERRUPTED, STUCK = 0, 1, 3, 4, 5
_SEVERITY = (DONE, BLOCKED, FAILED, STUCK, INTERRUPTED)
"""Of several outcomes the last one here is the job's. An interruption outweighs a failure: the queue starts
the job again for it (slurm/submit.py), what was interrupted goes on, and what failed is not run again."""
MAX_ATTEMPTS = 3
"""How many attempts in a row may die, or use up their time, without getting further than the one before."""
ENDED_BY_OTHERS = tuple(SIGNALS[number] for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
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
"""How long a child may take to save its state after the signal to stop."""
_LIBRARIES = ("torch", "transformers", "lm_eval", "datasets", "numpy")


class StepEnd(NamedTuple):
    """How a job left a step: an exit status, and the reason where it is not DONE."""

    status: int
    reason: str = ""


class Worker:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._job = JobContext.current()
        self._child = Child(store)
        self._mirror = Mirror(store)
        self._steps: Sequence[str] = ()
        self._stopping_since: float | None = None
        self._stopped_by = ""

    def run(self, steps: Sequence[str]) -> int:
        """Run what is not done; go on past failures to steps that do not depend on them. Each step's end is printed,
        with its reason where it is not a good one."""
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._on_stop)
        self._child.expect(steps)
        self._steps = steps
        worst = DONE
        for step in steps:
            status, reason = (INTERRUPTED, self._stopped_by) if self._stopping_since else self._step(step)
            worst = max(worst, status, key=_SEVERITY.index)
            if reason:
                say(f"{step}: {reason}", sys.stderr)
            say(f"{utc_now()} {step} {_STATUS_NAMES[status]}")
        self._child.close()
        self._mirror.close()
        return worst

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
        self._stopped_by = SIGNALS[signal.Signals(number)]
        self._child.stop()

    def _step(self, step_id: str) -> StepEnd:
        """Run one step. Whatever goes wrong with it is written down at the step, and the steps after it are run."""
        step = self._store.step(step_id)
        try:
            return self._until_ended(step)
        except Exception as error:
            self._child.kill()
            if _is_done(step):
                return StepEnd(DONE)
            return self._not_begun(step, answer_to(error), traceback.format_exc())

    def _not_begun(self, step: StepDir, answer: Answer, log: str = "") -> StepEnd:
        """The end of a step for which no attempt could begin. As there is no attempt to say so, a note does."""
        state: Literal["failed", "interrupted"] = "failed" if answer.state == "failed" else "interrupted"
        try:
            step.note_not_begun(state, answer.reason, log)
            status = self._status_after(answer, step)
        except (OSError, StoreError):  # the store that cannot be read cannot be written either
            status = None
        return StepEnd(INTERRUPTED if status is None else status, answer.reason)

    def _until_ended(self, step: StepDir) -> StepEnd:
        """Run the step until this or another process has finished it, or until this job cannot finish it.

        Raises OSError where the store cannot be read or written, StoreError where a file in it is damaged."""
        while not step.record():
            if self._stopping_since:
                return StepEnd(INTERRUPTED, self._stopped_by)
            if (failed := self._failed_before(step)) is not None:
                return StepEnd(FAILED, failed)
            if missing := self._missing_input(step.id):
                return StepEnd(BLOCKED, missing)
            if claim := step.claim():
                try:
                    end = self._attempt(claim)
                finally:
                    claim.release()
                if end is not None:
                    return end
            elif not step.record():
                time.sleep(BEAT_SECONDS)  # another worker is at it
        return StepEnd(DONE)

    def _failed_before(self, step: StepDir) -> str | None:
        """Why an earlier run of this very job has found that the step fails, if it has. A job is started again for what
        was interrupted in it, and a step that failed would fail again: its job may run it anew only on `mlkv retry`."""
        if not self._job.run or not (last := step.attempt()):
            return None
        environment, ended = last.environment(), last.exit()
        same_job = environment is not None and environment.job == self._job.id
        return ended.reason if same_job and ended is not None and ended.state == "failed" else None

    def _missing_input(self, step_id: str) -> str | None:
        """Why the step cannot begin yet: every parent must be done, with the bytes its record names. A parent that is
        corrupt is set aside to be run again."""
        spec = self._store.step(step_id).spec()
        if spec is None:
            return f"no such step in {self._store.root}"
        for parent in map(self._store.step, spec.parents.values()):
            if parent.record() is None:
                return f"waits for {parent.id}, which is not done"
            if wrong := parent.corrupted():
                parent.set_aside(wrong)
                return f"input {parent.id} is corrupt ({wrong}); set aside to be run again"
            if missing := parent.left_out():
                parent.put_beside()
                return f"input {parent.id} was unpacked without {missing[0]}; put beside, to be run here"
        return None

    def _attempt(self, claim: Claim) -> StepEnd | None:
        """Run the step once; its end, or None where the next look at the step shows it: the child died, or another
        worker took the step over."""
        attempt = claim.attempt
        with Heartbeat(claim) as heartbeat:
            try:
                answer = self._run_and_publish(claim, heartbeat)
            except Exception as error:  # of this process or of the store: the child had no part in it
                self._child.kill()
                answer = answer_to(error)
                if answer.state == "failed":
                    attempt.log(traceback.format_exc().rstrip())
        if _is_done(claim.step):
            answer = replace(answer, state="done")  # by this attempt or another one
            claim.step.tidy(attempt)
        elif answer.state == "done" or heartbeat.claim_is_lost or not claim.holds():
            answer = TAKEN_OVER
        assert answer.state != "vanished"
        if answer.outside:
            attempt.drop_unfinished()
        try:
            attempt.finish(answer.state, answer.reason, answer.returncode, answer.own)
        except OSError as error:
            answer = replace(answer, reason=f"{answer.reason}; and {describe_error(error)}")
        status = self._status_after(answer, claim.step)
        self._mirror.ended(claim, given_up=status in (FAILED, STUCK))
        return None if status is None else StepEnd(status, "" if status == DONE else answer.reason)

    def _status_after(self, answer: Answer, step: StepDir) -> int | None:
        """What an attempt's end means for the job.

        INTERRUPTED sends the job back into the queue, to go on where the step left off; that is right for what hit the
        job (a signal, a node, a full disk). After MAX_ATTEMPTS without progress it would only go round: STUCK ends the
        job, and a person has to look. None: the step is tried again in this job.
        """
        if answer.state == "done":
            return DONE
        if answer.state == "failed":
            return FAILED
        if answer.needs_repair:
            return BLOCKED
        if self._stopping_since:
            return INTERRUPTED
        if answer.outside:
            stuck = attempts_without_progress(step.attempts(), whatever_ended_them=True) >= MAX_ATTEMPTS
            return STUCK if stuck else INTERRUPTED
        return None

    def _run_and_publish(self, claim: Claim, heartbeat: Heartbeat) -> Answer:
        step, attempt, clock = claim.step, claim.attempt, time.monotonic()
        killed_before, group = out_of_memory_kills(), self._group(step)
        record = self._record(claim)  # now: no output is to be lost because this cannot be read at the end
        job, run = (self._job.id, self._job.run) if self._job.id else (None, None)
        packages = self._store.note_packages(installed_packages())
        attempt.write_environment(Environment(**_machine(), job=job, run=run, group=group, packages=packages))
        together = self._together(step.id)
        self._child.send(Request(step=step.id, attempt=attempt.number, group=group, together=together))
        self._mirror.began(claim, self._child.pid)
        answer, peak = self._watch(heartbeat)
        if answer.state == "vanished":
            if (answer.returncode or 0) > 0 and (last := attempt.log_tail(1)):
                answer = replace(answer, reason=f"{answer.reason}: {' '.join(last[0].split())}")
            answer = self._answer_of_dead_child(answer, peak, out_of_memory_kills() > killed_before)
        if (
            answer.state == "failed"
            and answer.reason.startswith(OUT_OF_MEMORY)
            and (settings := kind_of(step.kind).saves_memory)
        ):
            answer = replace(answer, reason=f"{answer.reason}; it takes less with {settings}")
        if answer.state == "interrupted" and not (answer.outside or answer.needs_repair):
            answer = self._interruption(claim, answer)
        if answer.state == "done":
            wall = max(0.0, time.monotonic() - clock - answer.outcome.for_others)
            devices = max(1, len(_visible_gpus())) * self._job.nodes
            step.publish(
                claim,
                replace(
                    record,
                    finished=utc_now(),
                    wall_seconds=round(wall, 3),
                    device_seconds=round(wall * devices, 3),
                    peak_memory_bytes=peak,
                    metrics=answer.outcome.metrics,
                    facts=answer.outcome.facts,
                ),
            )
        return answer

    def _together(self, step_id: str) -> list[str]:
        """The further steps of the job that a session can run beside one: of its kind, and nobody's yet."""
        kind = self._store.step(step_id).kind
        if kind_of(kind).session is None or step_id not in self._steps:
            return []
        later = map(self._store.step, self._steps[self._steps.index(step_id) + 1 :])
        return [step.id for step in later if step.kind == kind and self._is_open(step)]

    def _is_open(self, step: StepDir) -> bool:
        try:
            taken = step.state().name in (StepState.DONE, StepState.RUNNING)
            return not taken and self._failed_before(step) is None
        except (OSError, StoreError):  # which the step's own turn will report
            return False

    def _record(self, claim: Claim) -> Record:
        """The record as far as it is known before the step runs: where, and from what, the output is made."""
        step = claim.step
        spec = step.spec()
        parents = [self._store.step(parent).record() for parent in (spec.parents.values() if spec else ())]
        return Record(
            id=step.id,
            kind=step.kind,
            attempt=claim.attempt.number,
            started=utc_now(),
            finished="",
            wall_seconds=0.0,
            device_seconds=0.0,
            peak_memory_bytes=0,
            **_machine(),
            code=self._store.code_hash,
            result_code=self._store.result_code(step.kind),
            work=step.how().work,
            inputs={parent.id: parent.outputs for parent in parents if parent},
            metrics=[],
            facts={},
            outputs={},
        )

    def _group(self, step: StepDir) -> dict[str, str] | None:
        """The first process's place among those that will train this step together."""
        spec = step.spec()
        if self._job.ranks == 1 or spec is None or not is_training(self._store, spec):
            return None
        address = "127.0.0.1" if self._job.nodes == 1 else socket.gethostname()
        return self._job.group(address, free_port())

    def _answer_of_dead_child(self, answer: Answer, peak: int, memory_ran_out: bool) -> Answer:
        """What the end of a child without an answer means: a signal from outside interrupts, its own fault fails."""
        if memory_ran_out:
            advice = "raise cluster.resources.KIND.memory_gb"
            reason = f"{OUT_OF_MEMORY}: the kernel killed it at {peak / 2**30:.1f} GiB or more; {advice}"
            return replace(answer, state="failed", reason=reason)
        code = answer.returncode or 0
        from_outside = code < 0 and -code not in OWN_SIGNALS
        return replace(answer, state="interrupted" if from_outside or self._stopping_since else "failed")

    def _interruption(self, claim: Claim, answer: Answer) -> Answer:
        """With the signal behind it; failed where the step has been interrupted again and again at the same place, as
        it would go on for ever (a time limit that is too short for one checkpoint)."""
        reason = "; ".join(filter(None, [answer.reason, self._stopped_by]))
        answer = replace(answer, reason=reason, own=self._stopped_by not in ENDED_BY_OTHERS)
        if answer.own and (count := attempts_without_progress(claim.step.attempts())) >= MAX_ATTEMPTS:
            return replace(answer, state="failed", reason=f"{count} attempts in a row got no further: {reason}")
        return answer

    def _watch(self, heartbeat: Heartbeat) -> tuple[Answer, int]:
        """The child's answer and the most memory it was seen to hold, in bytes."""
        peak = 0
        while True:
            self._mirror.watch()
            peak = max(peak, self._child.resident_bytes())
            if answer := self._child.answer(timeout=BEAT_SECONDS):
                return answer, peak
            overdue = self._stopping_since and time.monotonic() - self._stopping_since > GRACE_SECONDS
            if overdue or heartbeat.claim_is_lost:
                self._child.kill()


def _is_done(step: StepDir) -> bool:
    """Whether it has a record, as far as the store can be read."""
    try:
        return step.record() is not None
    except (OSError, StoreError):
        return False


def attempts_without_progress(attempts: Sequence[Attempt], whatever_ended_them: bool = False) -> int:
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


_STATUS_NAMES = {DONE: "done", FAILED: "failed", BLOCKED: "blocked", INTERRUPTED: "interrupted", STUCK: "interrupted"}


def _visible_gpus() -> list[str]:
    return [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]


class _Machine(TypedDict):
    """What records and environments say of it."""

    host: str
    device: str
    versions: dict[str, str]


def _machine() -> _Machine:
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    device = f"cuda:{','.join(gpus)}" if (gpus := _visible_gpus()) else platform.machine()
    return {"host": host(), "device": device, "versions": versions}
