"""Heads → latents: exact at full rank, and what is lost below it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mlkv.convert.calibration import calibrate
from mlkv.convert.step import convert
from mlkv.convert.step import run as run_conversion
from mlkv.hf import MLKVForCausalLM
from mlkv.recipes import ConvertRecipe
from tests.support.latents import IDS, TEXT, base, latent_of
from tests.support.matrix import HEADS, LAYOUTS, SHAPES
from tests.support.tiny import context

SVD = ConvertRecipe(merge="svd")
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES)


def difference(one: MLKVForCausalLM, other: MLKVForCausalLM) -> float:
    """Mean squared difference of the logits."""
    with torch.no_grad():
        return (one(TEXT).logits - other(TEXT).logits).square().mean().item()


@pytest.mark.parametrize("layout", ["mha", "explicit"])
@EVERY_SHAPE
def test_at_full_rank_the_function_stays_as_it_was(shape: str, layout: str) -> None:
    """Whatever the positions, if each head keeps all of its own rotated part: other inputs than the calibration's."""
    subject, calibration = base(shape)
    whole = latent_of(SHAPES[shape], LAYOUTS[layout], 99)
    expected = convert(subject, LAYOUTS[layout], SVD, calibration)(IDS).logits
    converted = convert(subject, whole, SVD, calibration)
    tolerance = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(converted(IDS).logits, expected, atol=2 * tolerance, rtol=0)
    assert converted.layout == whole


@pytest.mark.parametrize("shape", ["neox", "opt"])
def test_the_error_falls_with_the_rank(shape: str) -> None:
    subject, calibration = base(shape)
    ranks = (8, 14, 20, 32)
    layouts = [latent_of(SHAPES[shape], LAYOUTS["mha"], rank) for rank in ranks]
    errors = [difference(convert(subject, layout, SVD, calibration), subject) for layout in layouts]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9 < errors[0]


def test_more_rotary_planes_and_parts_lose_less() -> None:
    shape = SHAPES["llama"]
    subject, calibration = base("llama")
    dims = [latent_of(shape, LAYOUTS["mha"], 32, rotary_dims=dims) for dims in (0, 6, 12)]
    errors = [difference(convert(subject, layout, SVD, calibration), subject) for layout in dims]
    assert errors == sorted(errors, reverse=True)
    shared = latent_of(shape, LAYOUTS["mha"], 32, shared=True)
    assert difference(convert(subject, shared, SVD, calibration), subject) > errors[-1]


def test_planes_that_no_query_looks_at_are_those_that_lose_their_rotation() -> None:
    shape, (subject, _) = SHAPES["llama"], base("llama")
    silent, half = [1, 4, 5], shape.rotated_dims // 2
    blind = MLKVForCausalLM(subject.config).eval()
    blind.load_state_dict(subject.state_dict())
    for block in blind.model.blocks:
        queries = block.attention.q.weight.data.view(HEADS, shape.head_dim, -1)
        queries[:, silent + [plane + half for plane in silent]] = 0.0
    kept = latent_of(shape, LAYOUTS["mha"], 99, rotary_dims=2 * (half - len(silent)))
    converted = convert(blind, kept, SVD, calibrate(blind, TEXT))
    planes = dict(converted.named_buffers())["model.blocks.2.attention.planes"]
    assert planes.tolist() == [[0, 2, 3]] * HEADS
    assert difference(converted, blind) < 1e-9


@pytest.mark.parametrize("shape", ["neox", "llama"])
def test_heads_that_are_copies_share_one_rotated_part_without_loss(shape: str) -> None:
    subject, _ = base(shape)
    copies = MLKVForCausalLM(subject.config).eval()
    copies.load_state_dict(subject.state_dict())
    for block in copies.model.blocks:
        for part in block.attention.k.parameters():
            by_head = part.data.unflatten(0, (HEADS, -1))
            by_head.copy_(by_head[:1] * torch.tensor([1.0, -2.0, 0.5, 3.0]).view(-1, *[1] * (by_head.dim() - 1)))
    whole = latent_of(SHAPES[shape], LAYOUTS["mha"], 99, shared=True)
    assert difference(convert(copies, whole, SVD, calibrate(copies, TEXT)), copies) < 1e-9


def test_the_record_says_where_rotation_is_lost(tmp_path: Path) -> None:
    subject, calibration = base("neox")
    subject.save_pretrained(tmp_path)
    calibration.save(tmp_path)
    found = [
        run_conversion(
            SVD,
            tmp_path / f"out{i}",
            context(tmp_path),
            layout=latent_of(SHAPES["neox"], LAYOUTS[layout], 5, dims, shared),
            base=tmp_path,
            calibration=tmp_path,
        ).facts["rotation"]
        for i, (layout, dims, shared) in enumerate(
            [("mha", 4, False), ("mha", 2, False), ("mha", 4, True), ("mqa", 4, True)]
        )
    ]
    assert found == ["whole", "approximate", "approximate", "whole"]


def test_a_latent_needs_a_calibration_and_a_base_without_one() -> None:
    subject, calibration = base("neox")
    layout = latent_of(SHAPES["neox"], LAYOUTS["mha"], 8)
    with pytest.raises(ValueError, match="latent: needs a calibration"):
        convert(subject, layout, SVD)
    converted = convert(subject, layout, SVD, calibration)
    same = convert(converted, layout, SVD)
    assert all(torch.equal(a, b) for a, b in zip(converted.parameters(), same.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"layout MHA-24: the base caches a latent, which converts to no other layout"):
        convert(converted, LAYOUTS["mha"], SVD, calibration)


def test_freed_parameters_widen_the_mlps_and_a_costly_latent_narrows_none() -> None:
    shape, (subject, calibration) = SHAPES["neox"], base("neox")
    small, costly = (latent_of(shape, LAYOUTS["mha"], rank) for rank in (2, 32))
    assert shape.parameters(costly) > shape.parameters(LAYOUTS["mha"])
    assert shape.widened_mlp(costly) == shape.mlp_width
    recipe = ConvertRecipe(merge="svd", widening="split")
    widened = convert(subject, small, recipe, calibration)
    assert widened.shape.mlp_width == shape.widened_mlp(small) > shape.mlp_width
    assert difference(widened, convert(subject, small, SVD, calibration)) < 1e-9
