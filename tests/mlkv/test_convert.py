"""Conversion: the published table row by row, what each merge computes, what each widening does to the function."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlkv import merges
from mlkv.context import Context, StepFailed
from mlkv.convert.merging import merge_kv
from mlkv.convert.step import convert, run, widen_mlps
from mlkv.families.config import layout_of, shape_of
from mlkv.hf import MLKVForCausalLM, load_checked
from mlkv.layout import KVLayout, mha
from mlkv.merges import converted_shape
from mlkv.patterns import make
from mlkv.recipes import ConvertRecipe
from tests.support.matrix import HEADS, LAYERS, LAYOUTS, SHAPES, VOCAB
from tests.support.tiny import blocks_of

EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=list(SHAPES))
MERGES, WIDENINGS = ["mean", "pairwise", "first", "random"], ["none", "copy", "split"]
IDS = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(5))


def base_model(
    shape: str = "neox", layout: KVLayout | None = None, dtype: torch.dtype | None = None
) -> MLKVForCausalLM:
    base = MLKVForCausalLM.from_shape(SHAPES[shape], layout or mha(LAYERS, HEADS), seed=11, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(4)
    for parameter in base.parameters():  # biases are born as zeros, which would hide mistakes
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return base


def heads(model: MLKVForCausalLM, layer: int, kind: str = "k.weight") -> Tensor:
    """`[G, K, …]` of a layer's keys or values."""
    weight = blocks_of(model.model)[layer].attention.get_parameter(kind)
    return weight.detach().unflatten(0, (-1, model.shape.head_dim))


def recipe(merge: Any = "mean", widening: Any = "none", seed: int = 42) -> ConvertRecipe:
    return ConvertRecipe(merge=merge, widening=widening, seed=seed)


def test_every_choice_of_the_recipe_is_tried_here() -> None:
    hints = get_type_hints(ConvertRecipe, include_extras=True)
    choices = {name: hints[name].__metadata__[0].valid() for name in ("merge", "widening")}
    calibrated = ["aligned", "svd", "fisher"]  # tests/mlkv/test_align.py
    assert choices["merge"] == [*merges.MERGES] == [*MERGES, *calibrated]
    assert choices["widening"] == [*merges.WIDENINGS] == WIDENINGS


def test_what_is_no_merge_or_widening_computes_nothing() -> None:
    base = base_model()
    state, layout = base.model.state_dict(), LAYOUTS["mlkv"]
    with pytest.raises(
        ValueError, match=r"^merge = nonsense: must be one of mean, pairwise, first, random, aligned, svd, fisher$"
    ):
        recipe("nonsense")
    with pytest.raises(
        ValueError, match=r"^merge = nonsense: must be one of mean, pairwise, first, random, aligned, svd, fisher$"
    ):
        merge_kv(state, state, base.layout, base.layout, "nonsense")
    with pytest.raises(ValueError, match=r"^widening = Copy: must be one of none, copy, split$"):
        recipe(widening="Copy")
    for widen in (
        lambda: widen_mlps(state, base.shape.mlp_width, "Copy"),
        lambda: converted_shape(base.shape, base.layout, layout, "Copy"),
    ):
        with pytest.raises(ValueError, match=r"^widening = Copy: must be one of none, copy, split$"):
            widen()


def test_a_merge_and_a_widening_take_one_entry_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(merges.MERGES, "last", lambda layers, fresh: layers[-1][:, -1])
    double = replace(merges.WIDENINGS["split"], width=lambda s, *_: 2 * s.mlp_width)
    monkeypatch.setitem(merges.WIDENINGS, "double", double)
    base, layout = base_model(), LAYOUTS["mqa"]
    state = base.model.state_dict()
    merged = merge_kv(state, state, base.layout, layout, "last")
    assert torch.equal(merged["blocks.2.attention.k.weight"], heads(base, 2)[-1])
    assert converted_shape(base.shape, base.layout, layout, "double").mlp_width == 2 * base.shape.mlp_width


@pytest.mark.parametrize(
    ("merged", "reason"),
    [
        (lambda layers, fresh: layers[0], "must give the shape [1, 8, 32], not the shape [1, 4, 8, 32]"),
        (lambda layers, fresh: fresh[..., :1], "must give the shape [1, 8, 32], not the shape [1, 8, 1]"),
        (lambda layers, fresh: None, "must give the shape [1, 8, 32], not NoneType"),
    ],
)
def test_a_merge_of_another_shape_is_named(
    merged: Callable[..., object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(merges.MERGES, "wrong", merged)
    with pytest.raises(ValueError, match=re.escape(f"merge = wrong: {reason}")):
        convert(base_model(), LAYOUTS["mqa"], ConvertRecipe(merge="wrong"))


# --- the published models, arXiv 2406.09297 -----------------------------------------------------------------------

PYTHIA_160M = {
    "model_type": "gpt_neox",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 2048,
    "vocab_size": 50304,
    "rotary_pct": 0.25,
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
}
PYTHIA_410M = PYTHIA_160M | {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}

PUBLISHED = [
    # config, KV layers, KV heads, owners, MLP width, parameters with and without widening, KV bytes per token
    (PYTHIA_160M, 12, 12, range(12), 3072, 162_322_944, 162_322_944, 36_864),
    (PYTHIA_160M, 12, 4, range(12), 3584, 162_316_800, 152_873_472, 12_288),
    (PYTHIA_160M, 4, 12, (0, 3, 6, 9), 3584, 162_316_800, 152_873_472, 12_288),
    (PYTHIA_160M, 12, 1, range(12), 3777, 162_332_940, 149_329_920, 3_072),
    (PYTHIA_160M, 4, 3, (0, 3, 6, 9), 3777, 162_332_940, 149_329_920, 3_072),
    (PYTHIA_160M, 6, 1, (0, 2, 4, 6, 8, 10), 3809, 162_332_556, 148_739_328, 1_536),
    (PYTHIA_160M, 4, 1, (0, 3, 6, 9), 3819, 162_320_132, 148_542_464, 1_024),
    (PYTHIA_160M, 2, 1, (0, 6), 3830, 162_326_152, 148_345_600, 512),
    (PYTHIA_160M, 1, 1, (0,), 3835, 162_319_940, 148_247_168, 256),
    (PYTHIA_410M, 8, 1, range(0, 24, 3), 5099, 405_326_344, 405_334_016 - 49_331_200, 2_048),
]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row[0]['hidden_size']}-{row[1]}x{row[2]}")
@pytest.mark.parametrize("widening", WIDENINGS)
def test_converted_pythias_have_the_published_sizes(row: tuple[Any, ...], widening: Any) -> None:
    config, kv_layers, kv_heads, owners, mlp_width, parameters, unwidened, kv_bytes = row
    shape = shape_of(config)
    layout = make("even", shape.layers, shape.heads, kv_layers, kv_heads)
    with torch.device("meta"):
        base = MLKVForCausalLM.from_shape(shape, layout_of(config), seed=0)
        converted = convert(base, layout, recipe(widening=widening))
    expected = (shape.mlp_width, unwidened) if widening == "none" else (mlp_width, parameters)
    assert layout.owners == tuple(owners)
    assert (converted.shape.mlp_width, converted.num_parameters()) == expected
    assert converted.shape.parameters(layout) == expected[1]
    assert layout.kv_bytes_per_token(shape.head_dim) == kv_bytes
    assert blocks_of(converted.model)[-1].mlp.down.in_features == expected[0]


# --- merging ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("widening", WIDENINGS)
def test_the_bases_own_layout_is_the_identity_bit_for_bit(dtype: torch.dtype, merge: Any, widening: Any) -> None:
    for shape, layout in (("neox", LAYOUTS["mha"]), ("llama", LAYOUTS["gqa"]), ("opt", LAYOUTS["explicit"])):
        base = base_model(shape, layout, dtype)
        converted = convert(base, layout, recipe(merge, widening))
        assert converted.dtype == dtype
        for name, weight in base.state_dict().items():
            assert torch.equal(converted.state_dict()[name], weight), name


@EVERY_LAYOUT
@EVERY_SHAPE
@pytest.mark.parametrize("merge", MERGES)
def test_a_converted_model_runs_and_keeps_all_but_its_keys_and_values(shape: str, layout: KVLayout, merge: Any) -> None:
    base = base_model(shape)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    converted = convert(base, layout, recipe(merge))
    assert converted.layout == layout
    assert converted(IDS).logits.isfinite().all()
    for name, weight in converted.state_dict().items():
        if ".attention.k." not in name and ".attention.v." not in name:
            assert torch.equal(weight, before[name.replace(".kv_norm.", ".attention_norm.")]), name
    for name, weight in base.state_dict().items():
        assert torch.equal(weight, before[name]), f"{name} of the base has changed"


@pytest.mark.parametrize("kind", ["k.weight", "k.bias", "v.weight", "v.bias"])
def test_mean_is_over_all_heads_of_a_group_and_all_its_layers(kind: str) -> None:
    base = base_model()
    converted = convert(base, make("even", LAYERS, HEADS, 2, 2), recipe("mean"))
    for group, owner in enumerate((0, 3)):
        sources = torch.stack([heads(base, 3 * group + layer, kind) for layer in range(3)])
        for head in range(2):
            expected = sources[:, 2 * head : 2 * head + 2].mean((0, 1))
            torch.testing.assert_close(heads(converted, owner, kind)[head], expected)


@pytest.mark.parametrize(
    ("layers_per_group", "weights"),
    [(2, [1 / 2, 1 / 2]), (3, [1 / 4, 1 / 4, 1 / 2]), (6, [1 / 32, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2])],
)
def test_pairwise_weighs_layers_as_the_published_running_mean(layers_per_group: int, weights: list[float]) -> None:
    base = base_model()
    converted = convert(base, make("even", LAYERS, HEADS, LAYERS // layers_per_group, 1), recipe("pairwise"))
    for owner in converted.layout.owners:
        expected = sum(w * heads(base, owner + i).mean(0) for i, w in enumerate(weights))
        torch.testing.assert_close(heads(converted, owner)[0], expected)


def test_pairwise_within_a_layer_is_the_plain_mean() -> None:
    base, layout = base_model(), LAYOUTS["mqa"]
    mean, pairwise = (convert(base, layout, recipe(merge)) for merge in ("mean", "pairwise"))
    assert all(torch.equal(a, b) for a, b in zip(mean.parameters(), pairwise.parameters(), strict=True))


def test_first_keeps_the_owners_first_head_of_each_group() -> None:
    base = base_model()
    converted = convert(base, make("even", LAYERS, HEADS, 2, 2), recipe("first"))
    for owner in (0, 3):
        assert torch.equal(heads(converted, owner), heads(base, owner)[[0, 2]])


def test_random_starts_merged_heads_anew_from_the_seed_and_keeps_the_others() -> None:
    base, layout = base_model(), LAYOUTS["dense_back"]  # layers 0, 4 and 5 alone with all heads, 1 to 3 a group
    one, same, other = (convert(base, layout, recipe("random", seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(heads(one, 1), heads(same, 1))
    assert not torch.equal(heads(one, 1), heads(other, 1))
    assert not torch.isin(heads(one, 1), heads(base, 1)).any()
    assert heads(one, 1).std().item() == pytest.approx(base.shape.init_std, rel=0.1)
    assert heads(one, 1, "k.bias").eq(0).all()
    for layer in (0, 4, 5):
        assert torch.equal(heads(one, layer), heads(base, layer))


def test_owners_of_different_head_counts_each_merge_to_their_own() -> None:
    base, layout = base_model(), LAYOUTS["explicit"]  # owner 0 read by 2, owner 1 by 4, owner 3 by 5; 4, 1 and 2 heads
    converted = convert(base, layout, recipe("mean"))
    torch.testing.assert_close(heads(converted, 0), (heads(base, 0) + heads(base, 2)) / 2)
    torch.testing.assert_close(heads(converted, 1)[0], (heads(base, 1).mean(0) + heads(base, 4).mean(0)) / 2)
    pairs = (heads(base, 3) + heads(base, 5)).unflatten(0, (2, 2)) / 2
    torch.testing.assert_close(heads(converted, 3), pairs.mean(1))


@pytest.mark.parametrize("merge", ["mean", "pairwise", "first"])
def test_merging_equal_heads_changes_nothing_but_the_size(merge: Any) -> None:
    base, layout = base_model("llama"), LAYOUTS["mqa"]
    for block in blocks_of(base.model):
        for projection in (block.attention.k, block.attention.v):
            projection.weight.data = projection.weight.data[:12].repeat(HEADS, 1)
    converted = convert(base, layout, recipe(merge)).eval()
    torch.testing.assert_close(converted(IDS).logits, base(IDS).logits, atol=1e-4, rtol=1e-4)


def test_a_gqa_base_merges_the_heads_it_has() -> None:
    base = base_model("llama", LAYOUTS["gqa"])
    converted = convert(base, make("even", LAYERS, HEADS, 3, 1), recipe("mean"))
    expected = torch.cat([heads(base, 2), heads(base, 3)]).mean(0)
    torch.testing.assert_close(heads(converted, 2)[0], expected)


def test_a_base_that_shares_already_merges_what_its_layers_read() -> None:
    base = base_model("llama", make("even", LAYERS, HEADS, 3, 2))
    converted = convert(base, make("even", LAYERS, HEADS, 2, 2), recipe("mean"))
    torch.testing.assert_close(heads(converted, 0), (heads(base, 0) + heads(base, 2)) / 2)
    torch.testing.assert_close(heads(converted, 3), (heads(base, 2) + heads(base, 4)) / 2)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (make("even", 6, 4, 6, 2), make("even", 6, 4, 1, 4), "kv_heads = 4 at layer 0: must divide the 2 of the base"),
        (LAYOUTS["mqa"], LAYOUTS["gqa"], "kv_heads = 2 at layer 0: must divide the 1 of the base"),
        (make("even", 6, 4, 3, 2), LAYOUTS["gqa"], "layout GQA-12: the base has 6 KV heads, conversion cannot add any"),
        (LAYOUTS["mha"], mha(5, 4), "layout has 5 layers of 4 heads, the decoder 6 of 4"),
    ],
)
def test_a_layout_that_the_base_cannot_become_is_named(source: KVLayout, target: KVLayout, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(base_model("neox", source), target, recipe())


def test_keys_stay_of_the_kind_they_were() -> None:
    base = MLKVForCausalLM.from_shape(SHAPES["neox"], LAYOUTS["cla"], seed=0, keys="unrotated")
    assert convert(base, LAYOUTS["mlkv"], recipe()).model.keys == "unrotated"


# --- widening -----------------------------------------------------------------------------------------------------


@EVERY_SHAPE
@settings(max_examples=15)
@given(st.integers(0, 200))
def test_split_preserves_the_function_however_much_is_added(shape: str, added: int) -> None:
    base = base_model(shape)
    width = SHAPES[shape].mlp_width + added
    state = base.model.state_dict()
    state |= widen_mlps(state, width, "split")
    wide = MLKVForCausalLM(base.config.__class__(**{**base.config.to_dict(), "mlp_width": width})).eval()
    wide.model.load_state_dict(state)
    torch.testing.assert_close(wide(IDS).logits, base(IDS).logits, atol=1e-3, rtol=1e-4)


@EVERY_SHAPE
def test_copy_appends_the_first_units_as_they_are(shape: str) -> None:
    base, layout = base_model(shape), LAYOUTS["mqa"]
    converted = convert(base, layout, recipe(widening="copy"))
    old, added = base.shape.mlp_width, converted.shape.mlp_width - base.shape.mlp_width
    assert 0 < added < old
    for before, after in zip(blocks_of(base.model), blocks_of(converted.model), strict=True):
        for name, weight in before.mlp.named_parameters():
            axis = 1 if name == "down.weight" else 0
            expected = weight if name == "down.bias" else torch.cat([weight, weight.narrow(axis, 0, added)], axis)
            assert torch.equal(after.mlp.get_parameter(name), expected), name


def test_copy_changes_the_function_and_split_does_not() -> None:
    base, layout = base_model(), LAYOUTS["mlkv"]
    plain, copied, split = (convert(base, layout, recipe("mean", w)).eval()(IDS).logits for w in WIDENINGS)
    torch.testing.assert_close(split, plain, atol=1e-4, rtol=1e-4)
    assert (copied - plain).abs().max() > 0.1


@EVERY_LAYOUT
@EVERY_SHAPE
def test_the_shape_is_known_before_the_conversion(shape: str, layout: KVLayout) -> None:
    for widening in WIDENINGS:
        converted = convert(base_model(shape), layout, recipe("mean", widening))
        assert converted.shape == converted_shape(SHAPES[shape], mha(LAYERS, HEADS), layout, widening)
        assert converted.num_parameters() == converted.shape.parameters(layout)


# --- the step -----------------------------------------------------------------------------------------------------


def test_the_step_writes_a_checkpoint_with_the_bases_tokenizer(tmp_path: Path) -> None:
    base = base_model("llama")
    base.generation_config.eos_token_id = 3
    base.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    rows: list[dict[str, Any]] = []
    context, layout = Context(tmp_path, rows.append), LAYOUTS["explicit"]
    outcome = run(recipe("mean", "split"), tmp_path / "out", context, layout=layout, base=tmp_path / "base")
    written = load_checked(tmp_path / "out")
    expected = convert(base, layout, recipe("mean", "split"))
    assert all(torch.equal(a, b) for a, b in zip(written.parameters(), expected.parameters(), strict=True))
    assert outcome.facts == {"parameters": expected.num_parameters(), "mlp_width": expected.shape.mlp_width}
    assert written.generation_config.eos_token_id == 3
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert [row["step"] for row in rows] == [0, 1]


@pytest.mark.parametrize("widening", WIDENINGS)
def test_scratch_is_a_seeded_model_of_the_shape_that_is_given(widening: Any, tmp_path: Path) -> None:
    """The plan has widened it already, by the rule for a converted one: widening it again would be a second rule."""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    scratch = ConvertRecipe(start="scratch", widening=widening, seed=5)
    context, layout = Context(tmp_path, lambda row: None), LAYOUTS["mlkv"]
    shape = converted_shape(SHAPES["neox"], mha(LAYERS, HEADS), layout, widening)
    tokenizer = tmp_path / "tokenizer"
    run(scratch, tmp_path / "out", context, layout=layout, base=None, shape=shape, tokenizer=tokenizer)
    written = load_checked(tmp_path / "out")
    expected = MLKVForCausalLM.from_shape(shape, layout, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(written.parameters(), expected.parameters(), strict=True))
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_what_cannot_be_done_fails_the_step_in_one_line(tmp_path: Path) -> None:
    context = Context(tmp_path, lambda row: None)
    with pytest.raises(StepFailed, match="start = scratch: needs the shape"):
        run(ConvertRecipe(start="scratch"), tmp_path / "out", context, layout=LAYOUTS["mlkv"], base=None)
    base_model("llama", LAYOUTS["mqa"]).save_pretrained(tmp_path / "base")
    with pytest.raises(StepFailed, match="kv_heads = 2 at layer 0: must divide the 1 of the base"):
        run(recipe(), tmp_path / "out", context, layout=LAYOUTS["gqa"], base=tmp_path / "base")


def test_a_base_or_a_merge_that_is_not_finite_is_named(tmp_path: Path) -> None:
    context = Context(tmp_path, lambda row: None)
    base = base_model("llama")
    blocks_of(base.model)[1].attention.k.weight.data[:] = 3e38  # their sum overflows
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(StepFailed, match=r"merge = mean: weight model.blocks.\d.attention.k.weight is not finite"):
        run(recipe(), tmp_path / "out", context, layout=LAYOUTS["mqa"], base=tmp_path / "base")
    blocks_of(base.model)[1].attention.k.weight.data[0, 0] = float("nan")
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(StepFailed, match=r"base: weight model.blocks.1.attention.k.weight is not finite"):
        run(recipe(), tmp_path / "out", context, layout=LAYOUTS["mqa"], base=tmp_path / "base")
