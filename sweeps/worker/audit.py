"""Runs finished steps again in a store of its own and compares what comes out: does a result hold?

The step gets its spec and the outputs of its parents, which are read where they are; whatever it writes goes into a
temporary directory. So nothing of the audited store is ever touched.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sweeps.steps.verify import edited
from sweeps.store.outside import describe_error
from sweeps.store.schema import Record
from sweeps.store.stepdir import StepDir
from sweeps.store.store import Store
from sweeps.tracking.target import VARIABLE
from sweeps.worker.compare import Comparison, Verdict, compare
from sweeps.worker.frozen import CODE
from sweeps.worker.job_context import SIGNALS
from sweeps.worker.supervisor import INTERRUPTED, Worker


@dataclass(frozen=True)
class Audited:
    """A step that was run again, or why it was not. changes: how this machine differs from the one that made the
    result (`torch 2.12.0 → 2.13.0`)."""

    step: str
    comparison: Comparison
    changes: list[str] = field(default_factory=list)
    seconds: float | None = None


def drawn(store: Store, ids: Sequence[str], seed: int) -> list[str]:
    """The finished ones of some steps, in an order that the seed decides."""
    done = sorted(id for id in ids if store.step(id).record())
    random.Random(seed).shuffle(done)
    return done


def audit(store: Store, step_id: str) -> Audited:
    """Raises KeyboardInterrupt where a signal ends it, and OSError where nothing can be written to the temporary
    directory."""
    step = store.step(step_id)
    record = step.record()
    assert record
    if wrong := step.corrupted() or edited(step):
        return Audited(step_id, Comparison(Verdict.DIFFERENT, f"is not as it was recorded: {wrong}"))
    if reason := _cannot_run(store, step, record):
        return Audited(step_id, Comparison(Verdict.NOT_RUN, reason))
    with tempfile.TemporaryDirectory(prefix="mlkv-audit-") as folder:
        elsewhere = _copied(store, step, Path(folder) / "store")
        _run(elsewhere, step_id)
        again = elsewhere.step(step_id)
        found = again.record()
        if found is None:
            state = again.state()
            reason = f"ended as {state.name}: {state.reason or 'its process gave no reason'}"
            return Audited(step_id, Comparison(Verdict.NOT_RUN, reason))
        comparison = compare(record, step.out, found, again.out)
    return Audited(step_id, comparison, _changes(record, found), found.wall_seconds)


def _cannot_run(store: Store, step: StepDir, record: Record) -> str:
    """Why the step cannot be run again here; empty where it can, as far as that shows before."""
    spec = step.spec()
    if spec is None:
        return "its spec.json is gone"
    for parent in map(store.step, spec.parents.values()):
        if parent.record() is None:
            return f"its input {parent.id} was pruned, or set aside"
        if missing := parent.left_out():
            return f"its input {parent.id} was unpacked without {missing[0]}"
        try:
            if wrong := parent.corrupted():
                return f"its input {parent.id} is corrupt ({wrong})"
        except OSError as error:
            return f"its input {parent.id} cannot be read ({describe_error(error)})"
    return _other_device(record)


def _other_device(record: Record) -> str:
    from mlkv.device import default_device

    made_on, here = str(record.facts.get("device") or "").partition(":")[0], default_device().type
    # A measurement names the device that it is to run on, and a machine with a GPU has a processor too.
    can_run = made_on == here or (record.kind == "measure" and made_on == "cpu")
    other = made_on in ("cpu", "cuda") and not can_run
    return f"was made on {made_on}, and this machine computes on {here}" if other else ""


def _copied(store: Store, step: StepDir, root: Path) -> Store:
    """A store with the step as planned and its parents as finished, whose outputs are links to where they are."""
    elsewhere = Store.open(root)
    spec = step.spec()
    assert spec
    elsewhere.step(step.id).write_spec(spec, step.how())
    for parent in map(store.step, spec.parents.values()):
        target = elsewhere.step(parent.id)
        target.path.mkdir(parents=True, exist_ok=True)
        for name in ("spec.json", "done.json"):
            shutil.copyfile(parent.path / name, target.path / name)
        if not target.out.exists():
            target.out.symlink_to(parent.out)
    if store.code("").is_dir():  # extensions and task files that the step is pinned to
        elsewhere.code("").symlink_to(store.code(""))
    return elsewhere


def _run(store: Store, step_id: str) -> None:
    """Run the step as a job would, without W&B; what the worker prints for its log is dropped."""
    with _as_before(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        status = Worker(store).run([step_id])
    if status == INTERRUPTED and store.step(step_id).record() is None and _was_stopped(store.step(step_id)):
        raise KeyboardInterrupt


def _was_stopped(step: StepDir) -> bool:
    return any(words in step.state().reason for words in SIGNALS.values())


@contextmanager
def _as_before() -> Iterator[None]:
    """This process's signal handlers and environment are afterwards what they were."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    variables = {name: os.environ.pop(name) for name in (VARIABLE, CODE) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(variables)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _changes(before: Record, after: Record) -> list[str]:
    names = dict.fromkeys([*before.versions, *after.versions])
    pairs: list[tuple[str, object, object]] = [
        ("host", before.host, after.host),
        ("device", before.device, after.device),
    ]
    pairs += [(str(key), before.facts.get(key), after.facts.get(key)) for key in ("processor", "precision")]
    pairs += [(name, before.versions.get(name), after.versions.get(name)) for name in names]
    changes = [f"{name} {old} → {new}" for name, old, new in pairs if old != new]
    other_code = None not in (before.result_code, after.result_code) and before.result_code != after.result_code
    return [*changes, *(["other code"] if other_code else [])]
