"""The transformers side: generate() with every cache, what caches hold, loss, save and load, AutoModel, export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache
from transformers.cache_utils import Cache

from mlkv.hf import MLKVConfig, MLKVForCausalLM, load_checked
from mlkv.layout import KVLayout
from mlkv.patterns import make
from mlkv.shape import DecoderShape
from mlkv.tokens import Keys
from tests.support.matrix import CONTEXT, HEADS, LAYERS, LAYOUTS, SHAPES, VOCAB
from tests.support.tiny import blocks_of

EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
KEYS = pytest.mark.parametrize("keys", ["rotated", "unrotated"])

IDS = torch.randint(1, VOCAB, (2, 7), generator=torch.Generator().manual_seed(6))
PADDED = torch.ones_like(IDS)
PADDED[0, :3] = 0

MODULES = {
    "above.py",
    "attention.py",
    "buffers.py",
    "hf.py",
    "latent.py",
    "layers.py",
    "layout.py",
    "model.py",
    "packed.py",
    "positions.py",
    "shape.py",
    "tokens.py",
}

NEOX, MLKV = SHAPES["neox"], LAYOUTS["mlkv"]


def model(
    shape: DecoderShape = NEOX, layout: KVLayout = MLKV, keys: Keys = "rotated", dtype: torch.dtype | None = None
) -> MLKVForCausalLM:
    return MLKVForCausalLM.from_shape(shape, layout, seed=7, keys=keys, dtype=dtype).eval()


def generated(subject: MLKVForCausalLM, mask: Tensor | None, **options: object) -> tuple[Tensor, Tensor]:
    output = subject.generate(
        IDS,
        attention_mask=mask,
        max_new_tokens=4,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return output.sequences, torch.stack(output.logits)


@EVERY_SHAPE
@pytest.mark.parametrize(
    ("layout", "keys"),
    [
        pytest.param(layout, keys, id=f"{name}-{keys}")
        for name, layout in LAYOUTS.items()
        for keys in (["rotated"] if layout.apart else ["rotated", "unrotated"])
    ],
)
@pytest.mark.parametrize("mask", [None, PADDED], ids=["unpadded", "padded"])
def test_generation_is_the_same_with_a_dynamic_a_static_and_no_cache(
    shape: DecoderShape, layout: KVLayout, keys: Keys, mask: Tensor | None
) -> None:
    subject = model(shape, layout, keys)
    sequences, logits = generated(subject, mask, use_cache=False)
    for options in ({}, {"cache_implementation": "static"}):
        cached_sequences, cached_logits = generated(subject, mask, **options)
        assert torch.equal(cached_sequences, sequences)
        torch.testing.assert_close(cached_logits, logits, atol=1e-4, rtol=1e-4)


@KEYS
@torch.no_grad()
def test_a_static_cache_hides_its_empty_places_from_a_single_token(keys: Keys) -> None:
    subject = model(keys=keys)
    cache = StaticCache(config=subject.config, max_cache_len=9)
    steps = [subject(IDS[:, i : i + 1], past_key_values=cache).logits for i in range(3)]
    torch.testing.assert_close(torch.cat(steps, 1), subject(IDS[:, :3]).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["mlkv", "explicit", "kv_apart"])
@torch.no_grad()
def test_decoding_with_a_static_cache_compiles_as_one_graph(layout: str) -> None:
    subject = model(layout=LAYOUTS[layout])
    cache = StaticCache(config=subject.config, max_cache_len=9)
    subject(IDS[:, :4], past_key_values=cache)
    compiled = torch.compile(subject.forward, fullgraph=True, backend="eager")
    steps = [
        compiled(IDS[:, i : i + 1], position_ids=torch.full((2, 1), i), past_key_values=cache)[0] for i in (4, 5, 6)
    ]
    torch.testing.assert_close(torch.cat(steps, 1), subject(IDS).logits[:, 4:], atol=1e-5, rtol=1e-5)


@EVERY_LAYOUT
def test_beam_search_reorders_shared_keys_and_values_with_their_owner(layout: KVLayout) -> None:
    sequences = [
        model(NEOX, layout).generate(IDS, max_new_tokens=5, num_beams=3, pad_token_id=0, use_cache=use_cache)
        for use_cache in (False, True)
    ]
    assert torch.equal(*sequences)


def held_bytes(cache: Cache) -> int:
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values) if t is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@EVERY_LAYOUT
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_caches_hold_the_owners_heads_and_nothing_else(layout: KVLayout, dtype: torch.dtype) -> None:
    subject, shape = model(SHAPES["llama"], layout, dtype=dtype), SHAPES["llama"]
    per_token = layout.kv_bytes_per_token(shape.head_dim, element_bytes=dtype.itemsize)
    dynamic = subject(IDS, use_cache=True).past_key_values
    assert held_bytes(dynamic) == IDS.numel() * per_token
    static = StaticCache(config=subject.config, max_cache_len=20)
    subject(IDS, past_key_values=static)
    assert held_bytes(static) == len(IDS) * 20 * per_token


def test_the_config_tells_caches_which_layers_are_readers() -> None:
    config = model(layout=LAYOUTS["explicit"]).config
    assert config.kv_sharing_modes == [None, None, "reuse", None, "reuse", "reuse"]
    if hasattr(DynamicCache(), "is_dummy"):
        assert DynamicCache(config=config).is_dummy == [False, False, True, False, True, True]


@EVERY_LAYOUT
@EVERY_SHAPE
def test_a_saved_model_comes_back_bit_for_bit_with_its_layout_in_full(
    shape: DecoderShape, layout: KVLayout, tmp_path: Path
) -> None:
    saved = model(shape, layout)
    saved.save_pretrained(tmp_path)
    loaded = load_checked(tmp_path)
    assert (loaded.shape, loaded.layout, loaded.model.keys) == (shape, layout, "rotated")
    assert all(
        torch.equal(a, b) for a, b in zip(saved.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["kv_source_layers"], config["kv_heads"]) == ([*layout.kv_source_layers], [*layout.kv_heads])
    assert (loaded.model.head.weight is loaded.model.embed.weight) is shape.tied


def test_a_checkpoint_carries_the_modules_that_it_needs_and_no_more(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == MODULES


def test_saving_keeps_the_kind_of_keys_and_the_type_of_the_weights(tmp_path: Path) -> None:
    model(keys="unrotated", dtype=torch.bfloat16).save_pretrained(tmp_path)
    loaded = load_checked(tmp_path)
    assert (loaded.model.keys, loaded.dtype) == ("unrotated", torch.bfloat16)


def test_standard_names_read_the_same_config() -> None:
    config = model(SHAPES["opt"], LAYOUTS["explicit"]).config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, LAYERS, HEADS)
    assert (config.max_position_embeddings, config.intermediate_size, config.tie_word_embeddings) == (CONTEXT, 56, True)
    assert (config.num_key_value_heads, config.kv_heads) == (4, [4, 1, 2])
    assert model().config.num_key_value_heads == 1
    assert MLKVConfig(**SHAPES["opt"].as_dict()).num_key_value_heads == 0, "a config that has no layout yet"


def test_a_config_without_a_valid_layout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kv_source_layers\[1\] = 1|entries for"):
        MLKVForCausalLM(MLKVConfig(**NEOX.as_dict(), kv_source_layers=[0, 1, 0, 0, 0, 0], kv_heads=[1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda state: state.pop("model.blocks.0.attention.k.weight"),
            "missing keys: model.blocks.0.attention.k.weight",
        ),
        (lambda state: state.update(stray=torch.zeros(1)), "unexpected keys: stray"),
        (lambda state: state.update({"model.norm.weight": torch.zeros(3)}), "mismatched keys: .*model.norm.weight"),
    ],
    ids=["missing", "unexpected", "mismatched"],
)
def test_a_checkpoint_with_other_weights_than_the_models_is_an_error(
    damage: object, message: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    damage(state)  # type: ignore[operator]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load_checked(tmp_path)


def test_auto_classes_find_the_installed_code(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MLKVConfig)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is MLKVForCausalLM


EXPORTED = """
import sys, torch
from transformers import AutoModelForCausalLM
sys.modules["mlkv"] = None  # as where it is not installed: importing it fails
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
ids = torch.tensor([[5, 4, 3, 2]])
torch.save((model(ids).logits, model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)), sys.argv[2])
model.save_pretrained(sys.argv[3])
"""


@pytest.mark.slow
def test_a_checkpoint_runs_where_mlkv_is_not_installed_and_can_be_saved_there(tmp_path: Path) -> None:
    saved = model(layout=LAYOUTS["explicit"])
    saved.save_pretrained(tmp_path / "checkpoint")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    arguments = [str(tmp_path / name) for name in ("checkpoint", "answer.pt", "again")]
    subprocess.run([sys.executable, "-c", EXPORTED, *arguments], cwd=tmp_path, env=environment, check=True)
    logits, sequence = torch.load(tmp_path / "answer.pt")
    ids = torch.tensor([[5, 4, 3, 2]])
    assert torch.equal(logits, saved(ids).logits)
    assert torch.equal(sequence, saved.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0))
    assert load_checked(tmp_path / "again").layout == saved.layout


def test_the_same_seed_gives_the_same_weights_and_leaves_other_randomness_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second = model(), model()
    assert torch.equal(torch.rand(3), expected)
    other = MLKVForCausalLM.from_shape(NEOX, MLKV, seed=8)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    assert not torch.equal(first.model.embed.weight, other.model.embed.weight)


def test_initial_weights_have_the_shapes_standard_deviation() -> None:
    fresh = model(SHAPES["llama"])
    assert blocks_of(fresh.model)[0].mlp.up.weight.std().item() == pytest.approx(0.3, rel=0.1)
    assert blocks_of(model().model)[0].mlp.up.bias.eq(0).all()
    assert fresh.model.norm.get_parameter("weight").eq(1).all()


def test_loss_is_the_mean_over_labelled_next_tokens() -> None:
    labels = IDS.clone()
    labels[0, :4] = -100
    subject = model()
    output = subject(IDS, labels=labels)
    log_probabilities = output.logits.log_softmax(-1)
    losses = [-log_probabilities[b, t - 1, labels[b, t]] for b in range(2) for t in range(1, 7) if labels[b, t] != -100]
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    accumulated = subject(IDS, labels=labels, num_items_in_batch=torch.tensor(20)).loss
    torch.testing.assert_close(accumulated, torch.stack(losses).sum() / 20)


def test_loss_only_gives_the_same_gradients_and_no_logits() -> None:
    gradients = []
    for loss_only in (False, True):
        subject = model()
        subject.loss_only = loss_only
        output = subject(IDS, labels=IDS)
        assert (output.logits is None) is loss_only
        output.loss.backward()
        gradients.append([parameter.grad for parameter in subject.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert model()(IDS, labels=IDS, loss_only=True).logits is None
    assert subject(IDS).logits is not None, "without labels there is no loss to return alone"


@torch.no_grad()
def test_logits_to_keep_are_the_last_ones() -> None:
    subject = model()
    full = subject(IDS).logits
    torch.testing.assert_close(subject(IDS, logits_to_keep=1).logits, full[:, -1:])
    torch.testing.assert_close(subject(IDS, logits_to_keep=torch.tensor([2, 4])).logits, full[:, [2, 4]])
    torch.testing.assert_close(subject(IDS, return_dict=False)[0], full)


def test_checkpointing_is_switched_on_and_off_and_only_as_non_reentrant() -> None:
    subject = model().train()
    subject.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert subject.model.gradient_checkpointing
    subject(IDS, labels=IDS).loss.backward()
    subject.gradient_checkpointing_disable()
    assert not subject.model.gradient_checkpointing
    with pytest.raises(ValueError, match="use_reentrant = True"):
        subject.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match="every_n_layers = 2"):
        subject.gradient_checkpointing_enable(every_n_layers=2)


def test_a_model_on_no_device_counts_its_parameters() -> None:
    shape = DecoderShape(vocab_size=50_000, width=8_192, layers=40, heads=64, head_dim=128, mlp_width=32_768, context=9)
    layout = make("even", 40, 64, 4, 1)
    with torch.device("meta"):
        assert MLKVForCausalLM.from_shape(shape, layout, seed=0).num_parameters() == shape.parameters(layout)
