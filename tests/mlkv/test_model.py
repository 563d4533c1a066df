"""The decoder alone: sharing against a reference written out in full, causality, padding, caches, types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KINDS, KVLayout, mha
from mlkv.model import Decoder
from mlkv.patterns import make
from mlkv.positions import rotary_angles, rotate
from mlkv.shape import DecoderShape
from mlkv.tokens import Keys
from tests.support.matrix import LAYOUTS, SHAPES, VOCAB
from tests.support.tiny import blocks_of

EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
EVERY_LAYOUT_AND_KEYS = pytest.mark.parametrize(
    ("layout", "keys"),
    [
        pytest.param(layout, keys, id=f"{name}-{keys}")
        for name, layout in LAYOUTS.items()
        for keys in (["rotated"] if layout.apart else ["rotated", "unrotated"])
    ],
)
"""Unrotated keys are those of published checkpoints, which share keys and values together."""

IDS = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(5))
PADDED = torch.ones_like(IDS).index_put_((torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2])), torch.tensor(0))


def decoder(shape: DecoderShape, layout: KVLayout, keys: Keys = "rotated", dtype: torch.dtype | None = None) -> Decoder:
    model = MLKVForCausalLM.from_shape(shape, layout, seed=3, keys=keys, dtype=dtype).model.eval()
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():  # biases and norms are born as zeros and ones, which would hide mistakes
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameter.data += 0.1 * noise
    return model


def reference(model: Decoder, ids: Tensor, keys: Keys) -> Tensor:
    """Final hidden states with every head's keys and values made anew at each layer from its owner's input."""
    shape, layout, (batch, length) = model.shape, model.layout, ids.shape
    positions = torch.arange(length)[None]
    angles = rotary_angles(shape, positions) if shape.positions == "rotary" else None
    x = model.embed(ids)
    if shape.positions == "learned":
        x = x + model.positions(positions + shape.position_offset)
    inputs = []
    for layer, block in enumerate(blocks_of(model)):
        inputs.append(block.kv_norm(x) if hasattr(block, "kv_norm") else block.attention_norm(x))
        owner, value_owner = layout.keys.kv_source_layers[layer], layout.values.kv_source_layers[layer]
        heads = [
            projection(hidden).view(batch, length, -1, shape.head_dim).transpose(1, 2)
            for projection, hidden in (
                (block.attention.q, block.attention_norm(x)),
                (blocks_of(model)[owner].attention.k, inputs[owner]),
                (blocks_of(model)[value_owner].attention.v, inputs[value_owner]),
            )
        ]
        q, k, v = rotate(heads[0], angles), *(t.repeat_interleave(shape.heads // t.shape[1], dim=1) for t in heads[1:])
        if keys == "rotated" or owner == layer:
            k = rotate(k, angles)
        scores = (q @ k.transpose(-1, -2) / shape.head_dim**0.5).masked_fill(
            torch.ones(length, length).triu(1).bool(), float("-inf")
        )
        attended = block.attention.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        between = x if shape.parallel_residual else x + attended
        x = x + attended + block.mlp(block.mlp_norm(between))
    return model.norm(x)


@EVERY_LAYOUT_AND_KEYS
@EVERY_SHAPE
@torch.no_grad()
def test_layers_attend_to_the_keys_and_values_of_their_owner(shape: DecoderShape, layout: KVLayout, keys: Keys) -> None:
    model = decoder(shape, layout, keys)
    torch.testing.assert_close(model(IDS), reference(model, IDS, keys), atol=1e-4, rtol=1e-4)


@EVERY_LAYOUT_AND_KEYS
@EVERY_SHAPE
@torch.no_grad()
def test_decoding_in_any_steps_equals_the_full_forward(shape: DecoderShape, layout: KVLayout, keys: Keys) -> None:
    model = decoder(shape, layout, keys)
    for mask in (None, PADDED):
        full, cache, steps = model(IDS, mask), DynamicCache(), []
        for start, end in pairwise((0, 4, 5, 8, 9)):
            seen = None if mask is None else mask[:, :end]
            steps.append(model(IDS[:, start:end], seen, cache=cache))
        real = torch.ones_like(IDS).bool() if mask is None else mask.bool()
        torch.testing.assert_close(torch.cat(steps, 1)[real], full[real], atol=1e-4, rtol=1e-4)


@EVERY_LAYOUT
@EVERY_SHAPE
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(shape: DecoderShape, layout: KVLayout) -> None:
    model = decoder(shape, layout)
    alone = model(IDS[:1, 3:])
    torch.testing.assert_close(model(IDS, PADDED)[:1, 3:], alone, atol=1e-4, rtol=1e-4)


@EVERY_LAYOUT
@torch.no_grad()
def test_no_token_sees_a_later_one(layout: KVLayout) -> None:
    model, changed = decoder(SHAPES["neox"], layout), IDS.clone()
    changed[:, 5] = (changed[:, 5] + 1) % VOCAB
    before, after = model(IDS), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(-1).any()


@EVERY_LAYOUT
@torch.no_grad()
def test_an_owner_without_values_silences_exactly_its_readers(layout: KVLayout) -> None:
    model = decoder(SHAPES["neox"], layout)
    heard: dict[int, float] = {}

    def listen(layer: int) -> Callable[..., None]:
        return lambda _, inputs: heard.__setitem__(layer, inputs[0].abs().sum().item())

    for layer, block in enumerate(blocks_of(model)):
        block.attention.o.register_forward_pre_hook(listen(layer))
    for owner in layout.values.owners:
        values = blocks_of(model)[owner].attention.v
        saved = [parameter.clone() for parameter in values.parameters()]
        for parameter in values.parameters():
            parameter.zero_()
        model(IDS)
        assert {layer for layer, sound in heard.items() if sound == 0} == {owner, *layout.values.readers(owner)}
        for parameter, value in zip(values.parameters(), saved, strict=True):
            parameter.copy_(value)


@EVERY_LAYOUT
def test_only_owners_have_key_and_value_weights(layout: KVLayout) -> None:
    model = decoder(SHAPES["neox"], layout)
    for kind in KINDS:
        widths = {
            i: len(block.attention.get_parameter(f"{kind}.weight")) // 8
            for i, block in enumerate(blocks_of(model))
            if hasattr(block.attention, kind)
        }
        part = layout.part(kind)
        assert widths == dict(zip(part.owners, part.kv_heads, strict=True))


@EVERY_LAYOUT
@EVERY_SHAPE
def test_checkpointed_gradients_are_the_gradients(shape: DecoderShape, layout: KVLayout) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = decoder(shape, layout).train()
        model.gradient_checkpointing = checkpointing
        model.head(model(IDS)).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@EVERY_LAYOUT_AND_KEYS
@EVERY_SHAPE
@torch.no_grad()
def test_bf16_weights_give_bf16_caches_and_nearly_the_same_output(
    shape: DecoderShape, layout: KVLayout, keys: Keys
) -> None:
    cache = DynamicCache()
    half = decoder(shape, layout, keys, dtype=torch.bfloat16)
    output = torch.cat([half(IDS[:, :8], cache=cache), half(IDS[:, 8:], cache=cache)], 1)
    assert output.dtype == torch.bfloat16
    assert {cache.layers[owner].keys.dtype for owner in layout.owners} == {torch.bfloat16}
    full = half.float()(IDS)
    assert (output.float() - full).abs().mean() < 0.1 * full.abs().mean()


def test_autocast_keeps_queries_keys_and_values_of_one_type() -> None:
    model = decoder(SHAPES["neox"], LAYOUTS["mlkv"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.head(model(IDS)).float().square().mean()
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_a_gqa_group_is_the_query_heads_next_to_each_other() -> None:
    grouped = decoder(SHAPES["llama"], LAYOUTS["gqa"])
    plain = Decoder(grouped.shape, LAYOUTS["mha"])
    state = grouped.state_dict()
    for name in state:
        if ".attention.k." in name or ".attention.v." in name:
            state[name] = state[name].unflatten(0, (2, 12)).repeat_interleave(2, dim=0).flatten(0, 1)
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(IDS), grouped(IDS), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("heads", "head_dim"), [(5, 7), (9, 46), (1, 1)])
def test_heads_need_not_fill_the_width(heads: int, head_dim: int) -> None:
    shape = replace(SHAPES["neox"], heads=heads, head_dim=head_dim, rotary_fraction=1.0)
    layout = make("even", shape.layers, heads, 2, 1)
    model = decoder(shape, layout)
    torch.testing.assert_close(model(IDS), reference(model, IDS, "rotated"), atol=1e-4, rtol=1e-4)


def test_rotation_depends_only_on_how_far_apart_two_tokens_are() -> None:
    shape = SHAPES["neox"]
    q, k = torch.randn(2, 1, 1, 1, shape.head_dim)
    near, far = (
        rotate(q, rotary_angles(shape, torch.tensor([[at + 3]]))).flatten()
        @ rotate(k, rotary_angles(shape, torch.tensor([[at]]))).flatten()
        for at in (0, 17)
    )
    torch.testing.assert_close(near, far, atol=1e-5, rtol=1e-5)


def test_a_layout_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="layout has 5 layers of 4 heads, the decoder 6 of 4"):
        Decoder(SHAPES["neox"], mha(5, 4))


def test_keys_that_are_cached_unrotated_go_with_values_of_the_same_layers() -> None:
    with pytest.raises(ValueError, match=r"^keys = unrotated: keys and values that are apart need rotated ones$"):
        decoder(SHAPES["neox"], LAYOUTS["kv_apart"], "unrotated")
