"""A model is exported to a family where that computes the same, and refused in one line where it does not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkv.families.config import config_of
from mlkv.families.save import to_family
from mlkv.families.tables import FAMILIES
from mlkv.files import Json
from mlkv.hf import MLKVForCausalLM
from mlkv.patterns import make
from mlkv.shape import DecoderShape
from tests.support.family_configs import (
    EARLIER,
    HEADS,
    IDS,
    LATER,
    LAYERS,
    VOCAB,
    WIDTH,
    logits_of,
    refusal,
)

SHAPES = st.builds(
    DecoderShape,
    vocab_size=st.just(VOCAB),
    width=st.sampled_from([WIDTH, 36, 30]),
    layers=st.just(LAYERS),
    heads=st.just(HEADS),
    head_dim=st.sampled_from([8, 12, 9, 7]),
    mlp_width=st.sampled_from([24, 128]),
    context=st.just(16),
    norm=st.sampled_from(["layernorm", "rmsnorm"]),
    norm_eps=st.sampled_from([1e-5, 1e-2]),
    activation=st.sampled_from(["gelu", "gelu_new", "relu", "silu"]),
    gated_mlp=st.booleans(),
    attention_bias=st.booleans(),
    mlp_bias=st.booleans(),
    parallel_residual=st.booleans(),
    positions=st.sampled_from(["rotary", "learned"]),
    rotary_fraction=st.sampled_from([0.25, 0.4, 0.5, 1.0]),
    rotary_base=st.sampled_from([10_000.0, 50.0]),
    position_offset=st.sampled_from([0, 2]),
    tied=st.booleans(),
    init_std=st.sampled_from([0.3, 2.0]),
)


CLOSEST: dict[str, Json] = {
    "gpt_neox": {"norm": "layernorm", "gated_mlp": False, "positions": "rotary", "mlp_bias": True},
    "llama": {"norm": "rmsnorm", "gated_mlp": True, "positions": "rotary", "parallel_residual": False},
    "gpt2": {"norm": "layernorm", "gated_mlp": False, "positions": "learned", "parallel_residual": False},
    "opt": {"norm": "layernorm", "gated_mlp": False, "positions": "learned", "parallel_residual": False},
}


@pytest.mark.parametrize("family", EARLIER)
@settings(max_examples=40)
@given(shape=SHAPES, kv_heads=st.sampled_from([1, 2, 4]), of_family=st.booleans())
def test_a_model_is_exported_as_it_computes_or_not_at_all(
    family: str, shape: DecoderShape, kv_heads: int, of_family: bool
) -> None:
    exported_alike(family, shape, kv_heads, of_family)


@pytest.mark.long
@pytest.mark.parametrize("family", LATER)
@settings(max_examples=15)
@given(shape=SHAPES, kv_heads=st.sampled_from([1, 2, 4]), of_family=st.booleans())
def test_a_model_is_exported_to_a_later_family_as_it_computes_or_not_at_all(
    family: str, shape: DecoderShape, kv_heads: int, of_family: bool
) -> None:
    exported_alike(family, shape, kv_heads, of_family)


def exported_alike(family: str, shape: DecoderShape, kv_heads: int, of_family: bool) -> None:
    if of_family:
        scale = shape.width**0.5 if family.startswith("gemma") else 1.0
        closest = CLOSEST.get(family, CLOSEST["llama"]) | FAMILIES[family].fixed
        shape = replace(shape, **closest | {"position_offset": 2 if family == "opt" else 0, "embedding_scale": scale})
    ours = MLKVForCausalLM.from_shape(shape, make("even", LAYERS, HEADS, LAYERS, kv_heads), seed=0)
    for parameter in ours.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    if (message := refusal(lambda: to_family(ours, family))) is not None:
        assert re.match(rf"family = {family}: \w", message)
        assert "second line" not in message
        return
    theirs = to_family(ours, family)
    expected = logits_of(ours)
    # Of weights as large as these, rounding alone changes the largest logit by 1e-5 of it.
    atol = max(1e-4, 3e-5 * float(expected.abs().max()))
    torch.testing.assert_close(logits_of(theirs), expected, atol=atol, rtol=1e-4)
    torch.testing.assert_close(theirs.train()(IDS).logits, ours(IDS).logits, atol=atol, rtol=1e-4)  # and has no dropout


_NEOX = DecoderShape(VOCAB, WIDTH, LAYERS, HEADS, 8, 24, 16)


_LLAMA = replace(_NEOX, norm="rmsnorm", activation="silu", gated_mlp=True, parallel_residual=False)


@pytest.mark.parametrize(
    ("family", "shape", "message"),
    [
        ("llama", _LLAMA, "family = llama: cannot express rotary_fraction"),
        ("llama", replace(_LLAMA, rotary_fraction=1.0, head_dim=7), "family = llama: head_dim = 7: rotates 7 of"),
        ("gpt_neox", replace(_NEOX, rotary_fraction=0.4), "family = gpt_neox: partial_rotary_factor = 0.4: rotates 3"),
        ("gpt2", replace(_NEOX, positions="learned"), "family = gpt2: cannot express parallel_residual"),
        ("llama", replace(_LLAMA, rotary_fraction=1.0, width=30), "family = llama: hidden_size = 30: must be a mult"),
    ],
)
def test_what_a_family_would_compute_otherwise_is_not_exported(family: str, shape: DecoderShape, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        config_of(shape, make("even", LAYERS, HEADS, LAYERS, HEADS), family)
