"""Messages that W&B sends to people: a step has failed for good, a sweep has ended."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sweeps.store.states import NOTHING_LEFT, StepState, where_stopped
from sweeps.store.store import SavedSweep, Store
from sweeps.tracking.redaction import redact
from sweeps.tracking.runs import Run, step_state

ALERTS_KEY = "mlkv_alerts"
"""Key of the summary that names the states of the run that people were told of."""
MAX_TITLE = 63


@dataclass(frozen=True)
class Alert:
    """once: what it is about; a second one about the same is not sent."""

    title: str
    text: str
    once: str
    bad: bool = True


def step_alert(run: Run, given_up: bool, sweep: str | None) -> Alert | None:
    """None where the step has not failed. `given_up`: the job does not try again what was interrupted."""
    if run.state != StepState.FAILED and not (given_up and run.state == StepState.INTERRUPTED):
        return None
    lines = [line.strip() for line in str(run.summary.get("reason") or "").splitlines() if line.strip()]
    title = f"{run.name} {'failed' if run.state == StepState.FAILED else 'was given up'}"
    about = f"step {run.id}" + (f" of sweep {sweep}" if sweep else "")
    return Alert(title[:MAX_TITLE], redact(f"{lines[-1] if lines else 'no reason is known'}\n{about}"), run.state.value)


def sweep_alert(store: Store, sweep: SavedSweep) -> Alert | None:
    """None while a step can still go on."""
    ends = _Ends(store, sweep)
    counted: Counter[StepState] = Counter()
    for id in reversed(sweep.plan.steps):  # the steps that end last come first: most looks are short
        state = ends.of(id)
        if state is None:
            return None
        counted[state] += 1
    text = ", ".join(f"{counted[state]} {state.name}" for state in sorted(counted, key=lambda state: state.value))
    bad = not set(counted) <= set(NOTHING_LEFT)
    return Alert(f"sweep {sweep.name} has ended"[:MAX_TITLE], text, f"{sweep.number} {text}", bad)


class _Ends:
    """How the steps of a sweep have ended; reads each step once."""

    def __init__(self, store: Store, sweep: SavedSweep) -> None:
        self._store, self._steps, self._stopped = store, sweep.plan.steps, sweep.plan.stopped or {}
        self._known: dict[str, StepState | None] = {}

    def of(self, id: str) -> StepState | None:
        """DONE, STOPPED, FAILED, or BLOCKED by a step before it that is not done; None for a step that has not
        ended."""
        if id not in self._known:
            state = step_state(self._store.step(id))[0]
            state = where_stopped(state) if id in self._stopped else state
            ended: StepState | None = state if state in (*NOTHING_LEFT, StepState.FAILED) else None
            if ended is None and state == StepState.PENDING:
                before = [self.of(parent) for parent in self._steps[id].parents.values() if parent in self._steps]
                if any(each in (StepState.FAILED, StepState.BLOCKED) for each in before):
                    ended = StepState.BLOCKED
            self._known[id] = ended
        return self._known[id]
