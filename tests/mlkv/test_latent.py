"""Latents: attention to them against an explicit computation, caches, checkpoints, measurement."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import StaticCache
from transformers.cache_utils import Cache

from mlkv.families.load import load_pretrained
from mlkv.families.save import to_family
from mlkv.hf import MLKVForCausalLM, load_checked
from mlkv.latent import LatentAttention
from mlkv.layout import KVLayout, Latent
from mlkv.measure import step as measure
from mlkv.positions import rotary_angles
from mlkv.recipes import MeasureRecipe
from mlkv.shape import DecoderShape
from mlkv.tokens import Tokens
from mlkv.train.adapters import choose_trained, merge
from mlkv.train.adapters import trained as trained_weights
from mlkv.training_recipes import TrainRecipe
from tests.support.latents import IDS, latent_of, noisy
from tests.support.matrix import CONTEXT, LAYOUTS, SHAPES, VOCAB
from tests.support.tiny import context

PADDED = torch.ones_like(IDS)
PADDED[0, :3] = 0
KINDS: dict[str, tuple[str, KVLayout]] = {
    "neox": ("neox", latent_of(SHAPES["neox"], LAYOUTS["explicit"], 10)),
    "neox_fewer_planes": ("neox", latent_of(SHAPES["neox"], LAYOUTS["gqa"], 7, rotary_dims=2)),
    "neox_shared": ("neox", latent_of(SHAPES["neox"], LAYOUTS["cla"], 5, shared=True)),
    "llama": ("llama", latent_of(SHAPES["llama"], LAYOUTS["mlkv"], 6)),
    "llama_fewer_shared_planes": ("llama", latent_of(SHAPES["llama"], LAYOUTS["explicit"], 9, 4, shared=True)),
    "no_rotation_left": ("llama", latent_of(SHAPES["llama"], LAYOUTS["mha"], 9, rotary_dims=0)),
    "kv_norms": ("cla", latent_of(SHAPES["cla"], LAYOUTS["cla"], 6)),
    "learned_positions": ("opt", latent_of(SHAPES["opt"], LAYOUTS["explicit"], 11)),
}  # fmt: skip
"""Each way to place tokens, heads and rotated parts, with layers that share and owners of different sizes."""
TOGETHER = [name for name, layout in LAYOUTS.items() if not layout.apart]
"""Where an owner's keys and values can become one latent."""
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def model(kind: str, dtype: torch.dtype | None = None) -> MLKVForCausalLM:
    shape, layout = KINDS[kind]
    subject = noisy(MLKVForCausalLM.from_shape(SHAPES[shape], layout, seed=7, dtype=dtype))
    generator = torch.Generator().manual_seed(1)
    for name, planes in subject.named_buffers():
        if name.endswith("planes"):
            chosen = [torch.randperm(SHAPES[shape].rotated_dims // 2, generator=generator) for _ in planes]
            planes.copy_(torch.stack([each[: planes.shape[1]] for each in chosen]))
    return subject


def held_bytes(cache: Cache) -> int:
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values) if t is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# --- attention ----------------------------------------------------------------------------------------------------


def explicit(attention: LatentAttention, x_TD: Tensor, shape: DecoderShape) -> Tensor:
    """An owner's attention in complex numbers, by head and token, with its keys and values written out."""
    tokens, heads, width, kept = len(x_TD), shape.heads, shape.head_dim, attention.rotary_dims
    latent_TR = attention.latent(x_TD)
    queries = attention.q(x_TD).view(tokens, heads, width)
    values = attention.v_up(latent_TR).view(tokens, attention.kv_heads, width)
    planes = attention.planes if attention.planes is not None else torch.arange(kept // 2)[None]
    frequencies = shape.rotary_base ** (-2.0 * planes.double() / max(1, shape.rotated_dims))

    def turned(part: Tensor, position: int, which: int) -> Tensor:
        angle = position * frequencies[min(which, len(frequencies) - 1)]
        return torch.complex(*part.double().chunk(2)) * torch.polar(torch.ones_like(angle), angle)

    found = torch.zeros(tokens, heads, width, dtype=torch.float64)
    for h in range(heads):
        g = h * attention.kv_heads // heads
        part = 0 if attention.shared_rotary else g
        for t in range(tokens):
            logits = torch.zeros(t + 1, dtype=torch.float64)
            for s in range(t + 1):
                if kept:
                    key = attention.k(x_TD[s]).view(-1, kept)[part]
                    product = turned(queries[t, h, :kept], t, part) * turned(key, s, part).conj()
                    logits[s] += product.real.sum()
                if kept < width:
                    rest = attention.k_up(latent_TR[s]).view(attention.kv_heads, -1)[g]
                    logits[s] += queries[t, h, kept:].double() @ rest.double()
            found[t, h] = (logits / width**0.5).softmax(0) @ values[: t + 1, g].double()
    return attention.o(found.flatten(1))


@EVERY_KIND
@torch.no_grad()
def test_attention_is_that_of_the_keys_and_values_written_out(kind: str) -> None:
    shape = SHAPES[KINDS[kind][0]]
    attention = model(kind).double().model.blocks[0].attention
    assert isinstance(attention, LatentAttention)
    x_BTD = torch.randn(2, 6, shape.width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    positions = torch.arange(6)[None]
    angles = rotary_angles(shape, positions) if shape.positions == "rotary" else None
    out, _ = attention(x_BTD, x_BTD, (None, None), Tokens(positions, None, angles, None, None))
    expected = torch.stack([explicit(attention, x_TD, shape) for x_TD in x_BTD])
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-5)  # the angles are float32


@EVERY_KIND
@pytest.mark.parametrize("mask", [None, PADDED], ids=["unpadded", "padded"])
@torch.no_grad()
def test_any_cache_and_any_steps_give_what_no_cache_gives(kind: str, mask: Tensor | None) -> None:
    subject = model(kind)
    full = subject(IDS, attention_mask=mask).logits
    for cuts in ([4, 1, 3, 1], [1] * 9):
        for static in (None, StaticCache(config=subject.config, max_cache_len=12)):
            parts, past, end = [], static, 0
            for length in cuts:
                start, end = end, end + length
                own = None if mask is None else mask[:, :end]
                output = subject(IDS[:, start:end], attention_mask=own, past_key_values=past, use_cache=True)
                past = output.past_key_values
                parts.append(output.logits)
            real = torch.ones_like(IDS) if mask is None else mask
            torch.testing.assert_close(torch.cat(parts, 1)[real == 1], full[real == 1], atol=1e-4, rtol=1e-4)


@EVERY_KIND
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(kind: str) -> None:
    subject = model(kind)
    torch.testing.assert_close(
        subject(IDS, attention_mask=PADDED).logits[0, 3:], subject(IDS[:1, 3:]).logits[0], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["neox", "learned_positions"])
def test_generation_is_the_same_with_every_cache_and_with_beams(kind: str) -> None:
    subject = model(kind)
    for beams in (1, 3):
        options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
        expected = subject.generate(IDS, attention_mask=PADDED, use_cache=False, **options)
        assert torch.equal(subject.generate(IDS, attention_mask=PADDED, **options), expected)
    static = subject.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0, cache_implementation="static")
    assert torch.equal(static, subject.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0))


@pytest.mark.long
@torch.no_grad()
def test_decoding_with_a_static_cache_compiles_as_one_graph() -> None:
    subject = model("neox_fewer_planes")
    cache = StaticCache(config=subject.config, max_cache_len=9)
    subject(IDS[:, :7], past_key_values=cache)
    compiled = torch.compile(subject.forward, fullgraph=True, backend="eager")
    steps = [compiled(IDS[:, i : i + 1], position_ids=torch.full((2, 1), i), past_key_values=cache)[0] for i in (7, 8)]
    torch.testing.assert_close(torch.cat(steps, 1), subject(IDS).logits[:, 7:], atol=1e-5, rtol=1e-5)


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_caches_hold_latents_and_rotated_parts_and_nothing_else(kind: str, dtype: torch.dtype) -> None:
    subject = model(kind, dtype)
    latent, layout = subject.layout.latent, subject.layout
    assert latent
    rotary = [latent.rotary_dims * (1 if latent.shared else heads) for heads in layout.kv_heads]
    per_token = (sum(latent.ranks) + sum(rotary)) * dtype.itemsize
    assert layout.kv_bytes_per_token(subject.shape.head_dim, dtype.itemsize) == per_token
    assert held_bytes(subject(IDS, use_cache=True).past_key_values) == IDS.numel() * per_token
    static = StaticCache(config=subject.config, max_cache_len=20)
    subject(IDS, past_key_values=static)
    assert held_bytes(static) == len(IDS) * 20 * per_token


@pytest.mark.parametrize("kind", ["neox", "llama_fewer_shared_planes"])
def test_checkpointed_gradients_are_the_gradients_and_reach_every_weight(kind: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        subject = model(kind).train()
        subject.model.gradient_checkpointing = checkpointing
        subject(IDS, labels=IDS).loss.backward()
        gradients.append({name: p.grad for name, p in subject.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradient, gradients[1][name])


# --- sizes --------------------------------------------------------------------------------------------------------


@EVERY_KIND
def test_weights_and_parameters_are_those_of_the_decoder_that_gets_built(kind: str) -> None:
    subject, (shape, layout) = model(kind), KINDS[kind]
    built = {name: tuple(weight.shape) for name, weight in subject.model.state_dict().items()}
    assert SHAPES[shape].weights(layout) == built
    assert SHAPES[shape].parameters(layout) == subject.num_parameters()


@given(st.sampled_from(list(SHAPES)), st.sampled_from(TOGETHER), st.integers(1, 40), st.data())
def test_a_latent_never_takes_more_bytes_than_the_keys_and_values(
    shape: str, layout: str, rank: int, data: st.DataObject
) -> None:
    rotary = 2 * data.draw(st.integers(0, SHAPES[shape].rotated_dims // 2))
    given_layout = latent_of(SHAPES[shape], LAYOUTS[layout], rank, rotary, data.draw(st.booleans()))
    width = SHAPES[shape].head_dim
    assert given_layout.kv_bytes_per_token(width) <= LAYOUTS[layout].kv_bytes_per_token(width)
    assert KVLayout.from_dict(given_layout.as_dict()) == given_layout
    assert given_layout.without_latent == LAYOUTS[layout]


def test_a_layout_without_a_latent_is_written_as_before() -> None:
    assert LAYOUTS["mlkv"].as_dict().keys() == {"kv_source_layers", "kv_heads", "heads"}
    assert "latent" not in MLKVForCausalLM.from_shape(SHAPES["neox"], LAYOUTS["mlkv"], seed=0).config.to_dict()


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (lambda: Latent((0,), 2), r"latent\.ranks = \[0\]: each is at least 1"),
        (lambda: Latent((4,), 3), r"latent\.rotary_dims = 3: must be even"),
        (lambda: replace(LAYOUTS["mlkv"], latent=Latent((4,), 2)), r"latent\.ranks has 1 entries for 2 owners"),
        (
            lambda: MLKVForCausalLM.from_shape(
                SHAPES["neox"], replace(LAYOUTS["mlkv"], latent=Latent((4, 4), 6)), seed=0
            ),
            r"latent\.rotary_dims = 6: a head has 4 that rotate",
        ),
        (
            lambda: MLKVForCausalLM.from_shape(SHAPES["neox"], KINDS["neox"][1], seed=0, keys="unrotated"),
            "keys = unrotated: a latent needs rotated ones",
        ),
    ],
)
def test_what_no_latent_can_be_is_refused(latent: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent()  # type: ignore[operator]


@pytest.mark.parametrize(("kind", "protocol"), [("neox", "filled"), ("learned_positions", "prefill")])
def test_measured_bytes_are_the_formulas(kind: str, protocol: str) -> None:
    shape, layout = SHAPES[KINDS[kind][0]], KINDS[kind][1]
    recipe = MeasureRecipe(batch_sizes=(3,), contexts=(8,), new_tokens=4, repeats=1, protocol=protocol)  # type: ignore[arg-type]
    result = measure.run(recipe, Path("unused"), context(Path("unused")), shape=shape, layout=layout)
    [measured] = [row.value for row in result.metrics if row.metric == "cache_bytes"]
    assert measured == layout.kv_bytes_per_token(shape.head_dim, 4) * 3 * (8 + 4)


# --- checkpoints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("neox", torch.float32), ("llama_fewer_shared_planes", torch.bfloat16), ("learned_positions", torch.bfloat16)],
)
def test_a_saved_model_comes_back_bit_for_bit(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    saved = model(kind, dtype)
    saved.save_pretrained(tmp_path)
    loaded = load_checked(tmp_path)
    assert (loaded.shape, loaded.layout, loaded.dtype) == (saved.shape, saved.layout, dtype)
    assert all(torch.equal(a, loaded.state_dict()[name]) for name, a in saved.state_dict().items())
    again = load_pretrained(tmp_path)  # as a base of one's own
    assert again.layout == saved.layout
    assert torch.equal(again(IDS).logits, saved.float()(IDS).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": 3}, "latent = 3: must have ranks, rotary_dims, shared"),
        ({"latent": {"ranks": [4, 4], "rotary_dims": "2", "shared": False}}, "rotary_dims must be an integer"),
        ({"latent": {"ranks": 4, "rotary_dims": 2, "shared": False}}, "ranks = 4: must be a list of integers"),
        ({"latent": {"ranks": [4, 4], "rotary_dims": 6, "shared": False}}, "a head has 4 that rotate"),
        ({"keys": "unrotated"}, "keys = unrotated: a latent needs rotated ones"),
    ],
)
def test_a_config_that_says_no_latent_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    MLKVForCausalLM.from_shape(SHAPES["neox"], latent_of(SHAPES["neox"], LAYOUTS["mlkv"], 4), seed=0).save_pretrained(
        tmp_path
    )
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path)


def test_no_other_family_has_such_a_model() -> None:
    for family in ("gpt_neox", "llama"):
        with pytest.raises(ValueError, match=f"family = {family}: cannot express a latent"):
            to_family(model("neox"), family)


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from([kind for kind in KINDS if kind != "learned_positions"]))
@torch.no_grad()
def test_where_all_tokens_are_does_not_count_but_how_far_apart(seed: int, kind: str) -> None:
    subject = model(kind)
    ids = torch.randint(VOCAB, (1, 6), generator=torch.Generator().manual_seed(seed))
    shift = seed % (CONTEXT - 6)
    torch.testing.assert_close(
        subject(ids, position_ids=torch.arange(6)[None] + shift).logits, subject(ids).logits, atol=1e-3, rtol=1e-3
    )


# --- training of parts --------------------------------------------------------------------------------------------


def test_adapters_and_keys_and_values_are_trained_where_they_are() -> None:
    ours = ("k", "latent", "k_up", "v_up")
    subject = model("neox").train()
    choose_trained(subject, TrainRecipe(steps=1, train="kv"))
    trained = {name.removeprefix("model.blocks.0.attention.") for name in trained_weights(subject) if ".0." in name}
    assert trained == {f"{name}.weight" for name in ours} | {"k.bias", "v_up.bias"}
    subject = model("neox").train()
    adapters = choose_trained(subject, TrainRecipe(steps=1, train="lora"))
    assert adapters
    for name, parameter in trained_weights(subject).items():
        parameter.data.normal_(std=0.1)
        assert any(f".{part}." in name for part in ("q", "k", "latent", "o")), name
    subject(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained_weights(subject).values())
    adapted = subject.eval()(IDS).logits
    torch.testing.assert_close(merge(adapters)(IDS).logits, adapted, atol=1e-4, rtol=1e-4)
