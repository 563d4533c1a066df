"""How long planning and reconciling take as sweeps grow, compared with composing every variant through Hydra alone.

    python benchmarks/plan.py

Plans 1,008 variants of about five steps each, then 5,000 finished steps in a store made for it. What a user would write
instead is a loop over `hydra.compose`, which alone is timed on a sample.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeps.planning.compose import Composer
from sweeps.planning.freeze import freeze
from sweeps.planning.grammar import points
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.reconcile import read_states, to_run
from sweeps.planning.resolve import Resolver
from sweeps.store.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.turns import arguments, circumstances, report
from tests.support.records import record_of

LINE = [
    "layout.pattern=even,pizza,sandwich",
    "layout.kv_layers=range(1,7)",
    "layout.kv_heads=1,2,3,6",
    "uptrain.lr=1e-4,2e-4,5e-4,1e-3,2e-3,5e-3,1e-2",
    "uptrain.steps=50,100,200",
    "evaluate.tasks=[bits_per_byte,heldout_choice4,heldout_choice2,heldout_cloze]",
    "evaluate.accuracy=[]",
    "sweep.baselines=[]",
    "name=bench",
]
FINISHED_STEPS = 5000


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def plan_power(plan: Plan, store: Store) -> list[str]:
    """What the plan says of its power, with the imports that this takes: as if it had three seeds, as of one seed no
    difference is computed."""
    from sweeps.cli.power import planned_power, power_lines

    return list(power_lines([replace(each, seeds=3) for each in planned_power(plan, store)]))


def finish_all(plan: Plan, store: Store) -> int:
    """Every step of the plan with a record of usual size, up to FINISHED_STEPS."""
    ids = list(plan.steps)[:FINISHED_STEPS]
    for id in ids:
        claim = store.step(id).claim()
        assert claim
        (claim.attempt.out / "result.json").write_text("{}")
        claim.attempt.finish("done", "", 0)
        metrics = [{"metric": f"m{i}", "value": 0.5, "stderr": 0.01, "n": 100} for i in range(6)]
        record = {"wall_seconds": 1.0, "work": 1.0, "code": store.code_hash, "metrics": metrics, "facts": {}}
        claim.step.publish(claim, record_of(claim, record))
        claim.release()
    return len(ids)


def main() -> None:
    given, where = arguments(__doc__).parse_args(), circumstances()
    with tempfile.TemporaryDirectory() as folder:
        store, composer = Store.open(Path(folder)), Composer()
        plan_seconds, plan = timed(lambda: make_plan(composer, Resolver(store), LINE))
        power_seconds, _ = timed(lambda: plan_power(plan, store))
        sample = [lines for lines, _ in points(composer, LINE)][:40]
        sample = [[f"++{line}" for line in lines] for lines in sample]
        whole_seconds, _ = timed(lambda: [composer.whole(lines) for lines in sample])
        freeze(plan, store, LINE)
        finished = finish_all(plan, store)
        reconcile_seconds, todo = timed(lambda: to_run(plan.steps, read_states(plan.steps, store)))
    hydra_seconds = whole_seconds / len(sample) * len(plan.variants)
    numbers = {
        "variants": len(plan.variants),
        "steps": len(plan.steps),
        "plan_seconds": plan_seconds,
        "hydra_compose_seconds": hydra_seconds,
        "ratio": plan_seconds / hydra_seconds,
        "power_seconds": power_seconds,
        "power_share": power_seconds / plan_seconds,
        "finished_steps": finished,
        "left_to_run": len(todo),
        "reconcile_seconds": reconcile_seconds,
    }
    report("plan", where, numbers, given.save)


if __name__ == "__main__":
    main()
