"""Memory in measurements: peaks, what cannot fit, and what fails because memory grows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlkv.context import MetricRow, Outcome, StepFailed
from mlkv.device import available_memory, is_out_of_memory
from mlkv.layout import mha
from mlkv.measure import runs
from mlkv.measure import step as measure
from mlkv.measure.runs import BLOCK, FilledRun, Run
from mlkv.recipes import MeasureRecipe
from mlkv.shape import DecoderShape
from tests.support.measuring import LAYOUTS, go
from tests.support.read_back import present
from tests.support.tiny import context, run_python

pytestmark = pytest.mark.usefixtures("imported_modules_are_no_garbage", "little_is_copied")


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
    assert [row for row in result.metrics if row.batch not in (1, None)] == [
        MetricRow("oom", 1.0, batch=10**9, context=8)
    ]
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
    assert is_out_of_memory(RuntimeError("backend='inductor' raised: OutOfMemoryError: CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("not enough memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_other_errors_are_not_called_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(runs.Run, "go", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        go(LAYOUTS[0])


def test_available_memory_is_that_of_a_machine() -> None:
    assert 2**20 < available_memory() < 2**50


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_counts_what_its_allocator_gave() -> None:
    result = go(LAYOUTS[0], device="cuda", contexts=(512,), batch_sizes=(4,))
    values = {row.metric: row.value for row in result.metrics}
    assert present(values["peak_bytes"]) >= present(values["cache_bytes"])


def test_the_peak_of_a_quantised_cache_is_far_below_the_models_own() -> None:
    """An expanded copy of every owner would be as large as the cache that is saved."""
    shape = DecoderShape(vocab_size=97, width=32, layers=12, heads=4, head_dim=64, mlp_width=32, context=64)
    recipe = MeasureRecipe(batch_sizes=(8,), contexts=(256,), new_tokens=2, repeats=1, protocol="filled")
    found = {}
    for cache in ("model", "int4"):
        done = measure.run(recipe, Path("unused"), context(Path("unused")), shape=shape, layout=mha(12, 4), cache=cache)
        found[cache] = peaks(done)[8]
    assert found["int4"] < 0.6 * found["model"]


def checked(kind: type[Run] = Run, device: str = "cpu", **values: Any) -> None:
    run = kind.__new__(kind)
    run.device, run.cache = SimpleNamespace(type=device), "model"  # type: ignore[assignment]
    run.cache_bytes = run.cache_at_first = 100
    run.decode_peaks = []
    vars(run).update(values)
    run.check(100)


def test_a_measurement_fails_where_the_cache_is_not_the_formulas_or_memory_grows() -> None:
    checked()
    checked(FilledRun, cache_at_first=90)
    checked(device="cuda", decode_peaks=[9e9, 0.0, 10.0, 10.0 + BLOCK])
    with pytest.raises(StepFailed, match=r"^the cache has 101 bytes after the last token, by formula 100$"):
        checked(cache_bytes=101)
    with pytest.raises(StepFailed, match=r"^the cache grows while it decodes: 90 bytes after the first token, 100 "):
        checked(cache_at_first=90)
    with pytest.raises(StepFailed, match=r"^memory grows while it decodes: its peak is 2,097,153 bytes higher"):
        checked(device="cuda", decode_peaks=[9e9, 0.0, 10.0, 11.0 + BLOCK])
