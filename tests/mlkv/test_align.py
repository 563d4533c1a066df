"""Merges that use a calibration: frames that change nothing before averaging, fits, weights, and the calibrate step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mlkv.context import Context, Interrupted, StepFailed
from mlkv.convert.calibration import Calibration, calibrate
from mlkv.convert.calibration import run as run_calibration
from mlkv.convert.frames import Frames, aligned, key_frames, low_rank
from mlkv.convert.heads import Group, computed, in_frames
from mlkv.convert.step import convert
from mlkv.families.config import layout_of, shape_of
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, mha
from mlkv.merges import MERGES
from mlkv.patterns import make
from mlkv.positions import rotate
from mlkv.recipes import CalibrateRecipe, ConvertRecipe
from tests.support.matrix import FAMILY_CONFIGS, HEADS, LATER, LAYERS, LAYOUTS, SHAPES, VOCAB
from tests.support.parity import State, assert_unchanged
from tests.support.tiny import SHAPE, blocks_of, context, make_corpus

CALIBRATED = ["aligned", "svd", "fisher"]
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES)
IDS = torch.randint(VOCAB, (4, 40), generator=torch.Generator().manual_seed(5))


def base_model(shape: str, layout: KVLayout | None = None, dtype: torch.dtype | None = None) -> MLKVForCausalLM:
    base = MLKVForCausalLM.from_shape(SHAPES[shape], layout or mha(LAYERS, HEADS), seed=11, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(4)
    for parameter in base.parameters():  # biases are born as zeros, which would hide mistakes
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return base


def groups(base: MLKVForCausalLM, layout: KVLayout) -> list[Group]:
    return [Group(base.layout, layout, owner, base.shape.rotated_dims) for owner in layout.owners]


def error(model: MLKVForCausalLM, base: MLKVForCausalLM) -> float:
    """Mean squared difference of the logits."""
    with torch.no_grad():
        return (model(IDS).logits - base(IDS).logits).square().mean().item()


# --- frames -------------------------------------------------------------------------------------------------------


def random_heads(seed: int, members: int, tokens: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(members, tokens, width, generator=generator, dtype=torch.float64)


@settings(max_examples=20)
@given(
    st.integers(0, 99), st.integers(1, 5), st.integers(0, 4), st.integers(0, 5), st.sampled_from([aligned, low_rank])
)
def test_maps_of_keys_commute_with_the_rotation_by_position(
    seed: int, members: int, planes: int, rest: int, frames: Frames
) -> None:
    if not planes + rest:
        return
    heads = random_heads(seed, members, 60, 2 * planes + rest)
    maps = key_frames(frames, heads, 2 * planes)
    angles = torch.rand(60, planes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 6
    cos_sin = angles.cos()[None, None], angles.sin()[None, None]
    torch.testing.assert_close(rotate(heads[None] @ maps, cos_sin), rotate(heads[None], cos_sin) @ maps)
    if frames is aligned:
        torch.testing.assert_close(maps @ maps.mT, torch.eye(2 * planes + rest).double().expand_as(maps))


@given(st.integers(0, 99), st.integers(2, 5), st.integers(1, 6))
def test_heads_that_differ_by_a_rotation_become_one(seed: int, members: int, width: int) -> None:
    rotations, _ = torch.linalg.qr(random_heads(seed, members, width, width))
    heads = random_heads(seed + 1, 1, 50, width) @ rotations
    for frames in (aligned, low_rank):
        common = heads @ frames(heads)
        torch.testing.assert_close(common, common[:1].expand_as(common))


@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 5), st.integers(1, 30))
def test_low_rank_reconstructs_as_well_as_the_singular_value_decomposition(
    seed: int, members: int, width: int, tokens: int
) -> None:
    heads = random_heads(seed, members, tokens, width)
    maps = low_rank(heads)
    reconstructed = (heads @ maps).mean(0) @ maps.mT
    values = torch.linalg.svdvals(heads.transpose(0, 1).flatten(1))
    torch.testing.assert_close((reconstructed - heads).square().sum(), values[width:].square().sum())


# --- conversion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["gqa", "mlkv", "cla", "dense_back", "explicit"])
@EVERY_SHAPE
def test_aligning_changes_nothing_before_heads_are_averaged(shape: str, layout: str) -> None:
    base = base_model(shape)
    calibration = calibrate(base, IDS)

    def turn(state: State) -> State:
        turned = dict(state)
        for group in groups(base, LAYOUTS[layout]):
            if group.merges:
                turned |= in_frames(state, group, aligned, calibration)
        assert any(not torch.equal(turned[name], state[name]) for name in state)
        return turned

    assert_unchanged(base, turn, IDS)


@pytest.mark.parametrize("merge", CALIBRATED)
@EVERY_SHAPE
def test_every_calibrated_merge_makes_every_layout_and_leaves_the_base_alone(shape: str, merge: str) -> None:
    for source in (mha(LAYERS, HEADS), LAYOUTS["gqa"], LAYOUTS["cla"]):
        base = base_model(shape, source, torch.bfloat16 if source.budget == 12 else None)
        before = {name: weight.clone() for name, weight in base.state_dict().items()}
        calibration = calibrate(base_model(shape, source), IDS)
        for layout in (LAYOUTS[name] for name in ("gqa", "mqa", "mlkv", "dense_back", "explicit")):
            fits = all(base.layout.heads_of(i) % layout.heads_of(i) == 0 for i in range(LAYERS))
            if layout.budget > source.budget or not fits:
                continue
            converted = convert(base, layout, ConvertRecipe(merge=merge), calibration)
            assert converted.layout == layout
            assert converted.dtype == base.dtype
            assert converted(IDS).logits.isfinite().all()
        assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())


@pytest.mark.parametrize("merge", CALIBRATED)
def test_a_layer_that_merges_nothing_stays_bit_for_bit(merge: str) -> None:
    base, layout = base_model("neox"), LAYOUTS["dense_back"]  # layers 0, 4 and 5 alone with all heads
    converted = convert(base, layout, ConvertRecipe(merge=merge), calibrate(base, IDS))
    for layer in (0, 4, 5):
        old, new = (blocks_of(model.model)[layer].attention.state_dict() for model in (base, converted))
        assert all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize("merge", ["aligned", "svd"])
@EVERY_SHAPE
def test_heads_that_are_turned_copies_of_one_merge_without_loss(shape: str, merge: str) -> None:
    """Where all heads of a layer compute the same in other coordinates, a query and an output undo each's rotation."""
    base = base_model(shape)
    head_dim, rotated = base.shape.head_dim, base.shape.rotated_dims
    generator = torch.Generator().manual_seed(1)
    for block in blocks_of(base.model):
        for projection in (block.attention.k, block.attention.v):
            heads = torch.randn(HEADS, 3, head_dim, generator=generator)
            maps = key_frames(aligned, heads, rotated if projection is block.attention.k else 0)
            weight = projection.weight.data.unflatten(0, (HEADS, -1))
            projection.weight.data = (maps.mT @ weight[:1]).flatten(0, 1)
            if projection.bias is not None:
                bias = projection.bias.data.unflatten(0, (HEADS, -1))
                projection.bias.data = (maps.mT @ bias[:1, :, None]).flatten()
    converted = convert(base, LAYOUTS["mqa"], ConvertRecipe(merge=merge), calibrate(base, IDS)).eval()
    assert error(converted, base) < 1e-6
    assert error(convert(base, LAYOUTS["mqa"], ConvertRecipe(merge="mean")).eval(), base) > 1e-3


@EVERY_SHAPE
def test_aligned_heads_have_the_size_of_those_that_they_were_made_from(shape: str) -> None:
    base, layout = base_model(shape), LAYOUTS["mlkv"]
    calibration = calibrate(base, IDS)
    converted = convert(base, layout, ConvertRecipe(merge="aligned"), calibration)
    for group in groups(base, layout):
        for kind in ("k", "v"):
            made = computed(converted.model.state_dict(), group.owner, kind, calibration.inputs[group.owner], 1)
            of = [computed(base.model.state_dict(), i, kind, calibration.inputs[i], HEADS) for i in group.sources]
            torch.testing.assert_close(made.square().mean(), torch.stack(of).square().mean(), rtol=1e-3, atol=0)


def test_fisher_is_the_mean_where_all_heads_matter_alike_and_else_leans_to_those_that_do() -> None:
    base, layout = base_model("neox"), LAYOUTS["mqa"]
    calibration = calibrate(base, IDS)
    alike = {layer: (torch.ones(HEADS), torch.ones(HEADS)) for layer in range(LAYERS)}
    one = {layer: (torch.tensor([0.0, 0, 3, 0]), torch.tensor([0.0, 0, 3, 0])) for layer in range(LAYERS)}
    converted = {
        name: convert(base, layout, ConvertRecipe(merge="fisher"), replace(calibration, fisher=fisher))
        for name, fisher in {"alike": alike, "one": one}.items()
    }
    mean = convert(base, layout, ConvertRecipe(merge="mean"))
    for layer in range(LAYERS):
        weights = {
            name: blocks_of(model.model)[layer].attention.k.weight.data
            for name, model in {**converted, "mean": mean, "base": base}.items()
        }
        torch.testing.assert_close(weights["alike"], weights["mean"])
        torch.testing.assert_close(weights["one"], weights["base"].unflatten(0, (HEADS, -1))[2])


def test_a_merge_that_needs_a_calibration_says_so() -> None:
    with pytest.raises(ValueError, match="merge = aligned: needs a calibration"):
        convert(base_model("neox"), LAYOUTS["mqa"], ConvertRecipe(merge="aligned"))


# --- calibration --------------------------------------------------------------------------------------------------


def test_inputs_and_fisher_information_are_those_of_plain_torch() -> None:
    base = base_model("opt", make("even", LAYERS, HEADS, 3, 2))
    calibration = calibrate(base, IDS)
    hidden: list[Tensor] = []
    block = blocks_of(base.model)[2]
    handle = block.attention_norm.register_forward_hook(lambda _module, _given, out: hidden.append(out.detach()))
    base(IDS)
    handle.remove()
    torch.testing.assert_close(calibration.inputs[2], hidden[0].flatten(0, 1))
    assert set(calibration.inputs) == set(range(LAYERS))
    assert set(calibration.fisher) == {0, 2, 4}
    expected = torch.zeros(2)
    for ids_T in IDS:
        logits = base(ids_T[None]).logits[0, :-1]
        parameters = block.attention.v.weight, block.attention.v.bias
        weight, bias = torch.autograd.grad(functional.cross_entropy(logits, ids_T[1:]), parameters)
        expected += torch.cat([weight, bias[:, None]], 1).unflatten(0, (2, -1)).square().sum((1, 2))
    torch.testing.assert_close(calibration.fisher[2][1], expected)
    assert all(parameter.grad is None for parameter in base.parameters())


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = calibrate(base_model("cla", LAYOUTS["cla"]), IDS)
    written.save(tmp_path)
    read = Calibration.load(tmp_path)
    assert all(torch.equal(read.inputs[layer], inputs) for layer, inputs in written.inputs.items())
    assert read.fisher.keys() == written.fisher.keys()
    for layer, (keys, values) in written.fisher.items():
        assert torch.equal(read.fisher[layer][0], keys)
        assert torch.equal(read.fisher[layer][1], values)


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and a corpus, as the step gets them."""
    folder = tmp_path_factory.mktemp("parents")
    MLKVForCausalLM.from_shape(SHAPE, mha(SHAPE.layers, SHAPE.heads), seed=1).save_pretrained(folder / "base")
    return {"base": folder / "base", "corpus": make_corpus(tmp_path_factory.mktemp("corpus"), task_items=0)}


def test_the_step_is_a_function_of_its_seed(parents: dict[str, Path], tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    facts = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        recipe = CalibrateRecipe(tokens=300, seed=seed)
        facts.append(run_calibration(recipe, tmp_path / name, Context(tmp_path, rows.append), **parents).facts)
    one, again, other = (Calibration.load(tmp_path / name) for name in ("one", "again", "other"))
    assert facts[0] == {"rows": 4, "tokens": 4 * 96}
    assert one.inputs[0].shape == (4 * 96, SHAPE.width)
    assert torch.equal(one.inputs[1], again.inputs[1])
    assert not torch.equal(one.inputs[1], other.inputs[1])
    assert [row["step"] for row in rows[:5]] == [0, 1, 2, 3, 4]


def test_a_calibration_that_cannot_be_made_says_why(parents: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"calibrate.tokens = 100000000: the corpus has \d+ tokens in rows that are"):
        run_calibration(CalibrateRecipe(tokens=100_000_000), tmp_path, context(tmp_path), **parents)
    with pytest.raises(Interrupted, match="stopped after 0 of"):
        run_calibration(CalibrateRecipe(tokens=96), tmp_path, context(tmp_path, should_stop=lambda: True), **parents)
    assert not list(tmp_path.iterdir())


# --- families -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "qwen3" else [pytest.mark.long]) for name in LATER]
)
def test_every_merge_makes_a_model_of_every_family_and_frames_change_nothing_before_heads_are_averaged(
    name: str,
) -> None:
    config = FAMILY_CONFIGS[name]
    shape, source = replace(shape_of(config), init_std=0.1), layout_of(config)
    base = MLKVForCausalLM.from_shape(shape, source, seed=11).eval()
    for parameter in base.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4))
    calibration = calibrate(base, IDS)
    layout = KVLayout((0, 0, 2, 2, 4, 4), (1, 1, 1), HEADS)

    def turn(state: State) -> State:
        turned = dict(state)
        for group in groups(base, layout):
            turned |= in_frames(state, group, aligned, calibration)
        changed = {key.split(".")[3] for key in state if not torch.equal(turned[key], state[key])}
        assert changed == ({"v", "o"} if shape.qk_norm != "none" else {"q", "k", "v", "o"})
        return turned

    assert_unchanged(base, turn, IDS)
    for merge in MERGES:
        converted = convert(base, layout, ConvertRecipe(merge=merge), calibration)
        assert converted(IDS[:1]).logits.isfinite().all()


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "olmo2"])
def test_layers_with_equal_keys_behind_their_norm_merge_without_loss(name: str) -> None:
    config = FAMILY_CONFIGS[name]
    source = mha(LAYERS, HEADS)
    base = MLKVForCausalLM.from_shape(shape_of(config), source, seed=11).eval()
    state = base.model.state_dict()
    for key, weight in state.items():  # every layer's heads of keys and values are those of the first
        if ".attention.k." in key or ".attention.v." in key or ".k_norm." in key:
            first = state[f"blocks.0.{key.split('.', 2)[2]}"]
            heads = HEADS if len(first) > base.shape.head_dim else 1
            weight.copy_(first.unflatten(0, (heads, -1))[:1].expand(heads, *[-1] * first.dim()).flatten(0, 1))
    converted = convert(base, make("even", LAYERS, HEADS, LAYERS, 1), ConvertRecipe(merge="mean"))
    torch.testing.assert_close(converted(IDS).logits, base(IDS).logits, atol=1e-4, rtol=1e-4)
