"""The shape's arithmetic against decoders that are really built (without memory) and against published counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkv.layout import KVLayout, mha
from mlkv.model import Decoder
from mlkv.patterns import make
from mlkv.shape import DecoderShape
from tests.support.matrix import LAYOUTS, SHAPES

SHAPE_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "vocab_size": st.integers(1, 50),
    "width": st.integers(1, 12),
    "layers": st.just(6),
    "heads": st.just(4),
    "head_dim": st.integers(1, 9),
    "mlp_width": st.integers(1, 20),
    "context": st.integers(1, 20),
    "norm": st.sampled_from(["layernorm", "rmsnorm"]),
    "gated_mlp": st.booleans(),
    "attention_bias": st.booleans(),
    "mlp_bias": st.booleans(),
    "parallel_residual": st.booleans(),
    "positions": st.sampled_from(["rotary", "learned"]),
    "position_offset": st.integers(0, 3),
    "tied": st.booleans(),
    "kv_norm": st.booleans(),
}


@settings(max_examples=60)
@given(st.fixed_dictionaries(SHAPE_FIELDS), st.sampled_from(list(LAYOUTS)))
def test_parameters_are_those_of_the_decoder_that_gets_built(values: dict[str, Any], layout: str) -> None:
    shape = DecoderShape(**values)
    with torch.device("meta"):
        decoder = Decoder(shape, LAYOUTS[layout])
    assert sum(p.numel() for p in decoder.parameters()) == shape.parameters(LAYOUTS[layout])
    wider = replace(shape, mlp_width=shape.mlp_width + 7)
    assert shape.parameters(LAYOUTS[layout], mlp_width=wider.mlp_width) == wider.parameters(LAYOUTS[layout])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_widening_gives_back_the_lost_parameters_to_within_a_unit_per_layer(
    shape: DecoderShape, layout: KVLayout
) -> None:
    before = shape.parameters(mha(shape.layers, shape.heads))
    after = shape.parameters(layout, mlp_width=shape.widened_mlp(layout))
    unit = shape.parameters(layout, mlp_width=shape.mlp_width + 1) - shape.parameters(layout)
    assert abs(after - before) <= unit + shape.layers * (shape.widened_mlp(layout) - shape.mlp_width) * 2


def test_widening_counts_from_the_heads_that_the_base_has() -> None:
    shape, gqa = SHAPES["llama"], LAYOUTS["gqa"]
    assert shape.widened_mlp(gqa, source=gqa) == shape.mlp_width
    lost = (gqa.budget - 2) * 2 * shape.head_dim * shape.width // shape.layers
    widened = shape.widened_mlp(make("even", 6, 4, 2, 1), source=gqa)
    assert widened == shape.mlp_width + round(lost / shape.width) // 3
