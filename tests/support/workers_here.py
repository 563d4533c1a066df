"""Workers that compute in the process of the test: milliseconds where a child takes seconds to start."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlkv.files import Json
from sweeps.steps.step import Step
from sweeps.store.schema import Runtime
from sweeps.store.stepdir import StepDir
from sweeps.store.store import Store
from sweeps.worker import child_main, supervisor
from sweeps.worker.job_context import SIGNALS
from sweeps.worker.messages import Answer, Request
from sweeps.worker.supervisor import Worker
from tests.support.records import record_of


class ChildHere:
    """The computing process's part, in this one."""

    pid = None

    def __init__(self, store: Store) -> None:
        self._store = store
        self._answer: Answer | None = None

    def expect(self, steps: Sequence[str]) -> None: ...

    def send(self, request: Request) -> None:
        self._answer = child_main._answer(self._store, request)

    def answer(self, timeout: float) -> Answer | None:
        return self._answer

    def resident_bytes(self) -> int:
        return 0

    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


@contextmanager
def workers_here() -> Iterator[pytest.MonkeyPatch]:
    """Workers compute here, and leave this process's signals as they were; nothing waits for the disk."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(supervisor, "Child", ChildHere)
        patched.setattr(supervisor, "_machine", lambda: {"host": "here", "device": "cpu", "versions": {}})
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield patched
    for number, handler in handlers.items():
        signal.signal(number, handler)


def planned(root: Path, step: Step) -> StepDir:
    directory = Store(root).step(step.id)
    directory.write_spec(step.spec, Runtime(fields=step.how))
    return directory


def know_code(store: Store) -> None:
    """Spare a test that does not look at them the hashes of the code."""
    store.__dict__.update(code_hash="0123456789abcdef", _result_codes={"": "2:0123456789abcdef"})


def work(step: StepDir, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """A worker's exit status and what it printed."""
    store = Store(step.path.parents[2])
    know_code(store)
    status = Worker(store).run([step.id])
    return status, capsys.readouterr().out


def finished(store: Store, step: Step, fields: Json) -> StepDir:
    """The step as a worker leaves it, with an empty output and these fields in its record."""
    directory = planned(store.root, step)
    claim = directory.claim()
    assert claim
    assert directory.publish(claim, record_of(claim, fields))
    claim.release()
    return directory
