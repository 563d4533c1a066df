"""Measurements: what a cell says, sessions of variants in turns, the largest batch."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlkv.cache.formats import CACHES
from mlkv.context import Interrupted, Outcome, Row, StepFailed
from mlkv.layout import KVLayout, mha
from mlkv.measure import processor, runs
from mlkv.measure import step as measure
from mlkv.measure.bench import Subject
from mlkv.measure.floors import step_floors
from mlkv.measure.largest_batch import largest_batch
from mlkv.measure.models import Models
from mlkv.measure.runs import Sizes, quarters
from mlkv.measure.session import measure_together
from mlkv.patterns import make, name_of
from mlkv.recipes import MeasureRecipe
from mlkv.shape import DecoderShape
from tests.support.measuring import DEEPER, LAYOUTS, go
from tests.support.read_back import present
from tests.support.tiny import context

pytestmark = pytest.mark.usefixtures("imported_modules_are_no_garbage", "little_is_copied")


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
        "cache_formula_bytes",
        "cache_bytes_per_token",
        "peak_bytes",
        "prefill_peak_bytes",
        "prefill_seconds",
        "decode_peak_bytes",
        "step_seconds",
        "tokens_per_second",
        "step_bytes_once",
        "step_bytes_by_layer",
        "step_operations",
        "once_bytes_per_second",
        "by_layer_bytes_per_second",
    }
    of_cells = [row for row in result.metrics if row.batch]
    cells = list(dict.fromkeys((row.batch, row.context) for row in of_cells))
    assert cells == [(1, 8), (1, 20), (3, 8), (3, 20)], "in the recipe's order, whatever that of the turns"
    assert len(of_cells) == len(cells) * len(names)
    assert {row.metric for row in of_cells} == names
    assert [row["step"] for row in rows] == [*range(1, 13)]
    assert {row["round"] for row in rows} == {1, 2, 3}
    assert result.facts["parameters"] == DEEPER.parameters(LAYOUTS[3])


def test_what_holds_for_all_cells_is_said_once() -> None:
    found = {row.metric: row for row in go(LAYOUTS[3], dtype="bf16").metrics if row.batch is None}
    parameters = DEEPER.parameters(LAYOUTS[3])
    assert 2 * parameters <= present(found["weights_bytes"].value) < 2.2 * parameters
    assert present(found["copy_bytes_per_second"].value) > 0
    assert found["copy_bytes_per_second"].n == 3


def values_of(result: Outcome, batch: int, context: int) -> dict[str, float]:
    return {row.metric: present(row.value) for row in result.metrics if (row.batch, row.context) == (batch, context)}


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_a_step_is_held_against_the_bytes_that_it_reads(layout: KVLayout) -> None:
    """Of the run's own cache: on average over its four steps each sequence attends to 22.5 tokens."""
    found = values_of(go(layout, contexts=(20,)), 3, 20)
    weights = 4 * (DEEPER.parameters(layout) - 97 * 24 + 3 * 24)
    cached = layout.kv_bytes_per_token(8, 4) * 3 * 22.5
    by_layer = sum(2 * 8 * 4 * layout.heads_of(layer) for layer in range(4)) * 3 * 22.5
    assert found["step_bytes_once"] == weights + cached
    assert found["step_bytes_by_layer"] == weights + by_layer
    speed = found["step_bytes_once"] / found["step_seconds"]
    assert found["once_bytes_per_second"] == pytest.approx(speed, rel=0.5)


def test_a_window_bounds_what_a_local_layer_reads() -> None:
    local = DecoderShape(**{**DEEPER.as_dict(), "window": 4, "local_layers": (1, 2)})
    wide, narrow = (step_floors(shape, mha(4, 4), "model", 4, 2, 10.0) for shape in (DEEPER, local))
    per_layer = 2 * 4 * 8 * 4 * 2
    assert wide.once - narrow.once == 2 * 6 * per_layer
    reader = KVLayout((0, 0, 0, 0), (4,), 4)  # its owner is not local, and is read to its end
    assert step_floors(local, reader, "model", 4, 2, 10.0).once == step_floors(DEEPER, reader, "model", 4, 2, 10.0).once


def test_tables_that_rows_are_looked_up_in_are_not_read() -> None:
    """Unless the output projection is the same table."""
    tied = DecoderShape(**{**DEEPER.as_dict(), "tied": True})
    assert step_floors(DEEPER, mha(4, 4), "model", 4, 1, 1.0) == step_floors(tied, mha(4, 4), "model", 4, 1, 1.0)
    learned = DecoderShape(**{**DEEPER.as_dict(), "positions": "learned"})
    more = (
        step_floors(learned, mha(4, 4), "model", 4, 1, 1.0).once
        - step_floors(DEEPER, mha(4, 4), "model", 4, 1, 1.0).once
    )
    assert more == 24 * 4


def together(*layouts: KVLayout, rows: list[Row] | None = None, **changes: Any) -> list[Any]:
    recipe = MeasureRecipe(**{"batch_sizes": (1, 3), "contexts": (8,), "new_tokens": 2, **changes})
    subjects = [Subject(DEEPER, layout) for layout in layouts]
    return measure_together(recipe, subjects, context(Path("unused"), rows))


def test_variants_take_turns_in_every_round() -> None:
    rows: list[Row] = []
    results = together(*LAYOUTS[:3], rows=rows)
    turns = [(row["round"], row["batch"], row["variant"]) for row in rows]
    assert len(turns) == len(set(turns)) == 3 * 2 * 3
    assert [row["round"] for row in rows] == sorted(row["round"] for row in rows)
    assert {row["variant"] for row in rows if "step_seconds" in row} == {1}, "whose rows they are"
    for start in range(0, len(turns), 3):  # the variants of a cell come right after each other
        assert len({batch for _, batch, _ in turns[start : start + 3]}) == 1
    assert len({tuple(which for *_, which in turns[start : start + 3]) for start in range(0, 18, 3)}) > 1
    for layout, result in zip(LAYOUTS, results, strict=False):
        assert result.facts["parameters"] == DEEPER.parameters(layout)
        assert result.facts["session_variants"] == 3
        alone = values_of(go(layout, contexts=(8,), new_tokens=2), 3, 8)
        found = values_of(result, 3, 8)
        exact = ("cache_bytes", "step_bytes_once", "step_bytes_by_layer", "step_operations")
        assert {name: found[name] for name in exact} == {name: alone[name] for name in exact}


def test_steps_are_divided_by_mhas_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that gets slower from round to round changes no ratio."""
    real, speeds = runs.Run.go, iter([1.0, 1.0, 2.0, 2.0, 8.0, 8.0])

    def go_in(self: runs.Run) -> None:
        real(self)
        if self.sizes.prompt > 1:
            self.steps = [next(speeds) * (1 if self.model.layout == LAYOUTS[0] else 0.5)]

    monkeypatch.setattr(runs.Run, "go", go_in)
    full, fewer = together(LAYOUTS[0], LAYOUTS[2], batch_sizes=(1,))
    assert values_of(full, 1, 8)["step_over_mha"] == 1.0
    [ratio] = [row for row in fewer.metrics if row.metric == "step_over_mha"]
    assert (ratio.value, ratio.stderr, ratio.n) == (0.5, 0.0, 3)
    monkeypatch.undo()
    [alone] = together(LAYOUTS[2], batch_sizes=(1,))
    assert "step_over_mha" not in values_of(alone, 1, 8)


def test_time_of_a_session_is_each_variants_own() -> None:
    first, second, third = together(*LAYOUTS[:3])
    assert second.for_others < 0
    assert third.for_others < 0
    assert first.for_others == pytest.approx(-second.for_others - third.for_others)
    assert first.for_others < first.facts["session_seconds"]


def test_one_variants_fault_is_not_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    real = runs.Run.go

    def broken(self: runs.Run) -> None:
        if self.model.layout == LAYOUTS[1]:
            raise RuntimeError("shapes do not match")
        real(self)

    monkeypatch.setattr(runs.Run, "go", broken)
    full, wrong, other = together(*LAYOUTS[:3])
    assert str(wrong) == "shapes do not match"
    assert values_of(full, 3, 8).keys() == values_of(other, 3, 8).keys() > {"step_seconds"}


def test_memory_that_one_variant_lacks_is_its_own_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    real = runs.Run.go

    def short(self: runs.Run) -> None:
        if self.model.layout == LAYOUTS[0] and self.sizes.batch == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self)

    monkeypatch.setattr(runs.Run, "go", short)
    full, fewer = together(*LAYOUTS[:2])
    assert values_of(full, 3, 8) == {"oom": 1.0}
    assert "step_seconds" in values_of(full, 1, 8)
    assert "step_seconds" in values_of(fewer, 3, 8)
    assert "step_over_mha" not in values_of(fewer, 3, 8)


def test_models_of_a_session_hold_common_weights_once() -> None:
    models = Models(torch.device("cpu"), torch.float32)
    full, fewer = models.make(DEEPER, mha(4, 4)), models.make(DEEPER, LAYOUTS[4])
    shared = {id(p) for p in full.parameters()} & {id(p) for p in fewer.parameters()}
    own = [p for p in fewer.parameters() if id(p) not in shared]
    assert sum(p.numel() for p in own) == DEEPER.kv_parameters(LAYOUTS[4])


@pytest.mark.parametrize("limit", [0, 1, 2, 37, 1000, 65_535])
@pytest.mark.parametrize("upper", [0, 1, 63, 10**9])
def test_the_largest_batch_is_found_to_a_hundredth(limit: int, upper: int) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= limit

    found, true = largest_batch(fits, upper), min(limit, upper, 65_535)
    assert true * 0.99 - 1 < found.batch <= true
    assert found.trials == len(tried) == len(set(tried)) < 20
    assert all(0 < batch <= upper for batch in tried)


def test_the_largest_batch_fits_the_budget() -> None:
    """An eighth of the heads is up to eight times the batch, as far as a resident size tells."""
    shape = DecoderShape(vocab_size=97, width=32, layers=4, heads=8, head_dim=32, mlp_width=32, context=64)
    recipe = MeasureRecipe(batch_sizes=(1,), contexts=(255,), new_tokens=1, repeats=1, memory_gib=0.03)
    layouts = [mha(4, 8), make("even", 4, 8, 4, 1)]
    subjects = [Subject(shape, layout) for layout in layouts]
    found = []
    for layout, result in zip(layouts, measure_together(recipe, subjects, context(Path("unused"))), strict=True):
        assert isinstance(result, Outcome)
        [row] = [row for row in result.metrics if row.metric == "largest_batch"]
        assert (row.batch, row.context) == (None, 255)
        cache = present(row.value) * layout.kv_bytes_per_token(32, 4) * 256
        assert 0 < cache < 0.03 * 2**30
        found.append(present(row.value))
    assert found[1] > 2 * found[0]


def test_the_processors_cache_is_as_the_system_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, text in enumerate(("48K\n", "2048K\n", "32768K\n", "", "none")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(text)
    monkeypatch.setattr(processor, "_CPU_CACHES", tmp_path)
    assert processor.cache_of_processor(torch.device("cpu")) == 2**25
    monkeypatch.setattr(processor, "_CPU_CACHES", tmp_path / "none")
    assert processor.cache_of_processor(torch.device("cpu")) is None


def test_copies_move_bytes() -> None:
    assert processor.CopyBandwidth(torch.device("cpu")).measure() > 0


def test_no_budget_no_search() -> None:
    assert "largest_batch" not in {row.metric for row in go(LAYOUTS[0]).metrics}


def test_a_cache_that_needs_no_prompt_is_as_large() -> None:
    result = go(LAYOUTS[3], protocol="warm")
    assert "prefill_seconds" not in {row.metric for row in result.metrics}
    found = values_of(result, 3, 20)
    assert found["cache_bytes"] == found["cache_formula_bytes"] == LAYOUTS[3].kv_bytes_per_token(8, 4) * 3 * 24


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
    times = iter([[9.0], [1.0, 1.0, 7.0], [2.0, 2.0, 2.0], [4.0, 3.0, 4.0]])  # the first is the warm-up
    real = runs.Run.go

    def go_in(self: runs.Run) -> None:
        real(self)
        self.steps = next(times)

    monkeypatch.setattr(runs.Run, "go", go_in)
    result = go(LAYOUTS[0], batch_sizes=(2,), contexts=(8,), protocol=protocol, repeats=3)
    found = {row.metric: row for row in result.metrics}
    speeds = [2 / 1.0, 2 / 2.0, 2 / 4.0]
    assert found["step_seconds"].value == 2.0  # the median of each run's median
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
    assert facts["processor"] == processor.processor() != ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_missing_device_is_said() -> None:
    with pytest.raises(StepFailed, match="device = cuda: this machine has no CUDA device"):
        go(LAYOUTS[0], device="cuda")


def test_learned_positions_bound_the_context() -> None:
    shape = DecoderShape(**{**DEEPER.as_dict(), "positions": "learned"})
    with pytest.raises(StepFailed, match="contexts = 61: with new_tokens it exceeds the 64 positions"):
        go(LAYOUTS[0], shape, contexts=(61,))


def test_a_stop_is_heard() -> None:
    with pytest.raises(Interrupted, match="0 of 12 runs"):
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


@given(st.integers(1, 10_000))
def test_quarters_are_all_tokens(tokens: int) -> None:
    parts = quarters(tokens)
    assert sum(parts) == Sizes(1, 0, tokens).room
    assert len(set(parts[1:])) <= 1
    assert all(parts)
