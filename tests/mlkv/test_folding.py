"""Which conversions are exact before heads are averaged, of which families: what the rule says, measured.

Exact: heads that compute the same in other coordinates merge without loss, and a reader's queries turn as they did.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mlkv.convert.calibration import calibrate
from mlkv.convert.frames import aligned, key_frames
from mlkv.convert.step import convert, run
from mlkv.families.config import shape_of
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, Latent, mha
from mlkv.merges import MERGES, approximations, merge_named
from mlkv.recipes import ConvertRecipe
from mlkv.shape import DecoderShape
from tests.support.matrix import FAMILY_CONFIGS, HEADS, LAYERS, LAYOUTS, VOCAB
from tests.support.parity import ACROSS_LAYERS, WITHIN_LAYERS, merges_table, random_model, written_out
from tests.support.tiny import blocks_of, context

BASE = mha(LAYERS, HEADS)
IDS = torch.randint(1, VOCAB, (8, 24), generator=torch.Generator().manual_seed(5))
WITHIN, ACROSS = WITHIN_LAYERS, ACROSS_LAYERS
FRAMED = [name for name in MERGES if merge_named(name).frames]
FAST = {"llama", "qwen3", "smollm3"}
FAMILIES = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.long]) for name in FAMILY_CONFIGS]


def error(ours: MLKVForCausalLM, of: MLKVForCausalLM) -> float:
    """The largest difference of logits, as a share of the largest."""
    with torch.no_grad():
        expected = of(IDS).logits
        return float((ours(IDS).logits - expected).abs().max() / expected.abs().max())


def with_turned_heads(shape: DecoderShape) -> MLKVForCausalLM:
    """A model whose heads of a layer are one head in other coordinates; with biases, and norms that are not ones."""
    base = random_model(shape, BASE)
    generator = torch.Generator().manual_seed(1)
    for block in blocks_of(base.model):
        for projection in (block.attention.k, block.attention.v):
            rotated = shape.rotated_dims if projection is block.attention.k else 0
            maps = key_frames(aligned, torch.randn(HEADS, 3, shape.head_dim, generator=generator), rotated)
            for parameter in (projection.weight, projection.bias):
                if parameter is not None:
                    heads: Tensor = parameter.data.reshape(HEADS, shape.head_dim, -1)
                    parameter.data = (maps.mT @ heads[:1]).reshape(parameter.shape)
    return base


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_are_exact_for_the_families_of_which_the_rule_says_so(family: str) -> None:
    base = with_turned_heads(shape_of(FAMILY_CONFIGS[family]))
    calibration = calibrate(base, IDS)
    for merge in FRAMED:
        found = error(convert(base, WITHIN, ConvertRecipe(merge=merge), calibration).eval(), base)
        is_exact = not approximations(base.shape, BASE, WITHIN, merge)
        assert found < 1e-5 if is_exact else found > 1e-3, (merge, found)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reader_turns_its_queries_as_in_the_base_where_the_rule_says_so(family: str) -> None:
    """Nothing is averaged here: all that is left of sharing is the rotation of the owner."""
    shape = shape_of(FAMILY_CONFIGS[family])
    base = random_model(shape, BASE)
    shared = random_model(shape, ACROSS)
    turned = written_out(shared)
    turned.model.load_state_dict(base.model.state_dict())
    reasons = approximations(shape, BASE, ACROSS, "mean")
    found = error(turned, base)
    assert found > 1e-3 if reasons else found == 0, found
    assert bool(reasons) == (family in ("smollm3", "gemma3"))
    assert all("rotate queries as the owner's keys are" in reason for reason in reasons)


def test_the_rule_names_what_it_is_that_cannot_be_folded() -> None:
    shapes = {family: shape_of(FAMILY_CONFIGS[family]) for family in FAMILY_CONFIGS}
    norms = "keys merge as they are, as nothing folds through their norm (qk_norm = {})"
    assert approximations(shapes["qwen3"], BASE, WITHIN, "aligned") == [norms.format("head")]
    assert approximations(shapes["olmo2"], BASE, ACROSS, "svd") == [norms.format("width")]
    assert approximations(shapes["qwen3"], BASE, WITHIN, "mean") == []
    assert approximations(shapes["qwen3"], BASE, BASE, "aligned") == []
    values_alone = KVLayout(BASE.kv_source_layers, BASE.kv_heads, HEADS, value_heads=(1,) * LAYERS)
    assert approximations(shapes["qwen3"], BASE, values_alone, "aligned") == []
    assert approximations(shapes["smollm3"], BASE, WITHIN, "aligned") == []
    reader = KVLayout((0, 1, 1, 3, 4, 5), (HEADS,) * 5, HEADS)
    assert approximations(shapes["smollm3"], BASE, reader, "mean") == [
        "layer 2 rotates queries as the owner's keys are, not as in the base"
    ]
    assert approximations(shapes["smollm3"], reader, reader, "mean") == []
    latent = replace(BASE, latent=Latent((8,) * LAYERS, 4))
    assert approximations(shapes["llama"], BASE, latent, "mean") == ["heads lose a part of their rotation (latent)"]


@pytest.mark.parametrize(("family", "merge"), [("qwen3", "aligned"), ("qwen3", "mean"), ("llama", "svd")])
def test_the_record_says_that_a_conversion_is_approximate(tmp_path: Path, family: str, merge: str) -> None:
    base = random_model(shape_of(FAMILY_CONFIGS[family]), BASE)
    base.save_pretrained(tmp_path / "base")
    (tmp_path / "calibration").mkdir()
    calibrate(base, IDS).save(tmp_path / "calibration")
    facts = run(
        ConvertRecipe(merge=merge),
        tmp_path / "out",
        context(tmp_path),
        layout=LAYOUTS["mqa"],
        base=tmp_path / "base",
        calibration=tmp_path / "calibration",
    ).facts
    reasons = approximations(base.shape, BASE, LAYOUTS["mqa"], merge)
    assert facts.get("approximate") == ("; ".join(reasons) or None)
    assert bool(reasons) == ((family, merge) == ("qwen3", "aligned"))
    assert math.isfinite(facts["parameters"])


def test_the_table_in_the_docs_is_that_of_the_rule() -> None:
    assert merges_table() in (Path(__file__).resolve().parents[2] / "docs/conversion.md").read_text()
