"""A config.json is read as transformers reads it, or refused in one line that names the field.

Truth is a tiny model of transformers' own, with weights far enough from zero that every switch shows in its logits.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.activations import ACT2FN

from mlkv.families.config import config_of, layout_of, read_config, shape_of
from mlkv.families.load import check_checkpoint, load_pretrained
from mlkv.families.tables import FAMILIES
from mlkv.files import Json
from mlkv.layout import mha
from mlkv.shape import DecoderShape
from tests.support.bases import write_zeros
from tests.support.family_configs import (
    EARLIER,
    LATER,
    LAYERS,
    SMALLEST,
    VOCAB,
    WIDTH,
    logits_of,
    refusal,
    saved,
    theirs_of,
)

_ROPES = (
    {"rope_type": "default"},
    {"rope_type": "default", "rope_theta": 50.0},
    {"type": "default", "rope_theta": 20.0, "partial_rotary_factor": 0.5},
    {"rope_theta": 30.0, "partial_rotary_factor": 0.4},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "default", "rope_theta": None},
    "linear",
)
_ANY_FAMILY: dict[str, tuple[Any, ...]] = {
    "rope_theta": (40.0, 25, None),
    "rotary_emb_base": (60, 15.0),
    "rotary_pct": (0.5, 0.25, 0.4, 1.0, 1.5, None),
    "partial_rotary_factor": (0.5, 0.3, 1.0, None),
    "rope_scaling": (None, *_ROPES),
    "rope_parameters": (None, *_ROPES),
    "head_dim": (8, 12, 7, None),
    "attention_bias": (True, False, None),
    "mlp_bias": (True, False),
    "num_key_value_heads": (1, 2, 4, None, 3, 0),
    "hidden_act": (*ACT2FN, None),
    "activation_function": (*ACT2FN, None),
    "layer_norm_eps": (0.3, "0.3"),
    "layer_norm_epsilon": (0.3,),
    "rms_norm_eps": (0.3,),
    "use_parallel_residual": (True, False),
    "tie_word_embeddings": (True, False, None),
    "scale_attn_weights": (True, False),
    "scale_attn_by_inverse_layer_idx": (True, False),
    "reorder_and_upcast_attn": (True, False),
    "n_inner": (20, None, 0),
    "n_head": (2, 8),
    "do_layer_norm_before": (True, False),
    "word_embed_proj_dim": (WIDTH, 16, None),
    "enable_bias": (True, False),
    "layer_norm_elementwise_affine": (True, False),
    "_remove_final_layer_norm": (True, False),
    "hidden_size": (WIDTH, 30, 64),
    "num_attention_heads": (2, 8, 3),
    "num_hidden_layers": (1, 3, 2.0),
    "max_position_embeddings": (14, "14"),
    "is_causal": (True, False),
    "sliding_window": (None, 3),
    "attention_chunk_size": (None, 4),
    "layer_types": (["full_attention"] * 2, ["sliding_attention"] * 2),
    "kv_sharing_modes": ([None, "reuse"],),
    "attn_logit_softcapping": (3.0,),
    "pretraining_tp": (2,),
    "dropout": (0.5,),
    "attention_dropout": (0.5,),
    "resid_pdrop": (0.5,),
    "is_decoder": (True, False),
}
"""Keys that some family reads, one that another does, and values good and bad: every family is given any of them."""


MISSING = " is missing from the config.json"


def begins_with_a_field_of(config: Json, message: str) -> bool:
    """Whether a refusal begins with a field that the config has, or with one that it says is missing."""
    had = {*config}
    for rope in (config.get("rope_scaling"), config.get("rope_parameters")):
        if isinstance(rope, dict):
            had |= rope.keys() | {key for by_kind in rope.values() if isinstance(by_kind, dict) for key in by_kind}
    had |= {"rope_type"} if "type" in had else set()  # its older name
    field = message.split(" = ")[0].split(MISSING)[0]
    named = field not in had if MISSING in message else bool({*field.split(" / ")} & had)
    return named and "second line" not in message


@pytest.mark.parametrize("family", EARLIER)
@settings(max_examples=60)
@given(data=st.data())
def test_any_config_is_read_as_transformers_reads_it_or_refused(family: str, data: st.DataObject) -> None:
    read_alike(family, data)


@pytest.mark.long
@pytest.mark.parametrize("family", LATER)
@settings(max_examples=15)
@given(data=st.data())
def test_any_config_of_a_later_family_is_read_as_transformers_reads_it_or_refused(
    family: str, data: st.DataObject
) -> None:
    read_alike(family, data)


def read_alike(family: str, data: st.DataObject) -> None:
    config = dict(SMALLEST[family])
    known = [key for key in _ANY_FAMILY if FAMILIES[family].rotary or not key.startswith("rope_")]
    for key in data.draw(st.lists(st.sampled_from(known), max_size=3, unique=True)):
        config[key] = data.draw(st.sampled_from(_ANY_FAMILY[key]), key)
    if (message := refusal(lambda: layout_of(config))) is not None:
        assert begins_with_a_field_of(config, message), message
        return
    theirs = theirs_of(config)  # fails where transformers refuses what we read
    with saved(config, theirs) as folder:
        torch.testing.assert_close(logits_of(load_pretrained(folder)), logits_of(theirs), atol=1e-4, rtol=1e-4)


_CHANGED: dict[type, tuple[Any, ...]] = {
    bool: (True, False, None),
    int: (1, 3, None),
    float: (0.5, None),
    str: ("relu", "x"),
    type(None): (True, 3, 0.5, [1, 0]),
    dict: ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 50.0}, None),
    list: (["full_attention"] * LAYERS, ["full_attention", "sliding_attention"], [0, 1]),
}
"""By the type of a key's value in transformers' config of a family: other values for it."""
_OUTER = {"dtype", "torch_dtype", "architectures", "return_dict", "output_hidden_states", "problem_type", "id2label"}
_OUTER |= {"label2id", "num_labels", "transformers_version", "model_type", "output_attentions", "use_cache"}
"""What a call or a task says, not the decoder."""


def one_key_changed(family: str, key: str) -> int:
    """How many models were compared.

    Whatever transformers computes with another value of one key, we compute too, or refuse. What transformers itself
    cannot compute tells nothing.
    """
    given = AutoConfig.for_model(family, **{k: v for k, v in SMALLEST[family].items() if k != "model_type"}).to_dict()
    compared = 0
    for value in _CHANGED[type(given[key])]:
        config = SMALLEST[family] | {key: value}
        if refusal(partial(layout_of, config)) is not None:
            continue
        try:
            theirs = theirs_of(config)
            expected = logits_of(theirs)
        except Exception:
            continue
        with saved(config, theirs) as folder:
            torch.testing.assert_close(logits_of(load_pretrained(folder)), expected, atol=1e-4, rtol=1e-4)
        compared += 1
    return compared


_FAST = [("gemma2", "layer_types"), ("gemma3_text", "use_bidirectional_attention"), ("qwen2", "use_sliding_window")]
_FAST += [
    ("smollm3", "no_rope_layers"),
    ("phi3", "sliding_window"),
    ("stablelm", "qk_layernorm"),
]


@pytest.mark.parametrize(("family", "key"), _FAST)
def test_one_key_changed_is_honoured_or_refused(family: str, key: str) -> None:
    assert one_key_changed(family, key)


@pytest.mark.long
@pytest.mark.parametrize("family", LATER)
def test_every_key_changed_is_honoured_or_refused(family: str) -> None:
    keys = sorted({*AutoConfig.for_model(family).to_dict()} - _OUTER)
    assert sum(one_key_changed(family, key) for key in keys if not key.startswith("_")) > 20


BAD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 10**10, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "two\nlines",
    "2", "😀" * 200, [], [1], [None], {}, {"a": 1}, {"full_attention": {"rope_type": "default"}}, {"rope_type": None},
    {"rope_theta": None}, {"rope_theta": 10**400}, {"rope_type": ["default"]}, [10**5] * 3,
)  # fmt: skip
"""Values that no key has, or few."""
_KEYS = {
    name: sorted({*AutoConfig.for_model(name).to_dict(), *config, *_ANY_FAMILY, "num_key_value_layers", "text_config"})
    for name, config in SMALLEST.items()
}


def plan_and_load(family: str, data: st.DataObject) -> None:
    """What a plan accepts of a config.json, the base step loads; what it refuses, it refuses in one line."""
    config = dict(SMALLEST[family])
    for key in data.draw(st.lists(st.sampled_from(_KEYS[family]), min_size=1, max_size=2, unique=True)):
        config[key] = data.draw(st.sampled_from(BAD), key)
        if data.draw(st.sampled_from([False] * 9 + [True]), "left out"):
            del config[key]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        (source / "config.json").write_text(json.dumps(config))
        if (message := refusal(lambda: layout_of(read_config(source)))) is None and _is_small(shape_of(config)):
            write_zeros(source, config)
            message = refusal(lambda: check_checkpoint(source))
            if message is None:
                load_pretrained(source)
        assert message is None or ("second line" not in message and len(message) < 500), message
        planned = refusal(lambda: layout_of(config))
        assert planned is None or begins_with_a_field_of(config, planned), planned


def _is_small(shape: DecoderShape) -> bool:
    return shape.parameters(mha(shape.layers, shape.heads)) < 10**6


@pytest.mark.parametrize("family", EARLIER)
@settings(max_examples=25)
@given(data=st.data())
def test_what_a_plan_accepts_the_base_step_loads(family: str, data: st.DataObject) -> None:
    plan_and_load(family, data)


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40)
@given(data=st.data())
def test_whatever_a_config_says_is_loaded_or_refused_in_one_line(family: str, data: st.DataObject) -> None:
    plan_and_load(family, data)


READ: dict[str, tuple[str, Json]] = {
    "llama says in full that it rotates all": ("llama", {"partial_rotary_factor": 1.0}),
    "llama's older and newer keys, the older wins": (
        "llama",
        {"rope_parameters": {"rope_theta": 100.0}, "rope_scaling": {"type": "default", "rope_theta": 9.0}},
    ),
    "keys of GPT-NeoX in a llama": ("llama", {"rotary_pct": 0.5, "rotary_emb_base": 7}),
    "keys of Llama in a GPT-NeoX": ("gpt_neox", {"rope_theta": 7.0, "partial_rotary_factor": 0.5}),
    "a GPT-NeoX that rotates an even part": ("gpt_neox", {"rotary_pct": 0.3, "rotary_emb_base": 7}),
    "GPT-2 by the common names": (
        "gpt2",
        {"n_head": 4, "num_attention_heads": 2, "hidden_size": WIDTH, "max_position_embeddings": 14},
    ),
    "an OPT without a width for its embeddings": ("opt", {"word_embed_proj_dim": None}),
}


@pytest.mark.parametrize(("family", "keys"), READ.values(), ids=list(READ))
def test_what_transformers_reads_otherwise_than_its_name_says(family: str, keys: Json) -> None:
    theirs = theirs_of(SMALLEST[family] | keys)
    with saved(SMALLEST[family] | keys, theirs) as folder:
        torch.testing.assert_close(logits_of(load_pretrained(folder)), logits_of(theirs), atol=1e-4, rtol=1e-4)


REFUSED = [
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5: transformers leaves it unread here"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5: "),
    ("llama", {"head_dim": 7}, "head_dim = 7: rotates 7 of a head's 7 dimensions; must be even"),
    ("gpt_neox", {"rotary_pct": 0.4}, "rotary_pct = 0.4: rotates 3 of a head's 8 dimensions; must be even"),
    ("gpt_neox", {"head_dim": 12}, "head_dim = 12: of gpt_neox only models that leave it unset are supported"),
    ("llama", {"sliding_window": 4}, "sliding_window = 4: "),
    ("gpt2", {"is_causal": False}, "is_causal = False: of gpt2 only is_causal = True is supported"),
    ("opt", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config = gptq: quantised"),
    ("opt", {"hidden_size": 30}, "hidden_size = 30: must be a multiple of the 4 query heads"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling = linear: must be a mapping"),
    ("llama", {"vocab_size": "19"}, "vocab_size = 19: must be a valid integer"),
    ("gpt_neox", {"num_key_value_layers": 9, "num_key_value_heads": 1}, "num_key_value_layers = 9: must be 1 to 2"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 9.0}}}, "rope_parameters = ['full_attention']: "),
    ("llama", {"num_hidden_layers": 10**10}, "num_hidden_layers = 10000000000: must be less than or equal to 4096"),
    ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps = inf: must be less than"),
    ("llama", {"model_type": ["llama"]}, "model_type = ['llama']: supported are"),
    ("llama", {"model_type": None}, "model_type = None: supported are"),
    ("gemma2", {"sliding_window": None}, "sliding_window = None: the default of layer_types is ['sliding_attention'"),
    ("gemma2", {"sliding_window": None, "layer_types": ["sliding_attention"] * 2}, "layer_types = ['sliding_"),
    ("gpt2", {"hidden_size": "x"}, "hidden_size = x: must be a valid integer"),
    ("gpt2", {"hidden_size": 30}, "hidden_size = 30: must be a multiple of the 4 query heads"),
    ("stablelm", {"num_attention_heads": 8, "num_key_value_heads": 8}, "partial_rotary_factor is missing from the con"),
    ("llama", {"rope_parameters": "x", "rope_scaling": {"type": "default"}}, "rope_parameters = x: must be a mapping"),
    ("llama", {"rope_parameters": ""}, "rope_parameters = : must be a mapping"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "factor is missing from the config.json, and rope_type = linear"),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 0.5}}, "beta_fast = 0.5: must be above"),
    ("mlkv", {}, "vocab_size is missing from the config.json of a mlkv model"),
]


@pytest.mark.parametrize(("family", "keys", "message"), REFUSED)
def test_what_would_be_computed_otherwise_is_refused(family: str, keys: Json, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        layout_of(SMALLEST.get(family, {"model_type": family}) | keys)


def test_a_default_that_does_not_fit_is_named_as_missing() -> None:
    config = {key: value for key, value in SMALLEST["mistral"].items() if key != "num_key_value_heads"}
    message = "num_key_value_heads is missing from the config.json, and its default is 8: must divide the 4 query heads"
    assert refusal(lambda: layout_of(config)) == message


def test_weights_that_transformers_would_take_otherwise_are_refused() -> None:
    tied = SMALLEST["llama"] | {"tie_word_embeddings": True}
    model = theirs_of(tied)
    other_head = {"lm_head.weight": torch.ones(VOCAB, WIDTH)}
    with saved(tied, model, **other_head) as folder, pytest.raises(ValueError, match="an output head that differs"):
        load_pretrained(folder)
    twice = {"norm.weight": torch.ones(WIDTH)}
    with saved(tied, model, **twice) as folder, pytest.raises(ValueError, match="the files hold this weight twice"):
        load_pretrained(folder)
    quantised = {"model.norm.weight": torch.ones(WIDTH, dtype=torch.int8)}
    with saved(tied, model, **quantised) as folder, pytest.raises(ValueError, match="is int8: quantised weights"):
        load_pretrained(folder)
    with saved(tied, model) as folder:
        (folder / "adapter_config.json").write_text("{}")
        assert "has an adapter" in str(refusal(lambda: load_pretrained(folder)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    model = theirs_of(SMALLEST["llama"])
    model.model.layers[1].mlp.down_proj.weight.data[2, 3] = value
    message = r"weight layers.1.mlp.down_proj.weight is not finite \(1 of its 768 values\)$"
    with saved(SMALLEST["llama"], model) as folder, pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def test_weights_that_float32_cannot_hold_are_named() -> None:
    model = theirs_of(SMALLEST["llama"]).double()
    model.model.norm.weight.data[5] = 1e300
    with (
        saved(SMALLEST["llama"], model) as folder,
        pytest.raises(ValueError, match=r"norm.weight is not finite \(1 of"),
    ):
        load_pretrained(folder)


def test_of_several_files_those_are_read_that_transformers_reads(tmp_path: Path) -> None:
    model = theirs_of(SMALLEST["gpt2"])
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"wte.weight": "stale.safetensors"}}')
    torch.testing.assert_close(logits_of(load_pretrained(tmp_path)), logits_of(model), atol=1e-4, rtol=1e-4)


def test_a_family_takes_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(FAMILIES["llama"], name="tinyllama", required={"rms_norm_offset": None})
    monkeypatch.setitem(FAMILIES, "tinyllama", row)
    config = SMALLEST["llama"] | {"model_type": "tinyllama"}
    assert shape_of(config) == shape_of(SMALLEST["llama"])
    assert config_of(shape_of(config), layout_of(config), "tinyllama")["model_type"] == "tinyllama"
    with pytest.raises(ValueError, match="rms_norm_offset = 1: of tinyllama only models that leave it unset"):
        shape_of(config | {"rms_norm_offset": 1})
