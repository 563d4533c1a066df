"""The process in which steps compute. Reads one request per line, answers one line each; its parent is sweeps.worker.

Between the two nothing is shared but the store: this process never writes a record and its parent never imports torch.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

from mlkv.context import Context, Interrupted, MetricRow, Outcome, Row, StepFailed
from mlkv.signature import OUT_OF_MEMORY
from sweeps.steps.evaluate import TASK
from sweeps.steps.extensions import pinned_task
from sweeps.steps.kind import Execution
from sweeps.steps.registry import kind_of
from sweeps.steps.step import Step
from sweeps.store import typed_json
from sweeps.store.attempt import Attempt
from sweeps.store.errors import StoreError
from sweeps.store.lines import open_to_append
from sweeps.store.outside import outside_cause
from sweeps.store.store import Store
from sweeps.worker import frozen
from sweeps.worker.imports import import_modules
from sweeps.worker.messages import Answer, Request, answer_to, interrupted_from_outside, line_of
from sweeps.worker.sessions import Sessions

_stop = False
_sessions = Sessions()


def main() -> None:
    """Serve until the parent closes our stdin. Answers go to the file descriptor named by the second argument."""
    store = Store(Path(sys.argv[1]))
    atexit.register(gc.freeze)  # else a second goes by at the end, on the garbage in all that was imported
    answers = os.fdopen(int(sys.argv[2]), "w")
    _die_with_parent()
    for number in (signal.SIGTERM, signal.SIGUSR2):  # SLURM warns of the time limit by SIGUSR2
        signal.signal(number, _on_stop)
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all; our parent's SIGTERM follows
        signal.signal(number, signal.SIG_IGN)
    os.register_at_fork(after_in_child=_obey_signals)
    for line in sys.stdin:
        request = typed_json.parsed(Request, line.encode())
        with _in_group(request.group or {}):
            answer = _answer(store, request)
        answers.write(line_of(answer))
        answers.flush()


def _on_stop(number: int, frame: FrameType | None) -> None:
    global _stop
    _stop = True


def _obey_signals() -> None:
    """Processes that a library forks (a pool that maps a dataset) are ended by SIGTERM, as their parent expects."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _die_with_parent() -> None:
    """A supervisor that is killed outright must not leave a process that computes for nobody (Linux)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _answer(store: Store, request: Request) -> Answer:
    """Run one attempt. Failure is an answer like any other."""
    try:
        return _logged_answer(store, request)
    except Exception as error:  # its logs cannot be opened, say: the step itself did not cause that
        return answer_to(error)


def _logged_answer(store: Store, request: Request) -> Answer:
    """A failure's traceback goes to the attempt's err.log. Of several processes that train together the first logs the
    rows."""
    attempt = next(a for a in store.step(request.step).attempts() if a.number == request.attempt)
    rank = int((request.group or {}).get("RANK", 0))
    out, err = (attempt.log_of_rank(rank),) * 2 if rank else (attempt.stdout, attempt.stderr)
    with _logging_to(out, err), open_to_append(attempt.metrics_file) if not rank else open(os.devnull, "w") as rows:
        try:
            return Answer(state="done", outcome=_run(store, request, attempt, rows))
        except Interrupted as error:
            return Answer(state="interrupted", reason=str(error) or "stopped on request")
        except BaseException as error:  # SystemExit too, which only the code of a step raises here
            if not isinstance(error, StepFailed):
                with suppress(OSError):  # the log may lie on the full disk that the traceback is about
                    traceback.print_exc()
            return _failure(error)


def _failure(error: BaseException) -> Answer:
    if cause := outside_cause(error):
        return interrupted_from_outside(_in_one_line(cause))
    if isinstance(error, StoreError):
        return answer_to(error)
    if isinstance(error, StepFailed):
        return Answer(state="failed", reason=_in_one_line(str(error)))
    from mlkv.device import is_out_of_memory

    name = OUT_OF_MEMORY if is_out_of_memory(error) else type(error).__name__
    text = _in_one_line(str(error))
    return Answer(state="failed", reason=f"{name}: {text}" if text else name)


def _run(store: Store, request: Request, attempt: Attempt, rows: TextIO) -> Outcome:
    frozen.check(store, request.step)
    step = store.step(request.step)
    spec = step.spec()
    assert spec is not None
    inputs = {role: store.step(parent).out for role, parent in spec.parents.items()}
    if task := pinned_task(store, spec.pinned):
        inputs[TASK] = task
    context = Context(step.work, lambda row: _log(rows, row), lambda: _stop, attempt.number)
    planned = Step.of_spec(spec, step.how())
    import_modules(kind_of(planned.kind).modules)
    outcome = _sessions.run(store, Execution(planned, inputs, attempt.out, context), request.together)
    _check_outcome(outcome)
    return outcome


def _check_outcome(outcome: object) -> None:
    """A record is JSON, and a kind of step may be an extension's. Raises StepFailed for what a record cannot hold, or
    no table could use: JSON has no number that is not finite."""
    if not isinstance(outcome, Outcome):
        raise StepFailed(f"a step must return an Outcome, not {type(outcome).__name__}")
    for row in outcome.metrics:
        if not isinstance(row, MetricRow):
            raise StepFailed(f"the metrics of an Outcome must be MetricRows, not {type(row).__name__}")
        for name, value in (("value", row.value), ("stderr", row.stderr)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise StepFailed(f"metric {row.metric}: {name} must be a number, not {type(value).__name__}")
            if not math.isfinite(value):
                raise StepFailed(f"metric {row.metric}: {name} = {value} is not finite")
    try:
        json.dumps(typed_json.as_json(outcome), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StepFailed(f"what the step returned cannot be written as JSON ({error})") from None


def _log(rows: TextIO, row: Row) -> None:
    rows.write(json.dumps({"time": round(time.time(), 3), **row}) + "\n")
    rows.flush()


@contextmanager
def _logging_to(stdout: Path, stderr: Path) -> Iterator[None]:
    """File descriptors 1 and 2, so that libraries' own output lands in the attempt's logs too."""
    saved = os.dup(1), os.dup(2)
    with stdout.open("ab") as out, stderr.open("ab") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # a log that cannot be written is no reason to lose what was computed
                stream.flush()
        for saved_descriptor, descriptor in zip(saved, (1, 2), strict=True):
            os.dup2(saved_descriptor, descriptor)
            os.close(saved_descriptor)


@contextmanager
def _in_group(group: dict[str, str]) -> Iterator[None]:
    """torch.distributed's environment for as long as a step trains with others."""
    os.environ.update(group)
    try:
        yield
    finally:
        for name in group:
            os.environ.pop(name, None)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())[:2000]


if __name__ == "__main__":
    main()
