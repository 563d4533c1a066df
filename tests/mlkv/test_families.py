"""Parity with transformers' own models, family by family: logits, generate(), and every weight there and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mlkv.context import Context, Outcome, StepFailed
from mlkv.convert.step import convert
from mlkv.corpus.tokenizer import load, train
from mlkv.families.config import config_of, layout_of, read_config, shape_of
from mlkv.families.load import import_pretrained, load_pretrained
from mlkv.families.save import export_pretrained, to_family
from mlkv.hf import MLKVForCausalLM, load_checked
from mlkv.layout import mha
from mlkv.patterns import make, name_of
from mlkv.recipes import ConvertRecipe
from tests.support.matrix import FAMILY_CONFIGS, HEADS, LATER, LAYERS, LAYOUTS, SHAPES, VOCAB
from tests.support.tiny import blocks_of

EVERY_FAMILY = pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=name, marks=[pytest.mark.long] if name in LATER else [])
        for name, config in FAMILY_CONFIGS.items()
    ],
)
IDS = torch.randint(1, VOCAB, (2, 11), generator=torch.Generator().manual_seed(2))
PADDED = torch.ones_like(IDS)
PADDED[1, :4] = 0


def theirs(config: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
    for parameter in model.parameters():  # biases and norms are born as zeros and ones, which would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def imported(source: Path, tmp_path: Path) -> MLKVForCausalLM:
    import_pretrained(source, tmp_path / "ours", Context(tmp_path, lambda row: None))
    return load_checked(tmp_path / "ours").eval()


@pytest.fixture
def source(config: dict[str, Any], tmp_path: Path) -> Path:
    theirs(config).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


@EVERY_FAMILY
@torch.no_grad()
def test_an_imported_model_computes_the_same(config: dict[str, Any], source: Path, tmp_path: Path) -> None:
    expected, ours = theirs(config), imported(source, tmp_path)
    torch.testing.assert_close(ours(IDS).logits, expected(IDS).logits, atol=1e-5, rtol=1e-5)
    positions = (PADDED.cumsum(-1) - 1).clamp(min=0)
    padded = expected(IDS, attention_mask=PADDED, position_ids=positions).logits
    torch.testing.assert_close(
        ours(IDS, attention_mask=PADDED).logits[PADDED.bool()], padded[PADDED.bool()], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", LATER)
@torch.no_grad()
def test_a_later_family_computes_and_generates_the_same_and_comes_back_bit_by_bit(name: str, tmp_path: Path) -> None:
    config = FAMILY_CONFIGS[name]
    expected = theirs(config)
    expected.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path).eval()
    torch.testing.assert_close(ours(IDS).logits, expected(IDS).logits, atol=1e-5, rtol=1e-5)
    sequences = [m.generate(IDS, attention_mask=PADDED, max_new_tokens=5, do_sample=False) for m in (expected, ours)]
    assert torch.equal(*sequences)
    weights, back = expected.state_dict(), to_family(ours, config["model_type"]).state_dict()
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    assert ours.shape.parameters(ours.layout) == ours.num_parameters() == expected.num_parameters()


@EVERY_FAMILY
def test_an_imported_model_generates_the_same(config: dict[str, Any], source: Path, tmp_path: Path) -> None:
    expected, ours = theirs(config), imported(source, tmp_path)
    for options in ({"attention_mask": PADDED}, {"num_beams": 3}):
        sequences = [m.generate(IDS, max_new_tokens=9, do_sample=False, **options) for m in (expected, ours)]
        assert torch.equal(*sequences)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(ours.generation_config, name) == getattr(expected.generation_config, name)


STOPS = [3, *range(20, 40)]
"""So many end tokens that greedy decoding meets one of them soon."""


@EVERY_FAMILY
def test_it_stops_where_its_generation_config_says_and_so_does_all_that_is_made_of_it(
    config: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    ignored = {"temperature": 0.7, "length_penalty": 0.5}  # without sampling and beams; published ones have such
    penalty = {"pad_token_id": 1, "repetition_penalty": 1.5}
    spoken = AutoModelForCausalLM.from_pretrained(source).eval().generate(IDS, max_new_tokens=12, **penalty)
    settings = {"eos_token_id": [*STOPS, *spoken[:, IDS.shape[1] + 1].tolist()], **penalty, **ignored}
    (source / "generation_config.json").write_text(json.dumps(settings))
    expected = AutoModelForCausalLM.from_pretrained(source).eval()
    ours = imported(source, tmp_path)
    converted = convert(ours, ours.layout, ConvertRecipe()).eval()
    converted.save_pretrained(tmp_path / "converted")
    export_pretrained(tmp_path / "converted", tmp_path / "back", config["model_type"])
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    sequences = [m.generate(IDS, max_new_tokens=12) for m in (expected, ours, converted, again)]
    assert all(torch.equal(each, sequences[0]) for each in sequences)
    assert sequences[0].shape[1] < IDS.shape[1] + 12
    for model in (ours, converted, load_checked(tmp_path / "converted"), again):
        assert {name: getattr(model.generation_config, name) for name in settings} == settings


def test_without_a_generation_config_the_end_tokens_are_those_of_its_config(tmp_path: Path) -> None:
    source = tmp_path / "theirs"
    theirs(FAMILY_CONFIGS["llama"]).save_pretrained(source)
    (source / "generation_config.json").unlink()
    settings = {**read_config(source), "eos_token_id": STOPS, "pad_token_id": 1, "temperature": 0.7}
    (source / "config.json").write_text(json.dumps(settings))
    expected, ours = AutoModelForCausalLM.from_pretrained(source).eval(), imported(source, tmp_path)
    for name in ("eos_token_id", "temperature"):
        assert getattr(ours.generation_config, name) == getattr(expected.generation_config, name) == settings[name]
    assert torch.equal(*(m.generate(IDS, max_new_tokens=12) for m in (expected, ours)))


def test_a_generation_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    theirs(FAMILY_CONFIGS["llama"]).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2,')
    with pytest.raises(StepFailed, match=r"generation_config.json cannot be read: [^\n]*$"):
        imported(tmp_path, tmp_path)


def test_a_damaged_generation_config_of_a_checkpoint_of_ours_is_named(tmp_path: Path) -> None:
    """transformers takes config.json in its place, which has none of our checkpoints' end tokens."""
    theirs(FAMILY_CONFIGS["llama"]).save_pretrained(tmp_path)
    imported(tmp_path, tmp_path)
    (tmp_path / "ours" / "generation_config.json").write_text('{"eos_token_id": [2,')
    with pytest.raises(ValueError, match=r"generation_config.json cannot be read: [^\n]*$"):
        load_checked(tmp_path / "ours")


@EVERY_FAMILY
def test_a_round_trip_is_bit_equal(config: dict[str, Any], source: Path, tmp_path: Path) -> None:
    imported(source, tmp_path)
    export_pretrained(tmp_path / "ours", tmp_path / "back", config["model_type"])
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(after[name], weight), name
    assert shape_of(read_config(tmp_path / "back")) == shape_of(config)


@EVERY_FAMILY
def test_shape_and_layout_follow_from_the_config_alone(config: dict[str, Any], source: Path, tmp_path: Path) -> None:
    ours = imported(source, tmp_path)
    for config_read in (config, read_config(source), read_config(tmp_path / "ours")):
        assert (shape_of(config_read), layout_of(config_read)) == (ours.shape, ours.layout)
    count = sum(parameter.numel() for parameter in theirs(config).parameters())
    assert ours.shape.parameters(ours.layout) == count == ours.num_parameters()


def test_importing_reports_the_model_and_keeps_its_tokenizer(tmp_path: Path) -> None:
    theirs(FAMILY_CONFIGS["llama"]).save_pretrained(tmp_path / "theirs")
    for name in ("tokenizer.json", "merges.txt", "training_args.bin"):
        (tmp_path / "theirs" / name).write_text(name)
    (tmp_path / "theirs" / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    rows: list[dict[str, Any]] = []
    outcome = import_pretrained(tmp_path / "theirs", tmp_path / "ours", Context(tmp_path, rows.append))
    count = load_checked(tmp_path / "ours").num_parameters()
    assert outcome == Outcome([], {"parameters": count, "layout": "GQA-12"})
    assert [row["step"] for row in rows] == [0, 1]
    assert (tmp_path / "ours" / "tokenizer.json").read_text() == "tokenizer.json"
    assert (tmp_path / "ours" / "merges.txt").exists()
    assert not (tmp_path / "ours" / "training_args.bin").exists()


@pytest.mark.parametrize("config", ['{"model_max_length": 1024}', '{"tokenizer_class": "GPT2Tokenizer"}', None])
def test_a_tokenizer_is_still_that_of_its_family(config: str | None, tmp_path: Path) -> None:
    source = tmp_path / "theirs"
    theirs(GPT2).save_pretrained(source)
    train(["some text"], vocab_size=260).save_pretrained(source)
    (source / "tokenizer_config.json").unlink()
    if config:
        (source / "tokenizer_config.json").write_text(config)
    imported(source, tmp_path)
    before, after = AutoTokenizer.from_pretrained(source), load(tmp_path / "ours")
    assert type(after) is type(before)
    assert (after.eos_token, after("some text").input_ids) == (before.eos_token, before("some text").input_ids)


NEOX, GPT2 = FAMILY_CONFIGS["gpt_neox"], FAMILY_CONFIGS["gpt2"]


def older_neox(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As Pythia's files are: `embed_out`, and masks and rotary tables beside the weights."""
    state["embed_out.weight"] = state.pop("lm_head.weight" if "lm_head.weight" in state else "embed_out.weight")
    for layer in range(LAYERS):
        attention = f"gpt_neox.layers.{layer}.attention"
        state[f"{attention}.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
        state[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        state[f"{attention}.rotary_emb.inv_freq"] = torch.ones(1)
    return state


def older_gpt2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the first GPT-2 files are: no prefix, masks beside the weights."""
    state = {name.removeprefix("transformer."): weight for name, weight in state.items()}
    return state | {f"h.{layer}.attn.bias": torch.ones(1, 1, 4, 4) for layer in range(LAYERS)}


def older_opt(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the first OPT files are: one prefix less, and the tied head written out."""
    state = {name.removeprefix("model."): weight for name, weight in state.items()}
    return state | {"lm_head.weight": state["decoder.embed_tokens.weight"].clone()}


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "older"), [("gpt_neox", older_neox), ("gpt2", older_gpt2), ("opt", older_opt)], ids=lambda x: str(x)[:9]
)
@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded_bin"])
def test_older_files_load(
    family: str, older: Callable[[dict[str, Tensor]], dict[str, Tensor]], form: str, tmp_path: Path
) -> None:
    expected, directory = theirs(FAMILY_CONFIGS[family]), tmp_path / "older"
    expected.save_pretrained(directory)
    state = older(load_file(directory / "model.safetensors"))
    (directory / "model.safetensors").unlink()
    if form == "safetensors":
        save_file(state, directory / "model.safetensors")
    elif form == "bin":
        torch.save(state, directory / "pytorch_model.bin")
    else:
        write_shards(state, directory)
    torch.testing.assert_close(imported(directory, tmp_path)(IDS).logits, expected(IDS).logits, atol=1e-5, rtol=1e-5)


def write_shards(state: dict[str, Tensor], directory: Path) -> None:
    names = sorted(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, held in shards.items():
        torch.save({name: state[name] for name in held}, directory / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@torch.no_grad()
def test_sharded_safetensors_load(tmp_path: Path) -> None:
    expected = theirs(NEOX)
    expected.save_pretrained(tmp_path / "theirs", max_shard_size="40kB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    torch.testing.assert_close(
        imported(tmp_path / "theirs", tmp_path)(IDS).logits, expected(IDS).logits, atol=1e-5, rtol=1e-5
    )


def test_half_precision_files_become_float32_without_loss(tmp_path: Path) -> None:
    half = theirs(NEOX).half()
    half.save_pretrained(tmp_path / "theirs")
    ours = imported(tmp_path / "theirs", tmp_path)
    assert ours.dtype == torch.float32
    assert torch.equal(ours.model.embed.weight.half(), half.gpt_neox.embed_in.weight)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s | {"gpt_neox.layers.0.adapter.weight": torch.ones(1)}, "unknown weights: layers.0.adapter.weight"),
        (lambda s: s | {"gpt_neox.layers.9.mlp.dense_h_to_4h.bias": torch.ones(1)}, "unknown weights: layers.9"),
        (
            lambda s: {n: w for n, w in s.items() if "final_layer_norm.bias" not in n},
            "missing weight: final_layer_norm",
        ),
        (lambda s: {n: w for n, w in s.items() if "embed_out" not in n and "lm_head" not in n}, "missing weight: head"),
        (lambda s: s | {"gpt_neox.embed_in.weight": torch.ones(5, 32)}, r"embed_in.weight has shape \[5, 32\]"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_named(
    damage: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, tmp_path: Path
) -> None:
    theirs(NEOX).save_pretrained(tmp_path)
    save_file(damage(load_file(tmp_path / "model.safetensors")), tmp_path / "model.safetensors")
    with pytest.raises(StepFailed, match=message):
        imported(tmp_path, tmp_path)


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"has no readable config.json"):
        imported(tmp_path, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(NEOX))
    with pytest.raises(StepFailed, match=r"has no weights: needs model.safetensors or pytorch_model.bin"):
        imported(tmp_path, tmp_path)


OPT_350M = {
    "model_type": "opt",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "ffn_dim": 4096,
    "max_position_embeddings": 2048,
    "vocab_size": 50272,
}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "model_type = mamba: supported are gpt_neox, llama, gpt2, opt, mistral, .*, mlkv"),
        ({}, "model_type is missing from the config.json: supported are gpt_neox"),
        (OPT_350M | {"do_layer_norm_before": False}, "do_layer_norm_before = False: of opt only .* True"),
        (OPT_350M | {"word_embed_proj_dim": 512}, "word_embed_proj_dim = 512: must be hidden_size"),
        (
            FAMILY_CONFIGS["llama"] | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "low_freq_factor is missing from the config.json, and rope_type = llama3",
        ),
        (FAMILY_CONFIGS["llama"] | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type = dynamic: supp"),
        (
            FAMILY_CONFIGS["phi3"] | {"rope_scaling": {"type": "longrope"}},
            "rope_type = longrope: supported are default;",
        ),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        (NEOX | {"hidden_act": "tanh"}, "hidden_act = tanh: supported are gelu, "),
        ({"model_type": "gpt2"}, "vocab_size is missing from the config.json of a gpt2 model"),
        (NEOX | {"num_key_value_layers": 2, "num_key_value_heads": 1, "use_key_value_mlp": True}, "use_key_value_mlp"),
    ],
)
def test_models_that_are_not_this_decoder_are_refused_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        shape_of(config)
    assert "\n" not in str(caught.value)


HUB = {
    # The hub's config.json files, without what does not matter here; then their published parameter counts.
    "gpt2": ({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
              "vocab_size": 50257}, 124_439_808),
    "opt-125m": (OPT_350M | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072,
                             "word_embed_proj_dim": 768}, 125_239_296),
    "pythia-160m": ({"model_type": "gpt_neox", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
                     "intermediate_size": 3072, "max_position_embeddings": 2048, "vocab_size": 50304}, 162_322_944),
    "pythia-410m": ({"model_type": "gpt_neox", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                     "intermediate_size": 4096, "max_position_embeddings": 2048, "vocab_size": 50304}, 405_334_016),
    "llama-3-8b": ({"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                    "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 8192,
                    "vocab_size": 128256, "rope_theta": 500000.0, "rms_norm_eps": 1e-5}, 8_030_261_248),
}  # fmt: skip


@pytest.mark.parametrize(("config", "parameters"), HUB.values(), ids=list(HUB))
def test_published_models_have_their_published_size(config: dict[str, Any], parameters: int) -> None:
    assert shape_of(config).parameters(layout_of(config)) == parameters


def test_a_base_with_fewer_kv_heads_says_so() -> None:
    layout = layout_of(HUB["llama-3-8b"][0])
    assert (name_of(layout), layout.kv_bytes_per_token(128)) == ("GQA-256", 131_072)


@pytest.mark.parametrize(
    ("family", "shape", "layout", "message"),
    [
        ("gpt_neox", "neox", "gqa", "family = gpt_neox: cannot express the layout GQA-12"),
        ("llama", "llama", "mlkv", "family = llama: cannot express the layout MLKV-2"),
        ("llama", "neox", "mha", "family = llama: cannot express norm, "),
        ("llama", "llama", "kv_apart", r"cannot express the layout Custom-7 \(keys and values apart\)"),
        ("bert", "neox", "mha", "family = bert: must be one of gpt_neox, llama, gpt2, opt, mistral, "),
    ],
)
def test_what_a_family_cannot_express_is_not_exported(family: str, shape: str, layout: str, message: str) -> None:
    model = MLKVForCausalLM.from_shape(SHAPES[shape], LAYOUTS[layout], seed=0)
    with pytest.raises(ValueError, match=message):
        to_family(model, family)


@pytest.mark.parametrize("layout", ["mha", "gqa", "mqa"])
@torch.no_grad()
def test_layouts_without_readers_run_as_plain_llama(layout: str) -> None:
    ours = MLKVForCausalLM.from_shape(SHAPES["llama"], LAYOUTS[layout], seed=0).eval()
    exported = to_family(ours, "llama").eval()
    torch.testing.assert_close(exported(IDS).logits, ours(IDS).logits, atol=1e-5, rtol=1e-5)


def test_a_config_survives_being_written_and_read() -> None:
    for config in FAMILY_CONFIGS.values():
        shape, layout = shape_of(config), layout_of(config)
        written = config_of(shape, layout, config["model_type"])
        assert (shape_of(written), layout_of(written)) == (shape, layout)


def as_published_mlkv(model: MLKVForCausalLM, out: Path) -> None:
    """Write a model as the MLKV authors' code does: GPT-NeoX names, separate projections, none for readers."""
    names = {
        "attention_norm": "input_layernorm",
        "attention.q": "attention.query",
        "attention.k": "attention.key",
        "attention.v": "attention.value",
        "attention.o": "attention.dense",
        "mlp_norm": "post_attention_layernorm",
        "mlp.up": "mlp.dense_h_to_4h",
        "mlp.down": "mlp.dense_4h_to_h",
    }
    state = {"embed_out.weight": model.model.head.weight, "gpt_neox.embed_in.weight": model.model.embed.weight}
    state |= {f"gpt_neox.final_layer_norm.{kind}": getattr(model.model.norm, kind) for kind in ("weight", "bias")}
    for layer, block in enumerate(blocks_of(model.model)):
        for ours, published in names.items():
            for kind in ("weight", "bias"):
                if ours not in ("attention.k", "attention.v") or block.attention.owns:
                    tensor = block.get_submodule(ours).get_parameter(kind)
                    state[f"gpt_neox.layers.{layer}.{published}.{kind}"] = tensor
    out.mkdir()
    config = NEOX | {"num_key_value_layers": 2, "num_key_value_heads": 1, "use_key_value_mlp": False}
    (out / "config.json").write_text(json.dumps(config | {"rotary_emb_base": 10000}))
    torch.save({name: tensor.detach() for name, tensor in state.items()}, out / "pytorch_model.bin")


@torch.no_grad()
def test_the_published_mlkv_checkpoints_load_with_their_unrotated_keys(tmp_path: Path) -> None:
    layout = make("even", LAYERS, HEADS, 2, 1)
    original = MLKVForCausalLM.from_shape(shape_of(NEOX), layout, seed=1, keys="unrotated").eval()
    as_published_mlkv(original, tmp_path / "published")
    ours = imported(tmp_path / "published", tmp_path)
    assert (ours.layout, ours.model.keys) == (layout, "unrotated")
    assert torch.equal(ours(IDS).logits, original(IDS).logits)


def test_the_published_rule_places_owners_in_floating_point() -> None:
    config = NEOX | {"num_hidden_layers": 30, "num_key_value_layers": 22, "num_key_value_heads": 1}
    published = layout_of(config)
    assert published.kv_layers == 22
    assert published != make("even", 30, HEADS, 22, 1)


def test_one_of_our_checkpoints_is_a_base_too(tmp_path: Path) -> None:
    saved = MLKVForCausalLM.from_shape(SHAPES["llama"], LAYOUTS["explicit"], seed=3)
    saved.save_pretrained(tmp_path / "checkpoint")
    config = read_config(tmp_path / "checkpoint")
    assert (shape_of(config), layout_of(config)) == (SHAPES["llama"], LAYOUTS["explicit"])
    again = imported(tmp_path / "checkpoint", tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), again.parameters(), strict=True))


def test_mha_is_the_layout_of_families_without_groups() -> None:
    assert all(layout_of(FAMILY_CONFIGS[name]) == mha(LAYERS, HEADS) for name in ("gpt_neox", "gpt2", "opt"))
