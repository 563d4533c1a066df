"""Exports: which checkpoint each target can hold, what is written, and what a layout costs on each of several GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from mlkv.export.checkpoint import Checkpoint
from mlkv.export.serving import bytes_per_device
from mlkv.export.targets import TARGETS, choose
from mlkv.families.save import to_family
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, Latent, mha
from mlkv.patterns import make
from tests.support.matrix import HEADS, LAYERS, LAYOUTS, SHAPES


def checkpoint(shape: str, layout: KVLayout, keys: str = "rotated") -> Checkpoint:
    return Checkpoint(Path("nowhere"), SHAPES[shape], layout, keys, "float32")


REFUSED = {
    ("native", "llama", "mlkv"): "no family of the table has layers that read another layer's keys and values",
    ("native", "neox", "gqa"): "no family of the table has this model (nearest: ",
    ("native", "cla", "mha"): "no family of the table has this model (nearest: ",
}


@pytest.mark.parametrize(("to", "shape", "layout"), REFUSED, ids=lambda value: value)
def test_a_target_says_why_it_cannot_hold_a_checkpoint_and_which_can(to: str, shape: str, layout: str) -> None:
    with pytest.raises(ValueError, match="; this checkpoint can be exported --to transformers") as refused:
        choose(to, checkpoint(shape, LAYOUTS[layout]))
    assert str(refused.value).startswith(f"--to {to}: {REFUSED[to, shape, layout]}")


def test_owners_of_unequal_head_counts_and_latents_have_no_native_form() -> None:
    unequal = KVLayout(tuple(range(LAYERS)), (4, 2, 1, 4, 2, 1), HEADS)
    latent = KVLayout(tuple(range(LAYERS)), (HEADS,) * LAYERS, HEADS, Latent((5,) * LAYERS, 4))
    assert TARGETS["native"].refuses(checkpoint("llama", unequal)) == (
        "no family of the table has another number of KV heads in each layer"
    )
    assert TARGETS["native"].refuses(checkpoint("neox", latent)) == "no family of the table caches a latent"


def test_other_software_finds_gpt_neoxs_rotation_under_its_older_names(tmp_path: Path) -> None:
    """Engines read `rotary_pct`; without it a model that rotates a half of each head would rotate a quarter."""
    ours = MLKVForCausalLM.from_shape(SHAPES["neox"], mha(LAYERS, HEADS), seed=1)
    to_family(ours, "gpt_neox").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["rotary_pct"], config["rotary_emb_base"]) == (0.5, 10_000.0)
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters["partial_rotary_factor"] == 0.5


@pytest.mark.parametrize(
    ("layout", "spread", "expected"),
    [
        (mha(6, 8), 1, 6 * 8),
        (mha(6, 8), 4, 6 * 2),
        (make("even", 6, 8, 6, 1), 8, 6),  # MQA: each of eight GPUs holds what a single one would
        (make("even", 6, 8, 6, 4), 8, 6),
        (make("even", 6, 8, 2, 4), 2, 2 * 2),
        (KVLayout((0, 1, 0, 1), (8, 2), 8), 4, 2 + 1),
    ],
)
def test_a_gpu_holds_whole_heads_and_several_hold_the_same_where_there_are_fewer(
    layout: KVLayout, spread: int, expected: int
) -> None:
    assert bytes_per_device(layout, 64, 2, spread) == expected * 2 * 64 * 2
    assert bytes_per_device(layout, 64, 2, 1) == layout.kv_bytes_per_token(64)


def test_a_latent_is_whole_on_every_gpu_and_query_heads_must_be_spread_evenly() -> None:
    layout = KVLayout((0, 0), (4,), 4, Latent((48,), 8, shared=True))
    assert bytes_per_device(layout, 32, 2, 4) == bytes_per_device(layout, 32, 2, 1) == (48 + 8) * 2
    with pytest.raises(ValueError, match="tensor_parallel = 3: must divide the 4 query heads"):
        bytes_per_device(layout, 32, 2, 3)
