"""Memory of serving by formula: against layouts' own bytes, shapes' own parameters, and the floors of a step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkv.cache.formats import CACHES
from mlkv.gpus import BANDWIDTHS, PEAKS
from mlkv.layout import divisors
from mlkv.measure.floors import step_floors
from mlkv.measure.footprint import cache_bytes_per_token, check_gpus, footprint, heads_per_gpu, step_seconds
from mlkv.patterns import make
from mlkv.shape import DecoderShape

SHAPE = DecoderShape(
    vocab_size=1001, width=96, layers=6, heads=12, head_dim=8, mlp_width=384, context=64, rotary_fraction=0.5
)
GATED = replace(SHAPE, norm="rmsnorm", gated_mlp=True, attention_bias=False, mlp_bias=False, tied=True)
SHAPES = st.sampled_from([SHAPE, GATED, replace(GATED, qk_norm="head"), replace(SHAPE, window=16, local_layers=(1, 3))])
LAYOUTS = st.builds(
    lambda pattern, kv_layers, kv_heads: make(pattern, 6, 12, kv_layers, kv_heads),
    st.sampled_from(["even", "pizza", "sandwich"]),
    st.integers(1, 6),
    st.sampled_from(divisors(12)),
)


@settings(max_examples=40)
@given(shape=SHAPES, layout=LAYOUTS, cache=st.sampled_from(sorted(CACHES)), gpu=st.sampled_from(sorted(BANDWIDTHS)))
def test_on_one_gpu_it_is_what_layouts_shapes_and_floors_say(shape, layout, cache, gpu) -> None:  # type: ignore[no-untyped-def]
    found = footprint(shape, layout, batch=3, context=50, cache=cache)
    assert found.weights == 2 * shape.parameters(layout)
    per_token = CACHES[cache].kv_bytes_per_token(layout, shape.head_dim, 2)
    assert found.cache == per_token * 150
    assert cache_bytes_per_token(shape, layout) == layout.kv_bytes_per_token(shape.head_dim)
    floors = step_floors(shape, layout, cache, 2, 3, 50)
    least = max(floors.by_layer / BANDWIDTHS[gpu], floors.operations / PEAKS[gpu])
    assert step_seconds(shape, layout, gpu, batch=3, context=50, cache=cache) == pytest.approx(least)


@settings(max_examples=40)
@given(shape=SHAPES, layout=LAYOUTS, gpus=st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_gpus_hold_all_of_it_together_and_none_more_than_one_would(shape, layout, gpus) -> None:  # type: ignore[no-untyped-def]
    one, split = (footprint(shape, layout, batch=2, context=40, gpus=each) for each in (1, gpus))
    assert split.weights <= one.weights
    assert split.cache <= one.cache <= gpus * split.cache
    assert gpus * split.weights >= one.weights


@pytest.mark.parametrize(
    ("kv_heads", "heads", "gpus", "own"), [(8, 32, 2, 4), (1, 32, 8, 1), (2, 32, 8, 1), (6, 12, 4, 2), (12, 12, 3, 4)]
)
def test_a_kv_head_is_where_the_query_heads_are_that_read_it(kv_heads: int, heads: int, gpus: int, own: int) -> None:
    assert heads_per_gpu(kv_heads, heads, gpus) == own
    readers = [
        {head * kv_heads // heads for head in range(g * heads // gpus, (g + 1) * heads // gpus)} for g in range(gpus)
    ]
    assert max(map(len, readers)) == own


def test_gpus_that_cannot_split_the_model_are_refused_with_those_that_can() -> None:
    with pytest.raises(
        ValueError, match=r"tp = 5: must divide the model's 12 query heads \(valid: 1, 2, 3, 4, 6, 12\)"
    ):
        check_gpus(SHAPE, 5)
    with pytest.raises(ValueError, match="tp = 3: must divide the model's 400 numbers in an MLP"):
        check_gpus(replace(SHAPE, mlp_width=400), 3)


def test_every_gpu_has_a_peak_and_a_bandwidth() -> None:
    assert PEAKS.keys() == BANDWIDTHS.keys()
