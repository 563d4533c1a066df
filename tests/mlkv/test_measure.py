from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mlkv.cache.formats import CACHES
from mlkv.context import Interrupted, MetricRow, Outcome, Row, StepFailed
from mlkv.device import available_memory, is_out_of_memory
from mlkv.layout import KVLayout, mha
from mlkv.measure import step as measure
from mlkv.patterns import make, name_of
from mlkv.recipes import MeasureRecipe
from mlkv.shape import DecoderShape
from tests.support.read_back import present
from tests.support.tiny import context, run_python

LAYOUTS = [
    mha(4, 4),
    make("even", 4, 4, 4, 2),
    make("even", 4, 4, 4, 1),
    make("even", 4, 4, 2, 1),
    make("even", 4, 4, 1, 1),
    KVLayout((0, 1, 1, 3), (4, 1, 2), 4),
]
DEEPER = DecoderShape(vocab_size=97, width=24, layers=4, heads=4, head_dim=8, mlp_width=48, context=64)


@pytest.fixture(autouse=True, scope="module")
def imported_modules_are_no_garbage() -> Iterator[None]:
    """Each measured cell begins with a garbage collection, which need not look through all that was imported."""
    gc.freeze()
    yield
    gc.unfreeze()


def go(layout: KVLayout, shape: DecoderShape = DEEPER, ctx: Any = None, **changes: Any) -> Outcome:
    recipe = MeasureRecipe(**{"batch_sizes": (1, 3), "contexts": (8, 20), "new_tokens": 4, **changes})
    return measure.run(recipe, Path("unused"), ctx or context(Path("unused")), shape=shape, layout=layout)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_the_caches_bytes_are_the_formulas(layout: KVLayout, dtype: str) -> None:
    result = go(layout, dtype=dtype)
    per_token = layout.kv_bytes_per_token(DEEPER.head_dim, 2 if dtype == "bf16" else 4)
    measured = {(row.batch, row.context): row.value for row in result.metrics if row.metric == "cache_bytes"}
    assert measured == {(b, c): per_token * b * (c + 4) for b in (1, 3) for c in (8, 20)}
    assert {r.value for r in result.metrics if r.metric == "cache_bytes_per_token"} == {per_token}


def test_every_cell_has_every_metric_and_is_reported() -> None:
    rows: list[Row] = []
    result = go(LAYOUTS[3], ctx=context(Path("unused"), rows))
    names = {
        "cache_bytes",
        "cache_bytes_per_token",
        "peak_bytes",
        "prefill_seconds",
        "step_seconds",
        "tokens_per_second",
    }
    cells = {(row.batch, row.context) for row in result.metrics}
    assert cells == {(1, 8), (1, 20), (3, 8), (3, 20)}
    assert len(result.metrics) == len(cells) * len(names)
    assert {row.metric for row in result.metrics} == names
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(row["batch"] / row["step_seconds"])
    assert result.facts["parameters"] == DEEPER.parameters(LAYOUTS[3])


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_a_cache_that_is_handed_in_ends_at_the_formulas_bytes_and_nothing_is_prefilled(layout: KVLayout) -> None:
    result = go(layout, protocol="filled")
    measured = {(r.batch, r.context): r.value for r in result.metrics if r.metric == "cache_bytes"}
    per_token = layout.kv_bytes_per_token(DEEPER.head_dim, 4)
    assert measured == {(b, c): per_token * b * (c + 4) for b in (1, 3) for c in (8, 20)}
    assert "prefill_seconds" not in {row.metric for row in result.metrics}


def test_the_authors_protocol_keeps_as_many_bytes_as_they_logged() -> None:
    """MLKV-1 of Pythia-160M at batch 8: 7.99609375 MiB after 2,000 handed in and 47 steps (measurements.csv)."""
    shape = DecoderShape(vocab_size=61, width=24, layers=12, heads=12, head_dim=64, mlp_width=8, context=64)
    published = {"protocol": "filled", "batch_sizes": (8,), "contexts": (2000,), "new_tokens": 47, "repeats": 1}
    result = go(make("even", 12, 12, 1, 1), shape, **published)
    [cache_bytes] = [row.value for row in result.metrics if row.metric == "cache_bytes"]
    assert cache_bytes == 7.99609375 * 2**20


@pytest.mark.parametrize("protocol", ["prefill", "filled"])
def test_times_and_speeds_have_the_spread_of_their_repeats(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([[9.0], [1.0, 1.0, 7.0], [2.0, 2.0, 2.0], [4.0, 3.0, 4.0]])  # the first is the warm-up
    real = measure.Run.go

    def go_in(self: measure.Run) -> None:
        real(self)
        self.steps = next(runs)

    monkeypatch.setattr(measure.Run, "go", go_in)
    result = go(LAYOUTS[0], batch_sizes=(2,), contexts=(8,), protocol=protocol, repeats=3)
    found = {row.metric: row for row in result.metrics}
    speeds = [2 / 1.0, 2 / 2.0, 2 / 4.0]
    assert found["step_seconds"].value == 2.0  # the median of all steps, as ever
    assert found["step_seconds"].stderr == pytest.approx(statistics.stdev([1.0, 2.0, 4.0]) / 3**0.5)
    assert found["tokens_per_second"].value == 1.0
    assert found["tokens_per_second"].stderr == pytest.approx(statistics.stdev(speeds) / 3**0.5)
    assert (found["tokens_per_second"].n, found["step_seconds"].n) == (3, 3)
    assert all(found[name].stderr is None and found[name].n is None for name in ("cache_bytes", "peak_bytes"))


def test_a_single_run_has_no_error() -> None:
    result = go(LAYOUTS[0], batch_sizes=(1,), contexts=(8,), repeats=1)
    found = {row.metric: (row.stderr, row.n) for row in result.metrics}
    assert found["tokens_per_second"] == found["step_seconds"] == found["prefill_seconds"] == (None, 1)


def test_the_processor_is_recorded_by_its_model() -> None:
    facts = go(LAYOUTS[0], batch_sizes=(1,), contexts=(8,), repeats=1).facts
    assert facts["device"] == "cpu"
    assert facts["processor"] == measure.processor() != ""


def peaks(result: Outcome) -> dict[int | None, float]:
    """`peak_bytes` of each batch size; skips where the system does not tell them."""
    found = {row.batch: row.value for row in result.metrics if row.metric == "peak_bytes"}
    known = {batch: value for batch, value in found.items() if value is not None}
    if known.keys() < found.keys():
        pytest.skip("this system does not tell a process's peak")
    return known


def test_a_larger_cache_is_a_higher_peak() -> None:
    shape = DecoderShape(vocab_size=97, width=64, layers=4, heads=4, head_dim=64, mlp_width=64, context=64)
    result = go(mha(4, 4), shape, batch_sizes=(1, 16), contexts=(1024,), new_tokens=1, repeats=1)
    peak = peaks(result)
    cache = mha(4, 4).kv_bytes_per_token(64, 4) * 16 * 1025
    assert peak[16] > 0.9 * cache
    assert peak[16] > peak[1]


def test_a_cell_is_measured_alike_whatever_was_measured_before() -> None:
    """Memory that earlier cells freed is not used again unseen, and the first cell does not pay for all."""
    shape = DecoderShape(vocab_size=97, width=64, layers=12, heads=4, head_dim=16, mlp_width=64, context=64)
    result = go(mha(12, 4), shape, batch_sizes=(4, 1, 12), contexts=(256,), new_tokens=1, repeats=1)
    peak = peaks(result)
    cache = mha(12, 4).kv_bytes_per_token(16, 4) * 257
    assert peak[1] > 0.9 * cache
    assert peak[4] < peak[12]


def test_what_cannot_fit_is_a_result_and_the_others_are_measured() -> None:
    result = go(LAYOUTS[0], batch_sizes=(1, 10**9), contexts=(8,))
    assert [row for row in result.metrics if row.batch != 1] == [MetricRow("oom", 1.0, batch=10**9, context=8)]
    assert len(result.metrics) > 5


@pytest.mark.long
@pytest.mark.slow
def test_memory_that_runs_out_on_the_way_is_a_result() -> None:
    """Under a real limit: a large batch's cache fits, its activations do not, and a small batch still runs after."""
    output = run_python(
        """
import resource
from pathlib import Path
from tests.support.tiny import SHAPE, context
from mlkv.measure import step as measure
from mlkv.patterns import make
from mlkv.recipes import MeasureRecipe
layout = make("even", 2, 2, 1, 1)
def cells(*batches):
    recipe = MeasureRecipe(batch_sizes=batches, contexts=(512,), new_tokens=1, repeats=1)
    return measure.run(recipe, Path("."), context(Path(".")), shape=SHAPE, layout=layout).metrics
cells(1)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20, resource.RLIM_INFINITY))
print([(row.metric, row.batch) for row in cells(1024, 1) if row.metric in ("oom", "cache_bytes")])
"""
    )
    assert output.splitlines()[-1] == "[('oom', 1024), ('cache_bytes', 1)]"


def test_memory_that_runs_out_is_told_from_other_errors() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("not enough memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_other_errors_are_not_called_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(measure.Run, "go", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        go(LAYOUTS[0])


def test_available_memory_is_that_of_a_machine() -> None:
    assert 2**20 < available_memory() < 2**50


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_missing_device_is_said() -> None:
    with pytest.raises(StepFailed, match="device = cuda: this machine has no CUDA device"):
        go(LAYOUTS[0], device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_counts_what_its_allocator_gave() -> None:
    result = go(LAYOUTS[0], device="cuda", contexts=(512,), batch_sizes=(4,))
    values = {row.metric: row.value for row in result.metrics}
    assert present(values["peak_bytes"]) >= present(values["cache_bytes"])


def test_learned_positions_bound_the_context() -> None:
    shape = DecoderShape(**{**DEEPER.as_dict(), "positions": "learned"})
    with pytest.raises(StepFailed, match="contexts = 61: with new_tokens it exceeds the 64 positions"):
        go(LAYOUTS[0], shape, contexts=(61,))


def test_a_stop_is_heard() -> None:
    with pytest.raises(Interrupted, match="0 of 4 cells"):
        go(LAYOUTS[0], ctx=context(Path("unused"), should_stop=lambda: True))


@pytest.mark.parametrize("protocol", ["prefill", "filled"])
@pytest.mark.parametrize("cache", ["int8", "int4"])
def test_a_quantised_caches_bytes_are_its_formulas(cache: str, protocol: str) -> None:
    for layout in (LAYOUTS[3], LAYOUTS[5]):
        recipe = MeasureRecipe(batch_sizes=(3,), contexts=(20,), new_tokens=4, protocol=protocol, dtype="bf16")  # type: ignore[arg-type]
        result = measure.run(recipe, Path("unused"), context(Path("unused")), shape=DEEPER, layout=layout, cache=cache)
        per_token = CACHES[cache].kv_bytes_per_token(layout, DEEPER.head_dim)
        values = {row.metric: row.value for row in result.metrics}
        assert values["cache_bytes"] == per_token * 3 * 24
        assert values["cache_bytes_per_token"] == per_token
        assert present(values["tokens_per_second"]) > 0
        assert result.facts["cache"] == cache


def test_the_peak_of_a_quantised_cache_is_far_below_the_models_own() -> None:
    """An expanded copy of every owner would be as large as the cache that is saved."""
    shape = DecoderShape(vocab_size=97, width=32, layers=12, heads=4, head_dim=64, mlp_width=32, context=64)
    recipe = MeasureRecipe(batch_sizes=(8,), contexts=(256,), new_tokens=2, repeats=1, protocol="filled")
    found = {}
    for cache in ("model", "int4"):
        done = measure.run(recipe, Path("unused"), context(Path("unused")), shape=shape, layout=mha(12, 4), cache=cache)
        found[cache] = peaks(done)[8]
    assert found["int4"] < 0.6 * found["model"]
