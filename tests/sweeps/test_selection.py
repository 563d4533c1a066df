"""Which steps of a sweep a subcommand's words name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sweeps.cli.cancel import steps_to_cancel
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan
from sweeps.store.errors import UserError
from sweeps.store.schema import JobRow
from sweeps.store.store import Store

LINE = ["measure=none", "evaluate=none", "sweep.baselines=[]", "name=narrowed"]


def test_a_variant_that_a_later_plan_dropped_can_be_cancelled(
    planner: Callable[[Sequence[str]], Plan], tmp_path: Path
) -> None:
    store = Store.open(tmp_path / "store")
    wide, narrow = planner([*LINE, "layout=mqa,cla"]), planner([*LINE, "layout=mqa"])
    freeze(wide, store, [])
    saved = freeze(narrow, store, [])
    [dropped] = {variant.label for variant in wide.variants} - {variant.label for variant in narrow.variants}
    own = [id for id in wide.steps if id not in narrow.steps]
    store.note_jobs([JobRow(name="first", steps=own, sweep="narrowed")])
    assert steps_to_cancel(store, saved, [dropped]) == own
    assert set(steps_to_cancel(store, saved, [])) == set(wide.steps)
    store.note_jobs([JobRow(name="second", steps=own, sweep="another")])
    assert steps_to_cancel(store, saved, [dropped]) == []
    assert set(steps_to_cancel(store, saved, [])) == set(narrow.steps)
    with pytest.raises(UserError, match=rf"GQA-4: no variant or step of sweep narrowed \(variants: .*{dropped}"):
        steps_to_cancel(store, saved, ["GQA-4"])
