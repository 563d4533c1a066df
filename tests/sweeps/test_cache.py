"""`cache=int8`: one key for what a variant is scored and measured with, and the bytes at which it stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mlkv.cache.formats import CACHES
from mlkv.registry import extensions
from sweeps.planning.plan import Plan
from sweeps.store.errors import UserError

Planner = Callable[[Sequence[str]], Plan]
LINE = ["experiment=quickstart", "layout.kv_layers=6,3", "layout.kv_heads=1,2"]


def test_a_cache_more_is_scored_and_measured_and_trains_nothing(planner: Planner) -> None:
    before, after = planner(LINE).steps, planner([*LINE, "cache=model,int8"]).steps
    new = Counter(step.kind for id, step in after.items() if id not in before)
    assert set(new) == {"evaluate", "measure"}
    assert new["measure"] == len({"MHA-36", "MQA-6", "MLKV-6"})
    assert set(before) < set(after), "the model's own cache is what it was"


def test_a_variant_stands_at_the_bytes_of_the_cache_it_is_scored_with(planner: Planner) -> None:
    plan = planner([*LINE, "cache=model,int8,int4", "measure.dtype=bf16"])
    rows = {variant.label: variant.row() for variant in plan.variants}
    sizes = {label: row.kv_bytes_per_token for label, row in rows.items() if label.startswith(("MLKV-6", "untouched"))}
    assert sizes == {
        "untouched cache=model": 2 * 36 * 32 * 2,
        "untouched cache=int8": 2 * 36 * 34,
        "untouched cache=int4": 2 * 36 * 20,
        "MLKV-6 cache=model": 2 * 6 * 32 * 2,
        "MLKV-6 cache=int8": 2 * 6 * 34,
        "MLKV-6 cache=int4": 2 * 6 * 20,
    }
    int4 = rows["MLKV-6 cache=int4"]
    assert (int4.cache, int4.kv_element_bytes) == ("int4", None)
    assert (rows["MLKV-6 cache=model"].cache, rows["MLKV-6 cache=model"].kv_element_bytes) == (None, 2)
    for variant in plan.variants:
        steps = [*variant.evaluate.values(), variant.measure]
        assert {step.slice.get("cache", "model") for step in steps if step} == {variant.config.cache}


def test_a_filter_sees_the_cache_and_its_bytes(planner: Planner) -> None:
    line = [*LINE, "cache=model,int4", "sweep.baselines=[]"]
    small = planner([*line, 'sweep.filter="kv_bytes_per_token < 400"'])
    assert {variant.label for variant in small.variants} == {"MQA-6", "MLKV-6"}
    assert {variant.kv_bytes_per_token for variant in small.variants} == {240}
    assert {v.config.cache for v in planner([*line, "sweep.filter=\"cache == 'model'\""]).variants} == {"model"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cache=int5", r"cache = int5: must be 'model', 'int8' or 'int4'"),
        ("cache=8", r"cache = 8: must be a valid string"),
        ("evaluate.cache=int8", r"evaluate.cache: unknown key"),
        ("measure.cache=int8", r"measure.cache: unknown key"),
    ],
)
def test_other_caches_and_places_are_refused(planner: Planner, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        planner([*LINE, line])


def test_a_cache_of_ones_own_is_a_row_and_pins_its_file(planner: Planner, tmp_path: Path) -> None:
    file = tmp_path / "int2.py"
    file.write_text(
        "from mlkv.cache.formats import CACHES, CacheFormat\n"
        "CACHES['int2'] = CacheFormat(bits=2, group=16, offset=True, rotate_keys=True)\n"
    )
    with extensions(lambda: [file]):
        plan = planner([*LINE, "cache=int2"])
        assert {variant.kv_bytes_per_token for variant in plan.variants} == {2 * 36 * 16, 2 * 6 * 16}
        own = [step for step in plan.steps.values() if step.kind in ("evaluate", "measure")]
        assert all("extension cache" in step.pinned for step in own)
    assert "int2" not in CACHES


def test_a_latent_can_be_cached_in_packed_integers(planner: Planner) -> None:
    plan = planner([*LINE, "layout.kv_layers=1", "layout.kv_heads=1", "layout.latent=32", "cache=int8"])
    assert [variant.kv_bytes_per_token for variant in plan.variants][-1] == 8 + 32 + 2, "integers and a scale"
