"""What W&B tells people: that a step has failed for good, and that a sweep has ended; each once."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.store.states import StepState
from sweeps.tracking.alerts import step_alert, sweep_alert
from sweeps.tracking.runs import Run
from tests.support.tracked import Acted, Planner, Stage, arrives, independent_steps, make_stage
from tests.support.wandb_server import WandbServer


def fail(acted: Acted, reason: str) -> None:
    acted.claim.attempt.finish("failed", reason, 1)
    acted.mirror.ended(acted.claim, given_up=True)
    acted.claim.release()


@pytest.mark.slow
def test_a_failed_step_and_the_end_of_a_sweep_are_told_once(tmp_path: Path, server: WandbServer) -> None:
    stage = independent_steps(tmp_path, 2, mode="online", alerts="end", timeout=60.0)
    first, second = stage.saved.plan.steps
    mirror = stage.mirror()
    stage.begin(mirror, first).end("interrupted")
    fail(stage.begin(mirror, first), "Traceback:\nValueError: kv_heads = 3 does not divide 4")
    arrives(lambda: len(server.backend.alerts) == 1)
    fail(stage.begin(mirror, first), "again")
    stage.begin(mirror, second).end()
    mirror.close()
    alerts = [(each["title"], each["text"], each["severity"]) for each in server.backend.alerts]
    assert alerts == [
        ("uptrain step 0 failed", f"ValueError: kv_heads = 3 does not divide 4\nstep {first} of sweep many", "ERROR"),
        ("sweep many has ended", "1 DONE, 1 FAILED", "ERROR"),
    ]
    assert stage.sync()[0] == 0
    assert len(server.backend.alerts) == 2, "sync tells nobody"
    assert not stage.log_of(first)


def test_only_what_has_failed_for_good_is_told() -> None:
    def run(state: StepState, reason: str = "") -> Run:
        return Run("id", "uptrain " + "x" * 80, "uptrain", {}, {}, [], {"reason": reason}, state)

    assert step_alert(run(StepState.DONE), False, None) is None
    assert step_alert(run(StepState.INTERRUPTED), False, None) is None
    given_up = step_alert(run(StepState.INTERRUPTED, "a\nb\n\n"), True, None)
    assert given_up
    assert given_up.text.splitlines() == ["b", "step id"]
    failed = step_alert(run(StepState.FAILED, "token hf_abcdefghijklmnopqrst"), True, "mine")
    assert failed
    assert failed.text.splitlines() == ["token ***", "step id of sweep mine"]
    assert len(failed.title) < 64, "W&B refuses longer ones"


def test_a_sweep_has_ended_when_nothing_of_it_can_go_on(planner: Planner, tiny: list[str], tmp_path: Path) -> None:
    stage: Stage = make_stage(planner, tiny, tmp_path, mode="off")
    by_kind: dict[str, list[str]] = {}
    for id, planned in stage.saved.plan.steps.items():
        by_kind.setdefault(planned.kind, []).append(id)
    stage.act(stage.id("corpus"), [])
    assert sweep_alert(stage.store, stage.saved) is None
    stage.act(stage.id("base"), [], "failed")
    assert sweep_alert(stage.store, stage.saved) is None, "measuring needs no weights"
    for step in by_kind["measure"]:
        stage.act(step, [])
    alert = sweep_alert(stage.store, stage.saved)
    assert alert
    blocked = len(stage.saved.plan.steps) - len(by_kind["measure"]) - 2
    assert alert.text == f"{blocked} BLOCKED, {len(by_kind['measure']) + 1} DONE, 1 FAILED"
    assert alert.bad
    stage.act(stage.id("base"), [], "interrupted")
    assert sweep_alert(stage.store, stage.saved) is None
