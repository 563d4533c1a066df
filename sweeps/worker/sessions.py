"""Steps that a process runs together, in turns: it is asked for one, and has the results of the others ready when it is
asked for them.

Nothing is claimed before it is asked for. What another worker finishes meanwhile is not asked for, and a process that
dies takes its session with it: the others then run as if there had been none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from mlkv.context import Outcome, StepFailed
from sweeps.steps.kind import Execution, Ran
from sweeps.steps.registry import kind_of
from sweeps.steps.step import Step
from sweeps.store.errors import StoreError
from sweeps.store.store import Store
from sweeps.worker import frozen


class Sessions:
    def __init__(self) -> None:
        self._ready: dict[tuple[Path, str], Ran] = {}
        """By store and step."""

    def run(self, store: Store, execution: Execution, together: Sequence[str]) -> Outcome:
        """Run a step, and with it those of `together` that its kind can run beside it; or hand out the result that an
        earlier session has of it. Raises what ended it."""
        step = execution.step
        ran = self._ready.pop((store.root, step.id), None) or self._together(store, execution, together)
        if ran is None:
            return kind_of(step.kind).run(execution)
        for row in ran.rows:
            execution.ctx.log(row)
        if isinstance(ran.result, Exception):
            raise ran.result
        return ran.result

    def _together(self, store: Store, execution: Execution, together: Sequence[str]) -> Ran | None:
        """None where there is nothing to run beside it."""
        session, step = kind_of(execution.step.kind).session, execution.step
        others = list(self._others(store, step, together)) if session else []
        if session is None or not others:
            return None
        first, *rest = session.run(execution, others)
        self._ready |= {(store.root, other.id): ran for other, ran in zip(others, rest, strict=True)}
        return first

    def _others(self, store: Store, step: Step, together: Sequence[str]) -> Iterator[Step]:
        """Steps for a session with `step`. One that cannot run says so when it is its turn."""
        for id in together:
            with suppress(StepFailed, StoreError, OSError):
                frozen.check(store, id)
                directory = store.step(id)
                spec, session = directory.spec(), kind_of(step.kind).session
                other = Step.of_spec(spec, directory.how()) if spec else None
                if other is None or session is None or (store.root, id) in self._ready or other.kind != step.kind:
                    continue
                if session.key(other) == session.key(step):
                    yield other
