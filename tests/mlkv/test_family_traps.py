"""What silently changes the logits of a loaded model where it is read wrongly: a row each, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mlkv.corpus.tokenizer import load, train
from mlkv.families.config import shape_of
from mlkv.families.load import import_pretrained, load_pretrained
from mlkv.families.save import to_family
from mlkv.families.tables import FAMILIES
from mlkv.hf import load_checked
from tests.support.matrix import FAMILY_CONFIGS, LAYOUTS, TRAPS, VOCAB
from tests.support.parity import error
from tests.support.tiny import context

IDS = torch.randint(1, VOCAB, (2, 11), generator=torch.Generator().manual_seed(2))
ONE_OF_EACH = {config["model_type"]: name for name, config in reversed(FAMILY_CONFIGS.items())}
FAST = {"phi3", "gpt2"}
EVERY_TYPE = pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.long]) for name in FAMILIES]
)


def theirs_of(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(dtype)


@torch.no_grad()
def assert_same_logits(ours: Any, theirs: Any, ids: Tensor = IDS) -> None:
    torch.testing.assert_close(ours.eval()(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "trap", [pytest.param(n, marks=[] if i % 3 == 0 else [pytest.mark.long]) for i, n in enumerate(TRAPS)]
)
def test_a_trap_computes_the_same_and_comes_back_bit_by_bit(trap: str, tmp_path: Path) -> None:
    theirs = theirs_of(TRAPS[trap])
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path)
    assert_same_logits(ours, theirs)
    weights, back = theirs.state_dict(), to_family(ours, TRAPS[trap]["model_type"]).state_dict()
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["mlkv", "explicit", "kv_apart"])
@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_computes_in_a_layout_what_the_familys_own_code_does(trap: str, layout: str) -> None:
    assert error(TRAPS[trap], LAYOUTS[layout]) <= 1e-5


@pytest.mark.parametrize("switch", ["scale_attn_by_inverse_layer_idx", "scale_attn_weights", "reorder_and_upcast_attn"])
def test_attention_that_gpt2_scales_by_layer_is_refused(switch: str) -> None:
    """The last of them computes the same in another order, and loads."""
    value = switch != "scale_attn_weights"
    if switch == "reorder_and_upcast_attn":
        shape_of(FAMILY_CONFIGS["gpt2"] | {switch: value})
        return
    with pytest.raises(ValueError, match=f"^{switch} = {value}: of gpt2 only {switch} = {not value} is supported"):
        shape_of(FAMILY_CONFIGS["gpt2"] | {switch: value})


def write_shards(state: dict[str, Tensor], directory: Path) -> None:
    names = sorted(state)
    shards = {f"pytorch_model-0000{i + 1}-of-00003.bin": names[i::3] for i in range(3)}
    for file, held in shards.items():
        torch.save({name: state[name] for name in held}, directory / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@EVERY_TYPE
def test_bf16_weights_in_shards_of_both_kinds_load_without_loss(model_type: str, tmp_path: Path) -> None:
    theirs = theirs_of(FAMILY_CONFIGS[ONE_OF_EACH[model_type]], torch.bfloat16)
    theirs.save_pretrained(tmp_path / "safetensors", max_shard_size="20kB")
    assert len(list((tmp_path / "safetensors").glob("*.safetensors"))) > 2
    (tmp_path / "bin").mkdir()
    theirs.config.save_pretrained(tmp_path / "bin")
    write_shards(theirs.state_dict(), tmp_path / "bin")
    of_both = [load_pretrained(tmp_path / kind) for kind in ("safetensors", "bin")]
    # Not theirs.float(): casting a module to bf16 rounds its rotary frequencies too, which loading does not.
    assert_same_logits(of_both[0], AutoModelForCausalLM.from_pretrained(tmp_path / "bin", dtype=torch.float32).eval())
    states = [model.state_dict() for model in of_both]
    assert {weight.dtype for weight in states[0].values()} == {torch.float32}
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


WINDOWS = {
    name: config | {"sliding_window": 3}
    for name, config in FAMILY_CONFIGS.items()
    if config.get("sliding_window") and name != "qwen2"
}


@pytest.mark.parametrize("name", WINDOWS)
@torch.no_grad()
def test_a_prompt_in_chunks_longer_than_the_window_computes_the_same(name: str, tmp_path: Path) -> None:
    """Chunks of five and four tokens, two single tokens, and windows of three."""
    theirs = theirs_of(WINDOWS[name])
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path).eval()
    cache, found = None, list[Tensor]()
    for part in IDS.split([5, 4, 1, 1], 1):
        out = ours(part, past_key_values=cache, use_cache=True)
        cache, found = out.past_key_values, [*found, out.logits]
    torch.testing.assert_close(torch.cat(found, 1), theirs(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen2", "gpt_neox"])
def test_embeddings_of_more_tokens_than_the_tokenizer_has(name: str, tmp_path: Path) -> None:
    """Published vocabularies are padded: 151,936 rows for the 151,669 tokens of Qwen3."""
    train(["some text"], vocab_size=260).save_pretrained(tmp_path / "theirs")
    theirs = theirs_of(FAMILY_CONFIGS[name] | {"vocab_size": 320})
    theirs.save_pretrained(tmp_path / "theirs")
    outcome = import_pretrained(tmp_path / "theirs", tmp_path / "ours", context(tmp_path))
    ours, tokenizer = load_checked(tmp_path / "ours"), load(tmp_path / "ours")
    assert len(tokenizer) < 320 == ours.shape.vocab_size == ours.model.embed.num_embeddings
    assert outcome.facts["parameters"] == theirs.num_parameters()
    ids = torch.tensor([tokenizer("some text").input_ids])
    assert_same_logits(ours, theirs, ids)
    assert torch.equal(*(m.generate(ids, max_new_tokens=6, do_sample=False) for m in (ours, theirs)))
