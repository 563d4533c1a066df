"""peft's prompt tuning and prefix tuning: virtual tokens that are those of a text give what the text gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

from mlkv.hf import MLKVConfig, MLKVForCausalLM
from tests.support.matrix import LAYERS, LAYOUTS, SHAPES, VOCAB

IDS = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(3))
VIRTUAL, REST = IDS[:1, :3], IDS[:1, 3:]


def model_of(layout: str) -> MLKVForCausalLM:
    return MLKVForCausalLM.from_shape(SHAPES["llama"], LAYOUTS[layout], seed=1).eval()


@pytest.mark.parametrize("layout", ["gqa", "mlkv", "explicit", "kv_apart"])
def test_a_prompt_of_the_embeddings_of_a_text_is_the_text(layout: str) -> None:
    model = model_of(layout)
    expected = model(torch.cat([VIRTUAL, REST], 1)).logits
    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    tuned.prompt_encoder["default"].embedding.weight.data = model.model.embed(VIRTUAL[0]).data.clone()
    torch.testing.assert_close(tuned(REST, attention_mask=torch.ones_like(REST)).logits, expected, atol=1e-4, rtol=1e-4)
    tuned(REST, attention_mask=torch.ones_like(REST), labels=REST).loss.backward()
    assert tuned.prompt_encoder["default"].embedding.weight.grad.abs().sum() > 0
    generated = tuned.generate(input_ids=REST, attention_mask=torch.ones_like(REST), max_new_tokens=3, do_sample=False)
    assert generated.shape == (1, REST.shape[1] + 3)


@pytest.mark.parametrize("layout", ["mha", "gqa", "mlkv"])
def test_a_prefix_of_the_keys_and_values_of_a_text_is_the_text(layout: str) -> None:
    model = model_of(layout)
    cache = model(VIRTUAL, use_cache=True).past_key_values
    expected = model(torch.cat([VIRTUAL, REST], 1)).logits[:, 3:]
    tuned = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    heads = max(LAYOUTS[layout].kv_heads)
    weight = torch.zeros(3, LAYERS * 2, heads, model.shape.head_dim)
    for owner in LAYOUTS[layout].owners:
        weight[:, 2 * owner] = cache.layers[owner].keys[0].transpose(0, 1)
        weight[:, 2 * owner + 1] = cache.layers[owner].values[0].transpose(0, 1)
    prefix = tuned.prompt_encoder["default"].embedding
    assert prefix.weight.shape == weight.flatten(1).shape
    prefix.weight.data = weight.flatten(1)
    torch.testing.assert_close(tuned(REST, attention_mask=torch.ones_like(REST)).logits, expected, atol=1e-4, rtol=1e-4)
    tuned(REST, attention_mask=torch.ones_like(REST), labels=REST).loss.backward()
    assert prefix.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("layout", "found"),
    [
        ("explicit", "layer 1: the layout has 1 of keys and 1 of values"),
        ("kv_apart", "layer 0: the layout has 4 of keys and 1 of values"),
    ],
)
def test_a_prefix_for_owners_of_unequal_heads_is_refused_in_one_line(layout: str, found: str) -> None:
    tuned = get_peft_model(model_of(layout), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    message = f"^past_key_values has 4 heads, 12 wide, at {found}, 12 wide; a prefix needs owners with [a-z ]+$"
    with pytest.raises(ValueError, match=message):
        tuned(REST, attention_mask=torch.ones_like(REST))


def test_config_json_does_not_repeat_what_peft_reads(tmp_path: Path) -> None:
    config = model_of("explicit").config
    assert {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}.items() <= config.to_dict().items()
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert not {"hidden_size", "num_attention_heads", "num_key_value_heads"} & written.keys()
    assert MLKVConfig.from_dict(config.to_dict()).layout == config.layout
