"""GGUF files, read back by transformers' own loader: it computes our logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mlkv.export.checkpoint import Checkpoint
from mlkv.export.targets import TARGETS
from mlkv.layout import mha
from tests.support.matrix import HEADS, LAYERS
from tests.support.served import GGUF, Served

ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
READ_BACK: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "phi3": {"pad_token_id": 0, "rope_parameters": ROPE | {"partial_rotary_factor": 0.75}},
    "stablelm": {"use_qkv_bias": True},
    "gemma2": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 32},
    "gemma3": {
        "query_pre_attn_scalar": 32,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 8.0},
            "sliding_attention": ROPE,
        },
    },
    "gpt2": {"n_inner": 128, "n_positions": 512},
}
"""Architecture that transformers loads → what its loader does not read from a file, and llama.cpp does or has as a
constant. Of the others, tests/engines asks llama.cpp."""


def check(architecture: str, folder: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model, out = GGUF[architecture].write(folder)
    assert gguf.GGUFReader(out / "model.gguf").fields["general.architecture"].contents() == architecture
    theirs = AutoModelForCausalLM.from_pretrained(
        out, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager", **READ_BACK[architecture]
    ).eval()
    ids = torch.randint(280, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = theirs(ids).logits, model(ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_transformers_computes_our_logits_from_a_gguf_file(tmp_path: Path) -> None:
    check("qwen3", tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("architecture", READ_BACK)
def test_transformers_computes_our_logits_from_a_gguf_file_of_each_architecture(
    architecture: str, tmp_path: Path
) -> None:
    check(architecture, tmp_path)


@pytest.mark.parametrize(
    ("family", "changes", "field"),
    [
        ("mistral", {}, "window"),
        ("phi3", {}, "window"),
        ("smollm3", {}, "unrotated_layers"),  # every third layer; llama.cpp's has every fourth
        ("gemma2", GGUF["gemma2"].changes | {"attention_cap": 0.0}, "attention_cap"),
        ("gemma3", GGUF["gemma3"].changes | {"local_rotary_base": 20.0}, "local_rotary_base"),
        ("olmo2", {"head_dim": 64}, "head_dim"),
        ("llama_yarn", {}, "rotary_scaling"),
    ],
)
def test_a_field_that_llama_cpp_does_not_compute_is_named(family: str, changes: dict[str, Any], field: str) -> None:
    shape = Served("gguf", family, "MHA", changes).shape
    reason = TARGETS["gguf"].refuses(Checkpoint(Path("/nowhere"), shape, mha(LAYERS, HEADS), "rotated", "float32"))
    assert field in (reason or "").partition("but for ")[2].rstrip(")").split(", ")
