"""Keys and values of different layers and head counts: attention, caches, conversion, checkpoints, random layouts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache

from mlkv.cache.formats import CACHES
from mlkv.cache.packing import rounding
from mlkv.cache.quantised import QuantisedCache
from mlkv.convert.calibration import calibrate
from mlkv.convert.step import convert
from mlkv.export import native
from mlkv.export.card import Origin, model_card
from mlkv.export.checkpoint import Checkpoint
from mlkv.export.serving import bytes_per_device
from mlkv.export.targets import TARGETS
from mlkv.hf import MLKVForCausalLM, load_checked
from mlkv.layout import KVLayout, Latent, divisors, mha
from mlkv.measure import step as measure
from mlkv.merges import MERGES, check_conversion
from mlkv.patterns import PATTERNS, Pattern, make, name_of
from mlkv.positions import rotary_angles
from mlkv.recipes import ConvertRecipe, MeasureRecipe
from mlkv.shape import DecoderShape
from mlkv.train.sampling import layouts_of
from mlkv.training_recipes import ElasticRecipe
from tests.support.matrix import HEADS, LAYERS, LAYOUTS, SHAPES, VOCAB
from tests.support.tiny import blocks_of, context

APART = LAYOUTS["kv_apart"]
IDS = torch.randint(1, VOCAB, (2, 7), generator=torch.Generator().manual_seed(6))
TEXT = torch.randint(VOCAB, (2, 40), generator=torch.Generator().manual_seed(5))
FEW = settings(max_examples=8)


@st.composite
def sources(draw: st.DrawFn, layers: int) -> tuple[int, ...]:
    found = [0]
    for layer in range(1, layers):
        owners = [i for i, source in enumerate(found) if source == i]
        found.append(draw(st.sampled_from([*owners, layer])))
    return tuple(found)


@st.composite
def layouts(draw: st.DrawFn) -> KVLayout:
    """Any layout; keys and values are apart in nearly all."""
    layers, heads = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 4, 6, 12]))
    parts = []
    for _ in range(2):
        read = draw(sources(layers))
        owners = sum(i == source for i, source in enumerate(read))
        parts.append((read, tuple(draw(st.sampled_from(divisors(heads))) for _ in range(owners))))
    (keys, key_heads), (values, value_heads) = parts
    return KVLayout(keys, key_heads, heads, value_source_layers=values, value_heads=value_heads)


def shape_for(layout: KVLayout, head_dim: int = 6) -> DecoderShape:
    return DecoderShape(
        vocab_size=VOCAB,
        width=10,
        layers=layout.layers,
        heads=layout.heads,
        head_dim=head_dim,
        mlp_width=8,
        context=32,
        rotary_fraction=0.7,
        init_std=0.3,
    )


def noisy(model: MLKVForCausalLM) -> MLKVForCausalLM:
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():  # biases are born as zeros, which would hide mistakes
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model.eval()


def model_of(
    layout: KVLayout, shape: DecoderShape | None = None, dtype: torch.dtype = torch.float64
) -> MLKVForCausalLM:
    return noisy(MLKVForCausalLM.from_shape(shape or shape_for(layout), layout, seed=7, dtype=dtype))


def held_bytes(cache: Cache) -> int:
    """All tensors that a cache's layers hold, but for the counters of their tokens."""
    tensors = [t for layer in cache.layers for t in vars(layer).values() if isinstance(t, torch.Tensor) and t.dim()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# --- layouts


@settings(max_examples=30)
@given(layouts())
def test_a_layout_is_the_same_after_json_and_is_written_in_one_way_only(layout: KVLayout) -> None:
    written = json.loads(json.dumps(layout.as_dict()))
    assert KVLayout.from_dict(written) == layout
    assert ("value_source_layers" in written) is (layout.values.kv_source_layers != layout.kv_source_layers)
    assert ("value_heads" in written) is (layout.values.kv_heads != layout.kv_heads)
    assert layout.apart is (layout.keys != layout.values)
    in_full = KVLayout(
        layout.kv_source_layers,
        layout.kv_heads,
        layout.heads,
        value_source_layers=layout.values.kv_source_layers,
        value_heads=layout.values.kv_heads,
    )
    assert (in_full, hash(in_full)) == (layout, hash(layout))


def test_a_layout_that_has_keys_and_values_together_is_written_as_before() -> None:
    layout = KVLayout((0, 0, 2), (4, 2), 4, value_source_layers=(0, 0, 2), value_heads=(4, 2))
    assert layout == KVLayout((0, 0, 2), (4, 2), 4)
    assert json.dumps(layout.as_dict()) == '{"kv_source_layers": [0, 0, 2], "kv_heads": [4, 2], "heads": 4}'
    config = MLKVForCausalLM.from_shape(SHAPES["neox"], LAYOUTS["mlkv"], seed=0).config.to_dict()
    assert not {"value_source_layers", "value_heads"} & config.keys()


@pytest.mark.parametrize(
    ("pattern", "keys", "values", "name"),
    [
        ("fusedkv_lite", (0, 1, 2, 2, 2, 2), (0, 1, 2, 0, 0, 0), "FusedKV-Lite-12"),
        ("fusedkv_lite_reverse", (0, 1, 2, 0, 0, 0), (0, 1, 2, 2, 2, 2), "FusedKV-Lite-reverse-12"),
        ("svformer", (0, 1, 2, 3, 4, 5), (0, 0, 0, 0, 0, 0), "SVFormer-14"),
    ],
)
def test_patterns_are_those_of_the_papers(
    pattern: str, keys: tuple[int, ...], values: tuple[int, ...], name: str
) -> None:
    layout = make(pattern, 6, 4, 6 if pattern == "svformer" else 3, 4)
    assert (layout.keys.kv_source_layers, layout.values.kv_source_layers) == (keys, values)
    assert [name_of(layout), name_of(layout, pattern)] == [name, name]
    assert layout.kv_bytes_per_token(32) == 2 * 32 * 2 * layout.budget


def test_names_show_head_counts_that_differ() -> None:
    names = [name_of(make("even", 6, 12, *sizes)) for sizes in ((6, 4, 2), (6, 12, 12), (3, 3, 2), (3, 4, 4))]
    assert names == ["GQA-18 k=4 v=2", "MHA-72", "MLKV-7.5 k=3 v=2", "MLKV-12"]
    assert name_of(APART) == "Custom-7"
    assert APART.draw() == "K 4 ─ 1 ←0 2 ←2  V 1 2 ─ 4 ←1 ─"


def test_a_pattern_with_values_of_its_own_takes_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Pattern("TopKeys", PATTERNS["even"].rule, values=lambda layers, kv_layers: (0,) * layers)
    monkeypatch.setitem(PATTERNS, "top_keys", row)
    layout = make("top_keys", 4, 4, 2, 2)
    assert layout == KVLayout((0, 0, 2, 2), (2, 2), 4, value_source_layers=(0,) * 4, value_heads=(2,))
    assert [name_of(layout, "top_keys"), name_of(layout)] == ["TopKeys-3", "Custom-3"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value_source_layers": (0, 0)}, r"value_source_layers has 2 entries, kv_source_layers 3"),
        ({"value_source_layers": (0, 2, 2)}, r"value_source_layers = \[0, 2, 2\]: a layer that reads from above"),
        ({"value_source_layers": (0, 0, 1)}, r"value_source_layers\[2\] = 1: layer 1 keeps no values, it reads 0"),
        (
            {"value_source_layers": (0, 0, 0)},
            r"value_heads is unset, and kv_heads has 2 entries for 1 owners of values \(layers 0\): set value_heads",
        ),
        ({"value_heads": (4,)}, r"value_heads has 1 entries for 2 owners \(layers 0, 2\)"),
        ({"value_heads": (4, 3)}, r"value_heads = 3 at layer 2: must divide 4 query heads \(1, 2, 4\)"),
        (
            {"value_heads": (4, 1), "latent": Latent((4, 4), 2)},
            r"value_heads = \[4, 1\]: a latent holds keys and values together; unset one",
        ),
    ],
)
def test_a_broken_rule_is_named(fields: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(KVLayout((0, 0, 2), (4, 2), 4), **fields)  # type: ignore[arg-type]


def test_who_asks_for_heads_of_both_is_told_that_they_differ() -> None:
    for call in (lambda: APART.heads_of(0), lambda: APART.readers(0)):
        with pytest.raises(ValueError, match=r"ask layout\.keys or layout\.values"):
            call()


# --- attention, against a computation of one number at a time in float64


def attention_by_hand(model: MLKVForCausalLM, inputs: list[NDArray[np.float64]], layer: int) -> NDArray[np.float64]:
    """What a layer's attention gives to its output projection, `[T, H · K]`, from what every layer's attention read."""
    layout, width = model.layout, model.shape.head_dim
    blocks = blocks_of(model.model)

    def projected(source: int, kind: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        weight, bias = (blocks[source].attention.get_parameter(f"{kind}.{part}") for part in ("weight", "bias"))
        return x @ weight.detach().numpy().T + bias.detach().numpy()

    key_owner, value_owner = layout.keys.kv_source_layers[layer], layout.values.kv_source_layers[layer]
    q = projected(layer, "q", inputs[layer])
    k, v = projected(key_owner, "k", inputs[key_owner]), projected(value_owner, "v", inputs[value_owner])
    half = model.shape.rotated_dims // 2
    # The decoder computes angles in float32, whatever its weights are.
    angles = rotary_angles(model.shape, torch.arange(len(q))[None])
    assert angles
    cosines, sines = (each[0, 0].numpy() for each in angles)

    def turned(vector: NDArray[np.float64], position: int) -> NDArray[np.float64]:
        vector = vector.copy()
        for plane in range(half):
            cos, sin = float(cosines[position, plane]), float(sines[position, plane])
            a, b = vector[plane], vector[plane + half]
            vector[plane], vector[plane + half] = a * cos - b * sin, b * cos + a * sin
        return vector

    out = np.zeros_like(q)
    for head in range(layout.heads):
        of_key = head // (layout.heads // layout.keys.heads_of(layer)) * width
        of_value = head // (layout.heads // layout.values.heads_of(layer)) * width
        for t in range(len(q)):
            query = turned(q[t, head * width : (head + 1) * width], t)
            logits = [query @ turned(k[s, of_key : of_key + width], s) / math.sqrt(width) for s in range(t + 1)]
            weights = np.exp(np.array(logits) - max(logits))
            found = weights / weights.sum() @ v[: t + 1, of_value : of_value + width]
            out[t, head * width : (head + 1) * width] = found
    return out


@FEW
@given(layouts())
@torch.no_grad()
def test_attention_is_that_of_each_owners_keys_and_values_written_out(layout: KVLayout) -> None:
    model = model_of(layout)
    inputs: list[NDArray[np.float64]] = []
    given_out: list[NDArray[np.float64]] = []
    for block in blocks_of(model.model):
        attention = block.attention
        attention.q.register_forward_pre_hook(lambda _, given: inputs.append(given[0][0].numpy()))
        attention.o.register_forward_pre_hook(lambda _, given: given_out.append(given[0][0].numpy()))
    model(IDS[:1])
    for layer in range(layout.layers):
        np.testing.assert_allclose(given_out[layer], attention_by_hand(model, inputs, layer), rtol=1e-9, atol=1e-9)


# --- caches


CACHED = given(layouts(), st.sampled_from(list(CACHES)), st.integers(1, 20), st.booleans())


@FEW
@CACHED
def test_caches_hold_the_formulas_bytes_and_every_cut_gives_the_same_logits(
    layout: KVLayout, name: str, head_dim: int, preallocated: bool
) -> None:
    check_caches(layout, name, head_dim, preallocated)


@pytest.mark.long
@settings(max_examples=150)
@CACHED
def test_caches_of_many_layouts_hold_the_formulas_bytes(
    layout: KVLayout, name: str, head_dim: int, preallocated: bool
) -> None:
    check_caches(layout, name, head_dim, preallocated)


@torch.no_grad()
def check_caches(layout: KVLayout, name: str, head_dim: int, preallocated: bool) -> None:
    shape = shape_for(layout, head_dim)
    per_token = CACHES[name].kv_bytes_per_token(layout, head_dim, 8)
    vectors = sum(layout.keys.kv_heads) + sum(layout.values.kv_heads)
    assert per_token == vectors * CACHES[name].vector_bytes(head_dim, 8)
    subject = model_of(layout, shape)
    length = 9 if preallocated else None
    scored = model_of(layout, shape)
    scored.model.rounding = rounding(name)
    expected = scored(IDS).logits
    for cuts in ([7], [1] * 7, [4, 2, 1]):
        if CACHES[name].bits is not None:
            cache: Cache = QuantisedCache(subject.config, name, length)
        else:
            config = subject.config
            cache = StaticCache(config=config, max_cache_len=9) if preallocated else DynamicCache(config=config)
        steps, done = [], 0
        for cut in cuts:
            steps.append(subject(IDS[:, done : done + cut], past_key_values=cache).logits)
            done += cut
        torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-6, rtol=1e-6)
        assert held_bytes(cache) == len(IDS) * (length or 7) * per_token


@pytest.mark.parametrize("name", ["model", "int4"])
def test_generation_reorders_crops_and_repeats_every_owners_part(name: str) -> None:
    """Caches decide by the length of a layer's keys what they reorder: an owner of values alone must have one."""
    subject = model_of(APART, SHAPES["neox"])
    scored = model_of(APART, SHAPES["neox"])
    scored.model.rounding = rounding(name)
    quantised = CACHES[name].bits is not None
    options = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    cache = QuantisedCache(subject.config, name) if quantised else DynamicCache(config=subject.config)
    found = subject.generate(IDS, past_key_values=cache, **options)
    assert torch.equal(found, scored.generate(IDS, use_cache=False, **options))
    cache = QuantisedCache(subject.config, name) if quantised else DynamicCache(config=subject.config)
    with torch.no_grad():
        subject(IDS[:, :6], past_key_values=cache)
        cache.crop(-2)
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 0, 0, 3]))
        after = subject(IDS[[1, 0, 0, 1], 4:], past_key_values=cache).logits
        torch.testing.assert_close(after, scored(IDS).logits[[1, 0, 0, 1], 4:], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("protocol", "cache"), [("prefill", "model"), ("filled", "int4")])
def test_a_measurement_counts_the_formulas_bytes(protocol: Any, cache: str, tmp_path: Path) -> None:
    recipe = MeasureRecipe(
        batch_sizes=(2,), contexts=(8,), new_tokens=2, dtype="fp32", device="cpu", repeats=1, protocol=protocol
    )
    outcome = measure.run(recipe, tmp_path, context(tmp_path), shape=SHAPES["neox"], layout=APART, cache=cache)
    [measured] = [row.value for row in outcome.metrics if row.metric == "cache_bytes_per_token"]
    assert measured == CACHES[cache].kv_bytes_per_token(APART, SHAPES["neox"].head_dim, 4)


# --- conversion


@FEW
@given(st.sampled_from(sorted(MERGES)), st.data())
def test_a_conversion_that_drops_nothing_is_exact(merge: str, data: st.DataObject) -> None:
    """Neighbouring heads of the base are equal where they become one: in keys and in values by themselves."""
    counts = st.lists(st.sampled_from(divisors(4)), min_size=3, max_size=3)
    kv_heads, value_heads = tuple(data.draw(counts)), tuple(data.draw(counts))
    layout = KVLayout((0, 1, 2), kv_heads, 4, value_heads=value_heads)
    base = model_of(mha(3, 4), shape_for(layout), torch.float32)
    for layer, block in enumerate(blocks_of(base.model)):
        for kind, part in (("k", layout.keys), ("v", layout.values)):
            for parameter in block.attention.get_submodule(kind).parameters():
                heads = parameter.data.unflatten(0, (part.heads_of(layer), -1, base.shape.head_dim))
                heads[:] = heads[:, :1].clone()
    if merge == "random":  # which has nothing of the base
        layout = base.layout
    converted = convert(base, layout, ConvertRecipe(merge=merge, widening="none"), calibrate(base, TEXT)).eval()
    assert converted.layout == layout
    expected = base(IDS).logits
    error = (converted(IDS).logits - expected).abs().max() / expected.abs().max()
    assert error < 1e-4


@pytest.mark.parametrize("merge", ["mean", "first"])
def test_keys_and_values_merge_in_groups_of_their_own(merge: str) -> None:
    shape = SHAPES["neox"]
    base = model_of(mha(LAYERS, HEADS), shape, torch.float32)
    converted = convert(base, APART, ConvertRecipe(merge=merge))
    for kind, part in (("k", APART.keys), ("v", APART.values)):
        for name in (f"{kind}.weight", f"{kind}.bias"):
            old = [block.attention.get_parameter(name).data for block in blocks_of(base.model)]
            for owner, heads in zip(part.owners, part.kv_heads, strict=True):
                members = [old[owner], *(old[reader] for reader in part.readers(owner))]
                stacked = torch.stack([each.unflatten(0, (heads, -1, shape.head_dim)) for each in members])
                wanted = stacked.mean((0, 2)) if merge == "mean" else stacked[0, :, 0]
                found = blocks_of(converted.model)[owner].attention.get_parameter(name).data
                torch.testing.assert_close(found.unflatten(0, (heads, -1)), wanted)


@pytest.mark.parametrize("merge", ["mean", "svd", "fisher"])
def test_merges_convert_from_and_to_such_layouts(merge: str) -> None:
    base = model_of(mha(LAYERS, HEADS), SHAPES["cla"], torch.float32)
    once = convert(
        base, make("fusedkv_lite", LAYERS, HEADS, 3, 2), ConvertRecipe(merge=merge), calibrate(base, TEXT)
    ).eval()
    smaller = KVLayout((0, 0, 2, 2, 2, 2), (1, 1), HEADS, value_source_layers=(0,) * 6, value_heads=(2,))
    twice = convert(once, smaller, ConvertRecipe(merge=merge), calibrate(once, TEXT)).eval()
    back = convert(once, make("even", LAYERS, HEADS, 3, 1), ConvertRecipe(merge=merge), calibrate(once, TEXT)).eval()
    assert [each.layout.apart for each in (once, twice, back)] == [True, True, False]
    assert all(each(IDS).logits.isfinite().all() for each in (once, twice, back))
    same = convert(once, once.layout, ConvertRecipe(merge=merge))
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), once.parameters(), strict=True))


@pytest.mark.parametrize(
    ("base", "layout", "message"),
    [
        (make("even", 6, 4, 6, 2), make("even", 6, 4, 6, 2, 4), "value_heads = 4 at layer 0: must divide the 2 of the"),
        (make("svformer", 6, 4, 6, 4), mha(6, 4), "layout MHA-24: the base has 4 value heads, conversion cannot add"),
        (LAYOUTS["gqa"], make("svformer", 6, 4, 6, 4), "kv_heads = 4 at layer 0: must divide the 2 of the base"),
    ],
)
def test_no_conversion_adds_heads_of_either_kind(base: KVLayout, layout: KVLayout, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_conversion(base, layout)


def test_elastic_training_refuses_layouts_that_it_cannot_sample() -> None:
    with pytest.raises(ValueError, match=r"^pattern = svformer: has other sources for values than for keys; valid: ev"):
        layouts_of(ElasticRecipe(steps=1, pattern="svformer"), mha(6, 4))
    with pytest.raises(ValueError, match="elastic training takes bases that share keys and values together"):
        layouts_of(ElasticRecipe(steps=1), APART)


# --- checkpoints


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = model_of(APART, SHAPES["neox"], torch.float32)
    saved.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["value_source_layers"], config["value_heads"]) == ([0, 1, 1, 3, 1, 3], [1, 2, 4])
    loaded = load_checked(tmp_path)
    assert loaded.layout == APART
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True))
    assert saved.config.kv_sharing_modes == [None] * 5 + ["reuse"]
    weights = {name: tuple(weight.shape) for name, weight in saved.model.state_dict().items()}
    assert weights == SHAPES["neox"].weights(APART)


# --- export


def test_an_export_draws_keys_and_values_and_no_family_holds_them() -> None:
    layout = make("svformer", LAYERS, HEADS, LAYERS, 2)
    checkpoint = Checkpoint(Path("unread"), SHAPES["llama"], layout, "rotated", "float32")
    card = model_card(Origin("x"), checkpoint, TARGETS["transformers"], "x")
    assert "layer     0 1 2 3 4 5\nkeys      2 2 2 2 2 2\nvalues    2 ─ ─ ─ ─ ─\n" in card
    assert "`─`: it reads" in card
    assert "keys and values from different layers" in (native.refusal(checkpoint) or "")
    assert bytes_per_device(APART, 8, 2, 4) == (3 + 3) * 8 * 2, "a head of each owner of each kind"
    config = MLKVForCausalLM.from_shape(SHAPES["neox"], make("even", LAYERS, HEADS, LAYERS, 1, 4), seed=0).config
    assert config.num_key_value_heads == 4
