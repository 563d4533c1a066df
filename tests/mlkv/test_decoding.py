"""Buffers that are written in place, decoding from them, and the kernels that attention has at one token."""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from mlkv.attention import Attention, attend, attention_kernel
from mlkv.buffers import BufferedLayer, allocated
from mlkv.cache.formats import CACHES
from mlkv.decoding import Decoding, FixedCache, chunk_of
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, Latent
from mlkv.shape import DecoderShape
from tests.support.matrix import LAYOUTS, SHAPES, VOCAB

FEW = settings(max_examples=20)
IDS = torch.randint(1, VOCAB, (2, 9), generator=torch.Generator().manual_seed(6))
DECODED = {
    **LAYOUTS,
    "latent": replace(LAYOUTS["explicit"], latent=Latent((5, 9, 14), SHAPES["neox"].rotated_dims)),
    "above": KVLayout((0, 4, 4, 4, 4, 5), (1, 2, 1), 4, forward_passes=9),
}
CAPPED = replace(SHAPES["llama"], attention_cap=2.0, window=5, local_layers=(0, 2, 3))


def model(layout: str = "mlkv", shape: DecoderShape = SHAPES["neox"], **options: Any) -> MLKVForCausalLM:
    return MLKVForCausalLM.from_shape(shape, DECODED[layout], seed=7, **options).eval()


@torch.inference_mode()
def greedy(subject: MLKVForCausalLM, tokens: int) -> Tensor:
    """Without any cache."""
    ids = IDS
    for _ in range(tokens):
        ids = torch.cat([ids, subject(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids[:, IDS.shape[1] :]


def steps_of(decoding: Decoding, tokens: int) -> Tensor:
    found = [decoding.prefill(IDS)]
    while len(found) < tokens:
        found.append(decoding.step(found[-1]))
    return torch.cat(found, 1)


# Decoding


@pytest.mark.parametrize("layout", list(DECODED))
def test_decoding_in_chunks_gives_the_tokens_of_full_passes_and_holds_the_owners(layout: str) -> None:
    subject = model(layout)
    wanted = greedy(subject, 5)
    for chunk in (None,) if subject.layout.reads_above else (None, 1, 4):
        decoding = Decoding(subject, 2, 13, chunk=chunk)
        for _ in range(2):  # again from the beginning, in the same buffers
            assert torch.equal(steps_of(decoding, 5), wanted)
        decoding.rewind(3)
        assert torch.equal(decoding.step(wanted[:, 1:2]), wanted[:, 2:3])
        assert decoding.cache_bytes == 2 * 13 * subject.layout.kv_bytes_per_token(subject.shape.head_dim, 4)


@pytest.mark.parametrize("shape", [*SHAPES.values(), CAPPED], ids=[*SHAPES, "capped"])
def test_every_shape_decodes_as_it_scores(shape: DecoderShape) -> None:
    for layout in ("explicit", "kv_apart"):
        subject = model(layout, shape)
        assert torch.equal(steps_of(Decoding(subject, 2, 13, chunk=4), 5), greedy(subject, 5))


@pytest.mark.parametrize("layout", ["mlkv", "kv_apart", "latent", "above"])
@torch.inference_mode()
def test_fixed_buffers_are_read_up_to_the_newest_token(layout: str) -> None:
    subject = model(layout)
    cache = allocated(subject.config, 15)
    subject(IDS[:, :6], past_key_values=cache)
    for layer in cache.layers:
        for buffer in getattr(layer, "buffers", None) or ():
            buffer[:, :, 6:] = float("nan")  # as memory may be that was never written
    fixed = FixedCache(cache, subject.device)
    for i in (6, 7, 8):
        logits = subject.model.logits(subject.model(IDS[:, i : i + 1], cache=fixed))
        fixed.tokens.add_(1)
        torch.testing.assert_close(logits[:, 0], subject(IDS[:, : i + 1]).logits[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.long(minutes=1)
def test_compiled_steps_give_the_same_tokens() -> None:
    subject = model("kv_apart")
    decoding = Decoding(subject, 2, 13, compiled=True)
    for _ in range(2):
        wanted = greedy(subject, 5)
        assert torch.equal(steps_of(decoding, 5), wanted)
        decoding.rewind(3)
        assert torch.equal(decoding.step(wanted[:, 1:2]), wanted[:, 2:3])


@pytest.mark.parametrize("cache", ["model", "int4"])
def test_a_filled_cache_is_one_that_was_read(cache: str) -> None:
    decoding = Decoding(model(), 2, 13, cache=cache)
    decoding.fill(9, torch.Generator().manual_seed(1))
    decoding.step(IDS[:, :1])
    assert int(decoding.cache.get_seq_length()) == 10
    assert decoding.cache_bytes == 2 * 13 * CACHES[cache].kv_bytes_per_token(
        DECODED["mlkv"], SHAPES["neox"].head_dim, 4
    )


def test_a_prefill_takes_passes_that_fit_or_one_where_passes_change_the_result() -> None:
    shape = replace(SHAPES["neox"], context=10**6, mlp_width=4096)
    assert chunk_of(model(shape=shape), 32, 10**6) < chunk_of(model(shape=shape), 2, 10**6) < 10**6
    assert chunk_of(model(), 1, 40) == 40
    assert chunk_of(model("above", shape), 64, 10**6) == 10**6
    with pytest.raises(ValueError, match=r"^chunk = 4: .* leave it out$"):
        Decoding(model("above"), 2, 13, chunk=4)
    with pytest.raises(ValueError, match=r"^compiled = true: cache = int8 .* use model$"):
        Decoding(model(), 2, 13, cache="int8", compiled=True)


@pytest.mark.parametrize("layout", ["mha", "mlkv", "explicit"])
@torch.no_grad()
def test_a_pass_without_a_cache_frees_keys_and_values_after_their_last_reader(layout: str) -> None:
    subject = model(layout)
    made: list[weakref.ref[Tensor]] = []
    counts = []
    sources = subject.layout.kv_source_layers

    def count(_module: Any, _inputs: Any, output: Any) -> None:
        keys = output[1][0]
        if not any(known() is keys for known in made):
            made.append(weakref.ref(keys))
        counts.append(sum(known() is not None for known in made))

    for module in subject.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(count)
    subject(IDS, use_cache=False)
    layers = range(len(sources))
    assert counts == [len({*sources[: layer + 1]} & {*sources[layer:]}) for layer in layers]


# Buffers

CHANGES = ["update", "update", "update", "crop", "reorder", "select", "copy", "reset"]


@FEW
@given(st.data(), st.integers(0, 9), st.sampled_from([torch.float32, torch.bfloat16]))
@torch.no_grad()
def test_a_buffered_layer_is_a_dynamic_one_bit_for_bit(data: st.DataObject, capacity: int, dtype: torch.dtype) -> None:
    buffered, dynamic, batch = BufferedLayer(capacity), DynamicLayer(), 2
    for _ in range(data.draw(st.integers(1, 8))):
        change = data.draw(
            st.sampled_from(["update", "update", "update", "crop", "reorder", "select", "copy", "reset"])
        )
        held = dynamic.get_seq_length()
        if change == "update":
            new = torch.randn(batch, 3, data.draw(st.integers(0, 70)), 4, dtype=dtype)
            with torch.inference_mode(data.draw(st.booleans())):
                found, wanted = buffered.update(new, -new), dynamic.update(new, -new)
            assert all(map(torch.equal, found, wanted))
        elif change == "reset":
            buffered.reset()
            dynamic.reset()
        elif change == "copy":
            buffered = copy.deepcopy(buffered)
        elif held and change == "crop":
            for layer in (buffered, dynamic):
                layer.crop(-1)
        elif held:
            rows = torch.tensor([1] * batch)
            for layer in (buffered, dynamic):
                (layer.reorder_cache if change == "reorder" else layer.batch_select_indices)(rows)
        assert buffered.get_seq_length() == dynamic.get_seq_length()


@torch.no_grad()
def test_tokens_are_written_behind_those_that_are_there() -> None:
    layer = BufferedLayer()
    first = layer.update(torch.ones(2, 3, 40, 4), torch.ones(2, 3, 40, 4))
    later = [layer.update(torch.zeros(2, 3, 1, 4), torch.zeros(2, 3, 1, 4)) for _ in range(20)]
    assert {part.data_ptr() for pair in later for part in pair} == {part.data_ptr() for part in first}
    assert later[-1][0].shape == (2, 3, 60, 4)


@torch.no_grad()
def test_a_batch_that_does_not_fit_is_refused() -> None:
    layer = BufferedLayer()
    layer.update(torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4))
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        layer.update(torch.ones(1, 3, 1, 4), torch.ones(1, 3, 1, 4))


def test_gradients_through_a_cache_are_those_of_one_pass() -> None:
    subject = model()
    subject(IDS, use_cache=False).logits[:, -1].sum().backward()
    wanted = [parameter.grad for parameter in subject.parameters()]
    subject.zero_grad()
    first = subject(IDS[:, :5], use_cache=True)
    subject(IDS[:, 5:], past_key_values=first.past_key_values).logits[:, -1].sum().backward()
    for found, expected in zip((parameter.grad for parameter in subject.parameters()), wanted, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_generation_writes_into_buffers_unless_a_static_cache_is_asked_for() -> None:
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    for given_options, kind in (({}, DynamicCache), ({"cache_implementation": "static"}, StaticCache)):
        output = model().generate(IDS, **options, **given_options, return_dict_in_generate=True)
        cache = output.past_key_values
        assert type(cache) is kind
        assert any(isinstance(layer, BufferedLayer) for layer in cache.layers) == (kind is DynamicCache)


# Attention at one token


@FEW
@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 9),
    st.sampled_from([0.0, 3.0]),
    st.sampled_from(["none", "bool", "float"]),
    st.integers(1, 6),
)
@torch.no_grad()
def test_one_token_attends_as_the_last_of_several(
    key_heads: int, value_heads: int, keys: int, cap: float, masked: str, value_width: int
) -> None:
    """Each of its kernels against softmax written out."""
    q, k, v = (
        torch.randn(2, 4, 1, 6),
        torch.randn(2, key_heads, keys, 6),
        torch.randn(2, value_heads, keys, value_width),
    )
    mask = None if masked == "none" else (torch.arange(keys) >= keys // 2)[None, None, None].expand(2, 1, 1, -1)
    logits = (q @ k.repeat_interleave(4 // key_heads, 1).mT) * 0.3
    logits = cap * (logits / cap).tanh() if cap else logits
    weights = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(-1)
    wanted = weights @ v.repeat_interleave(4 // value_heads, 1)
    if masked == "float" and mask is not None:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(attend(q, k, v, mask, 0.3, cap), wanted)


def test_the_kernel_depends_on_what_it_is_given_alone() -> None:
    def kernel(tokens: int, key_heads: int, value_heads: int, value_width: int, dtype: torch.dtype, cap: bool) -> str:
        q, k, v = (
            torch.empty(0, heads, length, width, dtype=dtype)
            for heads, length, width in ((8, tokens, 6), (key_heads, 9, 6), (value_heads, 9, value_width))
        )
        return attention_kernel(q, k, v, explicit=cap)

    fp32, bf16 = torch.float32, torch.bfloat16
    assert {kernel(1, heads, heads, 6, dtype, False) for heads in (1, 2, 8) for dtype in (fp32, bf16)} == {"rows"}
    assert {
        kernel(1, 1, 2, 6, fp32, False),
        kernel(1, 1, 1, 4, fp32, False),
        kernel(1, 1, 1, 4, bf16, False),
        kernel(4, 1, 1, 6, fp32, True),
    } == {"products"}
    assert {kernel(2, 1, 1, 6, fp32, False), kernel(9, 8, 4, 6, bf16, False)} == {"fused"}
    assert Decoding(model(), 1, 9).kernel == "rows"
    assert Decoding(model("kv_apart"), 1, 9).kernel == "products"
