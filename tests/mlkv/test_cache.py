"""Quantised caches: bytes by the formula, vectors by an independent computation, and decoding that equals scoring."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache

from mlkv.cache.formats import CACHES, CacheFormat
from mlkv.cache.packing import pack, pack_keys, rounding, unpack, unpack_keys
from mlkv.cache.quantised import QuantisedCache
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, Latent, divisors, from_owners
from mlkv.shape import DecoderShape
from mlkv.tokens import Keys
from tests.support.matrix import LAYOUTS, SHAPES, VOCAB

QUANTISED = [name for name, form in CACHES.items() if form.bits]
EVERY_CACHE = pytest.mark.parametrize("name", QUANTISED)
IDS = torch.randint(1, VOCAB, (2, 7), generator=torch.Generator().manual_seed(6))
PADDED = torch.ones_like(IDS)
PADDED[0, :3] = 0
NEOX, MLKV = SHAPES["neox"], LAYOUTS["mlkv"]
FORMATS = st.builds(
    CacheFormat,
    bits=st.sampled_from([2, 4, 8]),
    group=st.none() | st.integers(1, 40),
    offset=st.booleans(),
    rotate_keys=st.booleans(),
)
WIDTHS = st.integers(1, 70)
FEW = settings(max_examples=40)


def model(
    shape: DecoderShape = NEOX, layout: KVLayout = MLKV, keys: Keys = "rotated", cache: str | None = None
) -> MLKVForCausalLM:
    """With `cache`, attention reads keys and values as such a cache gives them back. In float64: the passes of a text
    differ in their last digits, and in float32 that rounds one number in a thousand to another integer."""
    made = MLKVForCausalLM.from_shape(shape, layout, seed=7, keys=keys, dtype=torch.float64).eval()
    made.model.rounding = rounding(cache) if cache else None
    return made


def held_bytes(cache: Cache) -> int:
    """All tensors that a cache's layers hold, but for the counters of their tokens."""
    tensors = [t for layer in cache.layers for t in vars(layer).values() if isinstance(t, Tensor) and t.dim()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# Bytes


def test_the_formats_take_these_bytes() -> None:
    int8, int4 = CACHES["int8"], CACHES["int4"]
    assert [int8.vector_bytes(width, 2) for width in (1, 32, 46, 128)] == [3, 34, 48, 130]
    assert [int4.vector_bytes(width, 2) for width in (1, 32, 33, 46, 128)] == [5, 20, 25, 31, 80]
    assert [CACHES["model"].vector_bytes(32, size) for size in (2, 4)] == [64, 128]
    layout = KVLayout((0, 1, 1, 3), (4, 1, 2), 4)
    assert int4.kv_bytes_per_token(layout, 32) == 2 * 7 * 20
    assert CACHES["model"].kv_bytes_per_token(layout, 32, 4) == layout.kv_bytes_per_token(32, 4)


@FEW
@given(FORMATS, WIDTHS)
def test_packed_vectors_have_the_formulas_bytes(form: CacheFormat, width: int) -> None:
    packed = pack(torch.randn(2, 3, width), form)
    assert (packed.dtype, packed.shape) == (torch.uint8, (2, 3, form.vector_bytes(width, 4)))


@st.composite
def layouts(draw: st.DrawFn) -> KVLayout:
    layers, heads = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 3, 4, 6]))
    owners = [0, *(i for i in range(1, layers) if draw(st.booleans()))]
    return KVLayout(from_owners(layers, owners), tuple(draw(st.sampled_from(divisors(heads))) for _ in owners), heads)


@st.composite
def latents(draw: st.DrawFn, layout: KVLayout, rotated_dims: int) -> Latent:
    ranks = tuple(draw(st.integers(1, 40)) for _ in layout.owners)
    return Latent(ranks, draw(st.sampled_from(range(0, rotated_dims + 1, 2))), draw(st.booleans()))


@settings(max_examples=25)
@given(
    st.data(),
    layouts(),
    st.sampled_from(QUANTISED),
    st.integers(1, 45),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
@torch.no_grad()
def test_a_cache_holds_the_formulas_bytes_and_nothing_else(
    data: st.DataObject, layout: KVLayout, name: str, head_dim: int, dtype: torch.dtype
) -> None:
    shape = DecoderShape(
        vocab_size=9, width=4, layers=layout.layers, heads=layout.heads, head_dim=head_dim, mlp_width=4, context=16
    )
    layout = replace(layout, latent=data.draw(st.none() | latents(layout, shape.rotated_dims)))
    subject = MLKVForCausalLM.from_shape(shape, layout, seed=1, dtype=dtype)
    per_token = CACHES[name].kv_bytes_per_token(layout, head_dim, dtype.itemsize)
    for length in (None, 8):
        cache = QuantisedCache(subject.config, name, length)
        subject(torch.ones(3, 4, dtype=torch.long), past_key_values=cache)
        subject(torch.ones(3, 1, dtype=torch.long), past_key_values=cache)
        assert held_bytes(cache) == 3 * (length or 5) * per_token


@torch.no_grad()
def test_what_attention_read_is_freed_before_the_next_owner_makes_its_own() -> None:
    """Else the pass would hold every owner's keys and values at once, as large as the cache that was to be saved."""
    subject = model(layout=KVLayout((0, 1, 1, 3, 4, 4), (2, 1, 4, 2), 4))
    alive: list[weakref.ref[Tensor]] = []
    counts = []

    class Counting(QuantisedCache):
        def update(self, *given: Any, **options: Any) -> tuple[Tensor, Tensor]:
            counts.append(sum(tensor() is not None for tensor in alive))
            found = super().update(*given, **options)
            alive.extend(map(weakref.ref, found))
            return found

    subject(IDS, past_key_values=Counting(subject.config, "int4"))
    assert counts == [0, 0, 0, 0]
    assert all(tensor() is None for tensor in alive)


# Vectors


def half(number: float) -> float:
    return float(np.float16(np.float32(number)))


def expected(vector: NDArray[np.float64], form: CacheFormat) -> NDArray[np.float64]:
    """One vector, one group after another, in float64 but for the scales and offsets that are stored as float16."""
    assert form.bits
    count = -(-len(vector) // (form.group or len(vector)))
    size = -(-len(vector) // count)
    read = []
    for first in range(0, len(vector), size):
        group = vector[first : first + size]
        low = half(group.min()) if form.offset else 0.0
        span = group.max() - low if form.offset else np.abs(group).max()
        most = 2**form.bits - 1 if form.offset else 2 ** (form.bits - 1) - 1
        least, step = (0 if form.offset else -most), half(span / most)
        read.append(low + step * np.clip(np.rint((group - low) / (step or 1.0)), least, most))
    return np.concatenate(read)


@FEW
@given(FORMATS, WIDTHS, st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 300.0]))
def test_a_vector_comes_back_as_an_independent_computation_has_it(
    form: CacheFormat, width: int, seed: int, size: float
) -> None:
    vectors = np.random.default_rng(seed).normal(0.3, size, (4, width))
    read = unpack(pack(torch.from_numpy(vectors), form), form, width, torch.float64)
    assert read.dtype == torch.float64
    wanted = np.stack([expected(vector, form) for vector in vectors])
    np.testing.assert_allclose(read.numpy(), wanted, rtol=1e-12, atol=1e-12)


@FEW
@given(FORMATS, WIDTHS, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_vectors_have_the_type_of_the_model_and_zeros_stay_zeros(
    form: CacheFormat, width: int, dtype: torch.dtype
) -> None:
    vectors = torch.randn(2, width).to(dtype)
    vectors[0] = 0
    for read in (
        unpack(pack(vectors, form), form, width, dtype),
        unpack_keys(pack_keys(vectors, form), form, width, dtype),
    ):
        assert read.dtype == dtype
        assert read[0].eq(0).all()
    empty = torch.zeros(1, form.vector_bytes(width, 2), dtype=torch.uint8)
    assert unpack(empty, form, width, dtype).eq(0).all(), "places of a preallocated cache that are not written yet"


@FEW
@given(st.integers(1, 130))
def test_rotating_keys_loses_nothing_of_its_own(width: int) -> None:
    """At eight bits and a scale for every number, what is left of the error is that of the scales."""
    form = CacheFormat(bits=8, group=1, rotate_keys=True)
    keys = torch.randn(5, width)
    torch.testing.assert_close(unpack_keys(pack_keys(keys, form), form, width, torch.float32), keys, atol=5e-3, rtol=0)


def test_rotated_keys_survive_one_large_channel() -> None:
    """The reason to rotate: the other channels of such keys would all be rounded to the scale of the large one."""
    keys = torch.randn(200, 32, generator=torch.Generator().manual_seed(1))
    keys[:, 5] += 40
    plain = CacheFormat(bits=4, group=32, offset=True)
    rotated = CacheFormat(bits=4, group=32, offset=True, rotate_keys=True)
    error = {
        form: (unpack_keys(pack_keys(keys, form), form, 32, torch.float32) - keys).square().mean()
        for form in (plain, rotated)
    }
    assert error[rotated] < 0.5 * error[plain]


def test_what_is_no_number_is_not_rounded_to_one() -> None:
    for bad in (float("nan"), float("inf")):
        vectors = torch.ones(2, 8)
        vectors[0, 3] = bad
        for name in QUANTISED:
            keys, values = rounding(name)(vectors, vectors)  # type: ignore[misc]
            assert not keys[0].isfinite().any()
            assert not values[0].isfinite().any()
            assert keys[1].isfinite().all()


def test_formats_that_cannot_be_packed_are_refused() -> None:
    with pytest.raises(ValueError, match="bits = 3: must be 2, 4 or 8"):
        CacheFormat(bits=3)
    with pytest.raises(ValueError, match="group = 0: must be at least 1"):
        CacheFormat(bits=4, group=0)
    with pytest.raises(ValueError, match="cache = int5: must be one of model, int8, int4"):
        rounding("int5")
    with pytest.raises(ValueError, match="cache = model: has no integers"):
        QuantisedCache(model().config, "model")
    assert rounding("model") is None


# Decoding equals scoring


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


@EVERY_CACHE
@pytest.mark.parametrize("layout", ["mlkv", "explicit"])
@pytest.mark.parametrize(
    ("keys", "mask"),
    [("rotated", None), ("rotated", PADDED), ("unrotated", PADDED)],
    ids=["plain", "padded", "unrotated"],
)
@torch.no_grad()
def test_decoding_chunks_and_one_pass_read_the_same_keys_and_values(
    layout: str, keys: Keys, mask: Tensor | None, name: str
) -> None:
    whole = model(NEOX, LAYOUTS[layout], keys, cache=name)(IDS, attention_mask=mask).logits
    subject = model(NEOX, LAYOUTS[layout], keys)
    for cuts, length in (([1] * 7, None), ([4, 2, 1], None), ([5, 1, 1], 9)):
        cache, done, logits = QuantisedCache(subject.config, name, length), 0, []
        for cut in cuts:
            seen = None if mask is None else mask[:, : done + cut]
            ids = IDS[:, done : done + cut]
            logits.append(subject(ids, attention_mask=seen, past_key_values=cache).logits)
            done += cut
        real = PADDED.bool() if mask is not None else torch.ones_like(IDS, dtype=torch.bool)
        same(torch.cat(logits, 1)[real], whole[real])
    assert not torch.allclose(whole, subject(IDS, attention_mask=mask).logits, atol=1e-4), "it is quantised"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@torch.no_grad()
def test_every_family_decodes_as_it_scores(shape: DecoderShape) -> None:
    layout = LAYOUTS["explicit"]
    subject, cache = model(shape, layout), QuantisedCache(model(shape, layout).config, "int4")
    steps = [subject(IDS[:, i : i + 1], past_key_values=cache).logits for i in range(7)]
    same(torch.cat(steps, 1), model(shape, layout, cache="int4")(IDS).logits)


@EVERY_CACHE
@torch.no_grad()
def test_a_latent_decodes_as_it_scores(name: str) -> None:
    layout = replace(LAYOUTS["explicit"], latent=Latent((5, 9, 14), NEOX.rotated_dims))
    subject, cache = model(layout=layout), QuantisedCache(model(layout=layout).config, name)
    steps = [subject(IDS[:, i : i + 1], past_key_values=cache).logits for i in range(7)]
    same(torch.cat(steps, 1), model(layout=layout, cache=name)(IDS).logits)
    assert not torch.allclose(torch.cat(steps, 1), subject(IDS).logits, atol=1e-4), "it is quantised"


@pytest.mark.parametrize(
    ("name", "length", "beams"), [("int8", None, 3), ("int4", None, 3), ("int4", 12, 3), ("int4", 12, 1)]
)
def test_generation_reorders_and_repeats_a_cache(name: str, length: int | None, beams: int) -> None:
    options: Any = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
    subject = model(layout=LAYOUTS["explicit"])
    cache = QuantisedCache(subject.config, name, length)
    found = subject.generate(IDS, attention_mask=PADDED, past_key_values=cache, **options)
    scored = model(layout=LAYOUTS["explicit"], cache=name)
    for use_cache in (False, True):
        wanted = scored.generate(IDS, attention_mask=PADDED, use_cache=use_cache, **options)
        assert torch.equal(found, wanted)


@EVERY_CACHE
@torch.no_grad()
def test_a_cache_is_cropped_repeated_selected_and_reset(name: str) -> None:
    subject = model(layout=LAYOUTS["explicit"])
    whole = model(layout=LAYOUTS["explicit"], cache=name)(IDS).logits
    cache = QuantisedCache(subject.config, name)
    subject(IDS[:, :6], past_key_values=cache)
    cache.crop(-2)
    assert cache.get_seq_length() == 4
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 2]))
    cache.reorder_cache(torch.tensor([1, 0]))
    same(subject(IDS[[1, 0], 4:], past_key_values=cache).logits, whole[[1, 0], 4:])
    cache.reset()
    assert cache.get_seq_length() == 0
    same(subject(IDS, past_key_values=cache).logits, whole)


@torch.no_grad()
def test_autocast_changes_no_integer_but_by_the_keys_it_computes() -> None:
    """Under autocast a matrix product, such as the rotation of keys, would be one of bf16."""
    keys = torch.randn(2, 3, 5, 32)
    plain = rounding("int4")(keys, keys)  # type: ignore[misc]
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(plain, rounding("int4")(keys, keys), strict=True))  # type: ignore[misc]
