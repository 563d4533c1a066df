"""What the quickstart's recipe does to a good start: uptraining must not undo what a fit has kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.planning.compose import Composer
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.resolve import Resolver
from sweeps.store.store import Store
from sweeps.worker.supervisor import DONE, Worker
from tests.support.read_back import present
from tests.support.tiny import text_files
from tests.support.workers_here import workers_here

SMALL_BASE = ["corpus.vocab_size=512", "corpus.sequence_length=96", "calibrate.tokens=4096"]
SMALL_BASE += ["base.steps=300", "base.batch_size=8", "base.threads=1"]
SMALL_BASE += [f"model.decoder.{name}" for name in ("width=64", "layers=4", "heads=4", "head_dim=16", "mlp_width=128")]
SCORED = ["evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]", "evaluate.axis=null", "measure=none"]


def scores(store: Store, plan: Plan) -> Iterator[tuple[str, float]]:
    """Bits per byte of each variant's checkpoint, by its merge."""
    for variant in plan.variants:
        record = present(store.step(variant.evaluate["bits_per_byte"].id).record())
        [value] = (row.value for row in record.metrics if row.metric == "bits_per_byte")
        yield variant.config.convert.merge, present(value)


@pytest.mark.long
def test_the_quickstarts_uptraining_leaves_no_good_start_worse(tmp_path: Path) -> None:
    """A base trained to its end, and the recipe that `experiment=quickstart` composes, unchanged: after it every
    conversion that keeps most of the base is below its own untrained loss."""
    store = Store.open(tmp_path / "store")
    line = ["experiment=quickstart", "corpus=text_files", f"corpus.files=[{text_files(tmp_path / 'text')}/**/*.py]"]
    line += [*SMALL_BASE, *SCORED, "convert.widening=none", "convert.merge=aligned,svd", "sweep.baselines=[]"]
    line += ["layout.kv_layers=2", "layout.kv_heads=2"]
    found = []
    for uptraining in ([], ["uptrain=none"]):
        plan = make_plan(Composer(), Resolver(store), [*line, *uptraining])
        freeze(plan, store, line)
        with workers_here():
            assert Worker(store).run(list(plan.steps)) == DONE
        found.append(dict(scores(store, plan)))
    trained, untrained = found
    assert set(untrained) == {"aligned", "svd"}
    assert all(trained[merge] < loss for merge, loss in untrained.items()), (trained, untrained)
