"""Exports: which checkpoint each target can hold, what is written, and what a layout costs on each of several GPUs."""

from __future__ import annotations

import ast
import json
import tomllib
from dataclasses import make_dataclass, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mlkv.corpus.tokenizer import train
from mlkv.export.card import Origin
from mlkv.export.checkpoint import Checkpoint
from mlkv.export.directory import export
from mlkv.export.serving import bytes_per_device
from mlkv.export.targets import TARGETS, choose
from mlkv.families.config import shape_of
from mlkv.families.save import to_family
from mlkv.hf import MLKVForCausalLM, load_checked
from mlkv.layout import KVLayout, Latent, mha
from mlkv.patterns import make
from mlkv.shape import DecoderShape
from tests.support.matrix import FAMILY_CONFIGS, HEADS, LAYERS, LAYOUTS, SHAPES


def checkpoint(shape: str, layout: KVLayout, keys: str = "rotated") -> Checkpoint:
    return Checkpoint(Path("/nowhere"), SHAPES[shape], layout, keys, "float32")


REFUSED = {
    ("gguf", "llama", "mlkv"): "a GGUF file says for no layer that it reads another one's keys and values",
    ("gguf", "cla", "gqa"): "llama.cpp has no such model (nearest: ",
    ("gguf", "opt", "mha"): "llama.cpp has no such model (nearest: gpt2, but for activation, position_offset)",
    ("gguf", "neox", "mha"): "the checkpoint has no tokenizer.json",
    ("vllm", "neox", "explicit"): "its owners have 1 or 2 or 4 KV heads, and vLLM's cache groups need the same number ",
    ("native", "llama", "mlkv"): "no family of the table has layers that read another layer's keys and values",
    ("native", "neox", "gqa"): "no family of the table has this model (nearest: ",
    ("native", "cla", "mha"): "no family of the table has this model (nearest: ",
}


@pytest.mark.parametrize(("to", "shape", "layout"), REFUSED, ids=lambda value: value)
def test_a_target_says_why_it_cannot_hold_a_checkpoint_and_which_can(to: str, shape: str, layout: str) -> None:
    with pytest.raises(ValueError, match="; this checkpoint can be exported --to transformers") as refused:
        choose(to, checkpoint(shape, LAYOUTS[layout]))
    assert str(refused.value).startswith(f"--to {to}: {REFUSED[to, shape, layout]}")


def test_owners_of_unequal_head_counts_and_latents_are_for_transformers_alone() -> None:
    unequal = KVLayout(tuple(range(LAYERS)), (4, 2, 1, 4, 2, 1), HEADS)
    for to in ("native", "gguf", "vllm"):
        assert "KV heads" in (TARGETS[to].refuses(checkpoint("llama", unequal)) or "")
    latent = KVLayout(tuple(range(LAYERS)), (HEADS,) * LAYERS, HEADS, Latent((5,) * LAYERS, 4))
    for to in ("native", "gguf", "vllm"):
        assert "latent" in (TARGETS[to].refuses(checkpoint("neox", latent)) or "")
    apart = replace(mha(LAYERS, HEADS), value_source_layers=(0,) * LAYERS, value_heads=(HEADS,))
    for to in ("native", "gguf", "vllm"):
        assert "values" in (TARGETS[to].refuses(checkpoint("llama", apart)) or "")


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


def test_readers_of_unrotated_keys_are_for_transformers_alone() -> None:
    published = checkpoint("neox", LAYOUTS["mlkv"], "unrotated")
    assert "unrotated" in (TARGETS["vllm"].refuses(published) or "")
    assert TARGETS["vllm"].refuses(checkpoint("neox", LAYOUTS["gqa"], "unrotated")) is None, "nobody reads another's"
    assert TARGETS["transformers"].refuses(published) is None


def written(to: str, shape: DecoderShape, layout: KVLayout, folder: Path) -> tuple[MLKVForCausalLM, Path]:
    """A model and its export."""
    model = MLKVForCausalLM.from_shape(shape, layout, seed=3)
    model.save_pretrained(folder / "checkpoint")
    train(["the quick brown fox"], 280).save_pretrained(folder / "checkpoint")
    export(Checkpoint.read(folder / "checkpoint"), to, folder / "out", Origin("a model"))
    return model, folder / "out"


def test_the_plugin_is_a_package_of_all_modules_that_it_needs(tmp_path: Path) -> None:
    _, out = written("vllm", SHAPES["cla"], LAYOUTS["sandwich"], tmp_path)
    package = out / "mlkv_vllm"
    sources = {path.stem: ast.parse(path.read_text()) for path in package.glob("*.py")}
    relative = {
        node.module
        for tree in sources.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level and node.module
    }
    assert relative == set(sources) - {"__init__", "vllm_model"}
    project = tomllib.loads((out / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {"vllm.general_plugins": {"mlkv": "mlkv_vllm:register"}}
    assert load_checked(out).layout == LAYOUTS["sandwich"]


def test_the_plugin_computes_every_field_of_a_shape_or_is_refused() -> None:
    """A field that is added to shapes is refused until the plugin knows it, not ignored."""
    changed = {"dropped": 0.1}
    later = make_dataclass("Later", [("dropped", float, 0.0)], bases=(DecoderShape,), frozen=True)
    shape = later(**SHAPES["neox"].as_dict(), **changed)
    for to in ("vllm", "gguf"):
        reason = TARGETS[to].refuses(replace(checkpoint("neox", LAYOUTS["gqa"]), shape=shape))
        assert "dropped" in (reason or "")


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_the_plugin_computes_every_family(family: str) -> None:
    shape = shape_of(FAMILY_CONFIGS[family])
    for layout in ("gqa", "mlkv", "pizza"):
        shared = Checkpoint(Path("/nowhere"), shape, LAYOUTS[layout], "rotated", "float32")
        assert TARGETS["vllm"].refuses(shared) is None


def test_a_native_export_with_caps_asks_for_attention_that_has_them(tmp_path: Path) -> None:
    """transformers 5.19 would take a kernel without them, as its default."""
    shape = replace(shape_of(FAMILY_CONFIGS["gemma2"]), vocab_size=300)
    model, out = written("native", shape, LAYOUTS["gqa"], tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(out)
    assert json.loads((out / "config.json").read_text())["attn_implementation"] == "eager"
    assert theirs.config._attn_implementation == "eager"
    ids = torch.arange(10)[None]
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_a_gguf_file_has_the_rows_of_queries_and_keys_as_llama_cpp_rotates_them(bias: bool, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    shape = replace(SHAPES["llama"], attention_bias=bias, vocab_size=300)
    model, out = written("gguf", shape, LAYOUTS["gqa"], tmp_path)
    reader = gguf.GGUFReader(out / "model.gguf")
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    weights = model.model.state_dict()
    assert len(tensors) == len(weights)
    k = weights["blocks.1.attention.k.weight"]
    for head, row in [(0, 0), (1, 3)]:  # a pair of rows that rotate together is (i, i + 6) here and (2i, 2i + 1) there
        for half in (0, 1):
            theirs = tensors["blk.1.attn_k.weight"][head * 12 + 2 * row + half]
            assert torch.equal(theirs, k[head * 12 + row + 6 * half])
    assert torch.equal(tensors["blk.1.attn_v.weight"], weights["blocks.1.attention.v.weight"])
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert (len(tokens), tokens[-1]) == (300, "[PAD299]")


def test_gpt_neox_with_grouped_heads_is_one_fused_matrix(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model, out = written("gguf", replace(SHAPES["neox"], vocab_size=300), LAYOUTS["gqa"], tmp_path)
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(out / "model.gguf").tensors}
    parts = [model.model.state_dict()[f"blocks.2.attention.{part}.weight"] for part in "qkv"]
    assert torch.equal(tensors["blk.2.attn_qkv.weight"], torch.cat(parts))
