"""The conformance kit: what it finds in models of transformers, that ours pass, and that each check can fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mlkv import attention, tokens
from mlkv.check.results import Result
from mlkv.check.sharing import measured_sources
from mlkv.check.subject import Subject, load_subject
from mlkv.check.table import CHECKS, run
from mlkv.hf import MLKVConfig, MLKVForCausalLM
from mlkv.layout import KVLayout
from mlkv.model import Decoder
from mlkv.shape import DecoderShape
from tests.support.matrix import FAMILY_CONFIGS, LAYOUTS, SHAPES

Config = dict[str, Any]
SIZES: Config = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
GEMMA: Config = {
    **SIZES,
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "num_kv_shared_layers": 4,
    "sliding_window": 8,
    "vocab_size_per_layer_input": 61,
    "hidden_size_per_layer_input": 8,
}
GEMMA_3N: Config = {**GEMMA, "model_type": "gemma3n_text", "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 6}
GEMMA_4: Config = {**GEMMA, "model_type": "gemma4_text", "global_head_dim": 16}
MISTRAL_LARGE_4: Config = {
    **SIZES,
    "model_type": "mistral_large4_text",
    "num_key_value_heads": 4,
    "num_hidden_layers": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_topk": 64,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 4,
    "no_rope_layers": [1, 1, 1, 1],
}
OTHERS: dict[str, Config] = {
    **FAMILY_CONFIGS,
    "qwen3": {**SIZES, "model_type": "qwen3", "num_hidden_layers": 3},
    "mistral": {**SIZES, "model_type": "mistral", "num_hidden_layers": 3, "sliding_window": 8},
    "gemma2": {**SIZES, "model_type": "gemma2", "num_hidden_layers": 4, "sliding_window": 8},
    "qwen3_moe": {
        **SIZES,
        "model_type": "qwen3_moe",
        "num_hidden_layers": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
}


def written(config: Config, folder: Path) -> Path:
    if config["model_type"] not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {config['model_type']}")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def checked(subject: Subject, *names: str) -> dict[str, Result]:
    if not names:
        return {result.name: result for result in run(subject)}
    return {check.name: check.run(subject) for check in CHECKS if check.name in names}


def failed(results: dict[str, Result]) -> set[str]:
    return {name for name, result in results.items() if result.state == "FAIL"}


def ours(shape: DecoderShape = SHAPES["neox"], layout: KVLayout = LAYOUTS["explicit"]) -> Subject:
    model = MLKVForCausalLM.from_shape(shape, layout, seed=7).eval()
    ids = torch.randint(1, shape.vocab_size, (2, 12), generator=torch.Generator().manual_seed(3))
    return Subject(model, "random", ids, 0)


def test_ours_passes_every_check_but_the_checkpointing_that_it_refuses() -> None:
    results = checked(ours())
    assert {name for name, result in results.items() if result.state != "pass"} == {"reentrant"}
    assert "use_reentrant = True" in results["reentrant"].reason
    assert results["sources"].reason == "3 of 6 layers read another"


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_ours_passes_with_every_layout(shape: DecoderShape, layout: KVLayout) -> None:
    results = checked(ours(shape, layout))
    assert {name for name, result in results.items() if result.state != "pass"} == {"reentrant"}


@pytest.mark.long
@pytest.mark.parametrize("config", OTHERS.values(), ids=list(OTHERS))
def test_models_of_transformers_without_sharing_pass(config: Config, tmp_path: Path) -> None:
    assert not failed(checked(load_subject(written(config, tmp_path))))


@pytest.mark.long
def test_a_llama_passes_every_check(tmp_path: Path) -> None:
    results = checked(load_subject(written(FAMILY_CONFIGS["llama"], tmp_path)))
    assert {result.state for result in results.values()} == {"pass"}


@pytest.mark.parametrize("config", [GEMMA_3N, pytest.param(GEMMA_4, marks=pytest.mark.long)], ids=["gemma3n", "gemma4"])
def test_reentrant_checkpointing_of_gemma_with_shared_layers_loses_gradients(config: Config, tmp_path: Path) -> None:
    results = checked(load_subject(written(config, tmp_path)), "checkpointing", "reentrant", "sources")
    assert failed(results) == {"reentrant"}
    assert (results["reentrant"].difference or 0) > 0.5
    assert "the loss differs by 0e+00" in results["reentrant"].reason
    assert results["sources"].reason == "4 of 6 layers read another"


@pytest.mark.long
@pytest.mark.parametrize("config", [GEMMA_3N, GEMMA_4], ids=["gemma3n", "gemma4"])
def test_nothing_else_is_wrong_with_gemma(config: Config, tmp_path: Path) -> None:
    assert failed(checked(load_subject(written(config, tmp_path)))) == {"reentrant"}


def test_two_owners_of_mistral_large_4_have_wrong_gradients_under_checkpointing(tmp_path: Path) -> None:
    subject = load_subject(written({**MISTRAL_LARGE_4, "kv_source_layers": [0, 0, 2, 2]}, tmp_path))
    assert not subject.has_head
    results = checked(subject, "repeated", "cached", "sources", "cache_bytes", "checkpointing")
    assert failed(results) == {"checkpointing"}
    assert (results["checkpointing"].difference or 0) > 2
    assert "the loss differs by 0e+00" in results["checkpointing"].reason


def test_a_layer_that_reads_another_than_its_config_names_is_found(tmp_path: Path) -> None:
    subject = load_subject(written({**MISTRAL_LARGE_4, "kv_source_layers": [0, 1, 0, 1]}, tmp_path))
    [result] = checked(subject, "sources").values()
    assert (result.state, result.difference) == ("FAIL", 0.25)
    assert result.reason == "layer 2 reads layer 1, the config names layer 0"


def test_a_model_whose_first_pass_fails_is_not_checked_further(tmp_path: Path) -> None:
    config = {**MISTRAL_LARGE_4, "kv_source_layers": [0, 0, 2, 3], "no_rope_layers": [1, 0, 1, 1]}
    first, *others = run(load_subject(written(config, tmp_path)))
    assert (first.name, first.state) == ("repeated", "FAIL")
    assert "KeyError: 'nope'" in first.reason
    assert {(result.state, result.reason) for result in others} == {("skipped", "a pass fails")}


# Each check can fail


def without_mask(real: Callable[..., Any]) -> Callable[..., Any]:
    """Padding is attended to."""
    return lambda inputs, mask, past, cached: real(inputs, None, past, cached)


def forgetful(real: Callable[..., Any]) -> Callable[..., Any]:
    """A mask of one pass, whatever is in the cache."""
    return lambda inputs, mask, past, cached: None if past and mask is None else real(inputs, mask, past, cached)


def second_reader_reads_first_owner(self: Decoder, *given: Any, **named: Any) -> Tensor:
    own = self.layout
    self.layout = replace(own, kv_source_layers=(0, 1, 0, 3, 0, 3))
    try:
        return REAL_FORWARD(self, *given, **named)
    finally:
        self.layout = own


REAL_FORWARD = Decoder.forward


class Leaky(torch.nn.Module):
    """A block whose output is scaled anew with every pass in training mode."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block, self.passes = block, 0

    def forward(self, *inputs: Any) -> Any:
        self.passes += 1
        x, shared = self.block(*inputs)
        return x * (1 + 0.1 * self.passes if self.training else 1), shared


def broken(name: str, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """A model with the fault that a check of this name is for."""
    subject = ours()
    if name in ("padded", "unequal", "greedy"):
        monkeypatch.setattr(tokens, "_causal_mask", without_mask(tokens._causal_mask))
    elif name == "eager":
        real = attention._weights
        monkeypatch.setattr(attention, "_weights", lambda logits, mask: real(0.1 * logits, mask))
    elif name == "chunked":
        monkeypatch.setattr(tokens, "_causal_mask", forgetful(tokens._causal_mask))
    elif name in ("cached", "static", "beams"):
        monkeypatch.setattr(DynamicCache, "get_seq_length", lambda *_: 0)
        monkeypatch.setattr("transformers.StaticCache.get_seq_length", lambda *_: 0)
    elif name == "sources":
        monkeypatch.setattr(Decoder, "forward", second_reader_reads_first_owner)
    elif name == "cache_bytes":
        monkeypatch.setattr(KVLayout, "kv_bytes_per_token", lambda *_: 1)
    elif name == "round_trip":
        monkeypatch.setattr(MLKVConfig, "to_diff_dict", lambda self: {**self.to_dict(), "norm_eps": 0.1})
    elif name in ("use_cache", "checkpointing", "not_reentrant"):
        blocks = subject.model.model.blocks
        blocks[2] = Leaky(blocks[2])
    elif name in ("repeated", "batched"):
        noise = torch.Generator().manual_seed(0)
        subject.model.model.norm.register_forward_hook(lambda *a: a[2] + torch.randn(a[2].shape, generator=noise))
    elif name == "causal":
        subject.model.model.norm.register_forward_hook(lambda *a: a[2] + a[2].mean(1, keepdim=True))
    return subject


@pytest.mark.parametrize("name", [check.name for check in CHECKS if check.name != "reentrant"])
def test_every_check_finds_the_fault_it_is_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [result] = checked(broken(name, monkeypatch), name).values()
    assert result.state == "FAIL", result


def test_what_a_layer_reads_is_measured_and_not_taken_from_the_config() -> None:
    assert measured_sources(ours()) == [[0], [1], [0], [3], [1], [3]]


def test_keys_and_values_of_two_layers_are_both_seen() -> None:
    subject = ours(layout=LAYOUTS["kv_apart"])
    assert measured_sources(subject) == [[0], [0], [1], [0], [1], [2, 3]]
    results = checked(subject, "sources", "cache_bytes", "static", "checkpointing")
    assert {result.state for result in results.values()} == {"pass"}


def test_numbers_that_are_not_finite_are_a_fault() -> None:
    subject = ours()
    subject.model.model.norm.weight.data.fill_(torch.nan)
    assert failed(checked(subject, "repeated")) == {"repeated"}


def test_a_directory_without_all_of_its_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    subject = load_subject(written(FAMILY_CONFIGS["llama"], tmp_path))
    subject.model.save_pretrained(tmp_path)
    assert load_subject(tmp_path).weights == "checkpoint"
    state = load_file(tmp_path / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights are missing or of another shape: model\.norm\.weight \(1 in all\)"):
        load_subject(tmp_path)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    return written({**FAMILY_CONFIGS["gpt2"], "attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}, tmp_path)


def test_dropout_is_no_difference(gpt2: Path) -> None:
    assert AutoConfig.from_pretrained(gpt2).attn_pdrop == 0.5
    assert not failed(checked(load_subject(gpt2), "use_cache", "checkpointing"))
