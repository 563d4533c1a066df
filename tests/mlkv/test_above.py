"""Sharing from above: against LCKV's published code, and against a computation of one token after the other."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, StaticCache

from mlkv.cache.packing import rounding
from mlkv.cache.quantised import QuantisedCache
from mlkv.check.table import load_subject, run
from mlkv.convert.calibration import calibrate
from mlkv.convert.step import convert
from mlkv.export.card import Origin, model_card
from mlkv.export.checkpoint import Checkpoint
from mlkv.export.targets import TARGETS
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, mha
from mlkv.merges import MERGES
from mlkv.patterns import make
from mlkv.recipes import ConvertRecipe
from mlkv.shape import DecoderShape
from tests.support.tiny import blocks_of

LCKV = json.loads((Path(__file__).parent / "lckv.json").read_text("utf-8"))
LLAMA = DecoderShape(
    vocab_size=61,
    width=32,
    layers=5,
    heads=4,
    head_dim=8,
    mlp_width=48,
    context=64,
    norm="rmsnorm",
    activation="silu",
    gated_mlp=True,
    attention_bias=False,
    mlp_bias=False,
    parallel_residual=False,
    rotary_fraction=1.0,
    init_std=0.2,
)
IDS_BT = (7 * torch.arange(28) ** 2 % 61).reshape(2, 14)


def layout_of(sources: tuple[int, ...], **passes: int) -> KVLayout:
    return KVLayout(sources, (2,) * len(set(sources)), 4, **passes)  # type: ignore[arg-type]


def model_of(sources: tuple[int, ...], **passes: int) -> MLKVForCausalLM:
    return MLKVForCausalLM.from_shape(LLAMA, layout_of(sources, **passes), seed=1, dtype=torch.float64).eval()


def name_in_lckv(name: str) -> str:
    name = name.replace("attention_norm", "input_layernorm").replace("mlp_norm", "post_attention_layernorm")
    for part in ("q", "k", "v", "o"):
        name = name.replace(f"attention.{part}.", f"self_attn.{part}_proj.")
    for part in ("gate", "up", "down"):
        name = name.replace(f"mlp.{part}.", f"mlp.{part}_proj.")
    renamed = {"head.weight": "lm_head.weight", "embed.weight": "model.embed_tokens.weight"}
    return renamed.get(name, "model." + name.replace("blocks.", "layers."))


def published_weight(name: str, like: Tensor) -> Tensor:
    place = torch.arange(like.numel(), dtype=torch.float64)
    wave = torch.sin(0.618 * place * place + zlib.crc32(name.encode()) % 1000)
    return (1 + 0.1 * wave if "norm" in name else 0.25 * wave).reshape(like.shape)


@pytest.mark.parametrize("run", LCKV["runs"], ids=lambda run: f"{run['layer_types']}-{run['forward_passes']}")
def test_logits_and_gradients_equal_those_of_lckv(run: dict[str, Any]) -> None:
    sources = tuple(map(int, run["layer_types"].split("_")))
    layout = layout_of(sources, forward_passes=run["forward_passes"], backward_passes=run["backward_passes"])
    model = MLKVForCausalLM.from_shape(LLAMA, layout, seed=0)
    weights = {name_in_lckv(name): weight for name, weight in model.model.named_parameters()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(published_weight(name, weight))
    output = model(IDS_BT, labels=IDS_BT)
    output.loss.backward()
    torch.testing.assert_close(output.logits[:, -1, :8], torch.tensor(run["last_logits"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(output.logits[0, 0, :8], torch.tensor(run["first_logits"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(output.logits.abs().sum(-1), torch.tensor(run["sums"]), rtol=0, atol=1e-4)
    assert output.loss.item() == pytest.approx(run["loss"], abs=2e-6)
    for name, norm in run["gradient_norms"].items():
        gradient = weights[name].grad
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm, abs=1e-5), name


def one_by_one(model: MLKVForCausalLM, ids_T: Tensor) -> Tensor:
    """Logits `[T, V]`, each token through all layers before the next; with loops, and nothing of the decoder's but its
    weights."""
    weights, sources, width = dict(model.model.named_parameters()), model.layout.kv_source_layers, LLAMA.head_dim

    def norm(x_D: Tensor, name: str) -> Tensor:
        return x_D / (x_D.square().mean() + LLAMA.norm_eps).sqrt() * weights[f"{name}.weight"]

    def heads(x_D: Tensor, name: str, position: int) -> Tensor:
        flat = weights[f"{name}.weight"] @ x_D
        x_HK = flat.unflatten(0, (-1, width))
        if name.endswith("v"):
            return x_HK
        turns = position * LLAMA.rotary_base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        turned = torch.polar(torch.ones_like(turns), turns) * torch.complex(*x_HK.chunk(2, -1))
        return torch.cat([turned.real, turned.imag], -1)

    keys: dict[int, list[Tensor]] = {owner: [] for owner in model.layout.owners}
    values: dict[int, list[Tensor]] = {owner: [] for owner in model.layout.owners}
    logits = []
    for position, token in enumerate(ids_T.tolist()):
        x_D = weights["embed.weight"][token]
        for layer, source in enumerate(sources):
            block = f"blocks.{layer}"
            input_D = norm(x_D, f"{block}.attention_norm")
            if source == layer:
                keys[layer].append(heads(input_D, f"{block}.attention.k", position))
                values[layer].append(heads(input_D, f"{block}.attention.v", position))
            q_HK, found = heads(input_D, f"{block}.attention.q", position), []
            for head, q_K in enumerate(q_HK):
                group = head * model.layout.heads_of(layer) // LLAMA.heads
                seen = list(zip(keys[source], values[source], strict=True))  # from above: the tokens before alone
                scores = torch.tensor([float(q_K @ k_GK[group]) * width**-0.5 for k_GK, _ in seen], dtype=torch.float64)
                shares = scores.softmax(0)
                found.append(sum((s * v_GK[group] for s, (_, v_GK) in zip(shares, seen, strict=True)), 0 * q_K))
            x_D = x_D + weights[f"{block}.attention.o.weight"] @ torch.cat(found)
            input_D = norm(x_D, f"{block}.mlp_norm")
            gate_F = functional.silu(weights[f"{block}.mlp.gate.weight"] @ input_D)
            x_D = x_D + weights[f"{block}.mlp.down.weight"] @ (gate_F * (weights[f"{block}.mlp.up.weight"] @ input_D))
        logits.append(weights["head.weight"] @ norm(x_D, "norm"))
    return torch.stack(logits)


SOURCES = [(0, 3, 3, 3, 4), (0, 2, 2, 2, 4), (0, 2, 2, 4, 4), (1, 1, 4, 4, 4), (4, 4, 4, 4, 4), (0, 3, 4, 3, 4)]


@torch.no_grad()
@pytest.mark.parametrize("sources", SOURCES)
def test_as_many_passes_as_tokens_and_single_tokens_equal_a_plain_computation(sources: tuple[int, ...]) -> None:
    model = model_of(sources, forward_passes=20)
    expected_TV = one_by_one(model, IDS_BT[0])
    torch.testing.assert_close(model(IDS_BT, use_cache=False).logits[0], expected_TV, rtol=0, atol=1e-6)
    for cache in (None, StaticCache(model.config, max_cache_len=20)):
        steps, held = [], cache
        for token_B1 in IDS_BT.split(1, 1):
            output = model(token_B1, past_key_values=held, use_cache=True)
            held = output.past_key_values
            steps.append(output.logits)
        torch.testing.assert_close(torch.cat(steps, 1)[0], expected_TV, rtol=0, atol=1e-6)


@torch.no_grad()
@settings(max_examples=5)
@given(st.sampled_from(SOURCES), st.data())
def test_caches_chunks_and_padding_leave_logits_as_they_are(sources: tuple[int, ...], data: st.DataObject) -> None:
    model = model_of(sources, forward_passes=20)
    cut, padding = data.draw(st.integers(1, 13)), data.draw(st.integers(1, 3))
    whole = model(IDS_BT, use_cache=False).logits
    for cache in (None, StaticCache(model.config, max_cache_len=20)):
        first = model(IDS_BT[:, :cut], past_key_values=cache, use_cache=True)
        second = model(IDS_BT[:, cut:], past_key_values=first.past_key_values)
        torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole)
        sizes = {tuple(layer.keys.shape[:2]) for layer in second.past_key_values.layers if layer.keys is not None}
        kept = [layer for layer in second.past_key_values.layers if layer.keys is not None]
        assert (sizes, len(kept)) == ({(2, 2)}, model.layout.kv_layers)
    padded_BT = functional.pad(IDS_BT, (padding, 0), value=5)
    mask_BT = functional.pad(torch.ones_like(IDS_BT), (padding, 0))
    torch.testing.assert_close(model(padded_BT, mask_BT).logits[:, padding:], whole)
    everything = torch.ones(14, 14, dtype=torch.bool).tril()[None, None].expand(2, 1, 14, 14)
    added = torch.zeros(everything.shape, dtype=torch.float64).masked_fill(~everything, torch.finfo(torch.float64).min)
    for mask in (everything, added):
        torch.testing.assert_close(model(IDS_BT, mask).logits, whole)


@torch.no_grad()
def test_a_packed_cache_decodes_what_scoring_with_its_rounding_says() -> None:
    model = model_of((0, 3, 3, 3, 4), forward_passes=20)
    cache = QuantisedCache(model.config, "int8")
    steps = [model(token_B1, past_key_values=cache).logits for token_B1 in IDS_BT.split(1, 1)]
    model.model.rounding = rounding("int8")
    torch.testing.assert_close(torch.cat(steps, 1), model(IDS_BT, use_cache=False).logits)


def test_only_the_last_passes_have_gradients_and_recomputing_layers_changes_none() -> None:
    def gradients(checkpointing: bool, **passes: int) -> list[Tensor]:
        model = model_of((0, 3, 3, 3, 4), **passes).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(IDS_BT, labels=IDS_BT).loss.backward()
        return [weight.grad for weight in model.parameters() if weight.grad is not None]

    plain = gradients(False)
    torch.testing.assert_close(gradients(True), plain)
    assert len(plain) == len(list(model_of((0, 3, 3, 3, 4)).parameters()))
    more = gradients(False, forward_passes=6, backward_passes=3)  # equally many passes, one more with gradients
    assert any(not torch.allclose(one, other) for one, other in zip(plain, more, strict=True))


def test_weights_have_gradients_under_autocast() -> None:
    model = MLKVForCausalLM.from_shape(LLAMA, layout_of((0, 3, 3, 3, 4)), seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(IDS_BT, labels=IDS_BT).loss
    loss.backward()
    assert not [name for name, weight in model.named_parameters() if weight.grad is None]


@torch.no_grad()
def test_a_cache_has_the_type_of_the_keys_under_autocast() -> None:
    model = MLKVForCausalLM.from_shape(LLAMA, layout_of((0, 3, 3, 3, 4)), seed=1).eval()
    for cache in (DynamicCache(config=model.config), StaticCache(model.config, max_cache_len=14)):
        with torch.autocast("cpu", torch.bfloat16):
            for part_BT in IDS_BT.split([10, 4], 1):
                model(part_BT, past_key_values=cache)
        assert {layer.keys.dtype for layer in cache.layers if layer.keys is not None} == {torch.bfloat16}


@torch.no_grad()
def test_what_a_pass_shows_is_that_of_the_last_pass() -> None:
    model = model_of((0, 3, 3, 3, 4))
    output = model(IDS_BT, output_hidden_states=True, output_attentions=True)
    assert [tuple(each.shape) for each in output.hidden_states] == [(2, 14, 32)] * 6
    assert [tuple(each.shape) for each in output.attentions] == [(2, 4, 14, 14)] * 5
    own = torch.diagonal(output.attentions[1], dim1=-2, dim2=-1)
    assert own.abs().max() == 0
    assert output.attentions[1][:, :, 0].abs().max() == 0
    torch.testing.assert_close(output.logits, model(IDS_BT).logits)


@torch.no_grad()
def test_a_saved_model_generates_what_single_tokens_give(tmp_path: Path) -> None:
    made = model_of((1, 1, 4, 4, 4), forward_passes=3, backward_passes=1)
    made.save_pretrained(tmp_path)
    model = MLKVForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert model.layout == made.layout
    found = model.generate(IDS_BT, max_new_tokens=8, do_sample=False, pad_token_id=60)
    output = model(IDS_BT, use_cache=True)
    for place in range(14, 22):
        next_B1 = output.logits[:, -1:].argmax(-1)
        assert (found[:, place : place + 1] == next_B1).all()
        output = model(next_B1, past_key_values=output.past_key_values)
    beams = model.generate(IDS_BT, max_new_tokens=8, num_beams=3, do_sample=False, pad_token_id=60)
    assert beams.shape == (2, 22)


@pytest.mark.parametrize("merge", sorted(MERGES))
def test_heads_merge_into_owners_above_their_readers(merge: str) -> None:
    base = MLKVForCausalLM.from_shape(LLAMA, mha(5, 4), seed=2)
    layout = KVLayout((0, 3, 3, 3, 4), (4, 4, 4), 4)
    made = convert(base, layout, ConvertRecipe(merge=merge), calibrate(base, IDS_BT)).eval()
    assert made(IDS_BT).logits.isfinite().all()
    own = blocks_of(base.model)
    if merge == "mean":  # LCKV's conversion, arXiv 2405.10637, convert_pretrained.py
        wanted = torch.stack([own[layer].attention.k.weight for layer in (1, 2, 3)]).mean(0)
        torch.testing.assert_close(blocks_of(made.model)[3].attention.k.weight, wanted)
    if merge == "first":
        assert torch.equal(blocks_of(made.model)[3].attention.v.weight, own[3].attention.v.weight)
    for layer in (0, 4):
        near = {"svd": 1e-4, "aligned": 1e-4}.get(merge, 0.0)
        torch.testing.assert_close(
            blocks_of(made.model)[layer].attention.k.weight, own[layer].attention.k.weight, atol=near, rtol=0
        )


def test_what_it_costs_follows_from_the_layout() -> None:
    """LCKV's authors give 2.7 to 2.8 times the training for half of 22 layers; see docs/above.md."""
    top, middle = (make("sandwich", 22, 32, 11, 4, position=position) for position in ("top", "middle"))
    assert (top.training_cost, top.prefill_cost) == pytest.approx(((12 * 13 + 10 * 3) / 66, (12 * 9 + 10) / 22))
    assert (middle.training_cost, middle.prefill_cost) == pytest.approx(((6 * 13 + 16 * 3) / 66, (6 * 9 + 16) / 22))
    assert [mha(4, 2).training_cost, mha(4, 2).prefill_cost, mha(4, 2).passes()] == [1, 1, 1]


def test_layers_run_as_often_as_the_cost_says() -> None:
    model, runs = model_of((0, 3, 3, 3, 4)), [0] * 5
    for layer, block in enumerate(model.model.blocks):
        block.register_forward_hook(lambda *_, layer=layer: runs.__setitem__(layer, runs[layer] + 1))
    model(IDS_BT)
    assert runs == [1, 9, 9, 9, 1]
    assert sum(runs) / 5 == model.layout.prefill_cost
    output, before = model(IDS_BT[:, :4], use_cache=True), [*runs]
    model(IDS_BT[:, 4:5], past_key_values=output.past_key_values)
    assert [now - then for now, then in zip(runs, before, strict=True)] == [1] * 5


@pytest.mark.long
def test_the_conformance_checks_hold_with_as_many_passes_as_tokens(tmp_path: Path) -> None:
    MLKVForCausalLM.from_shape(LLAMA, layout_of((1, 1, 4, 4, 4)), seed=1).save_pretrained(tmp_path)
    results = {result.name: result.state for result in run(load_subject(tmp_path))}
    assert {name for name, state in results.items() if state != "pass"} == {"sources", "reentrant"}
    assert (results["sources"], results["reentrant"]) == ("skipped", "skipped")


def test_exports_to_engines_are_refused_and_the_card_draws_the_layout() -> None:
    checkpoint = Checkpoint(Path("unread"), LLAMA, layout_of((0, 3, 3, 3, 4)), "rotated", "float32")
    for target in ("native", "gguf", "vllm"):
        assert "of a layer above" in (TARGETS[target].refuses(checkpoint) or ""), target
    assert TARGETS["transformers"].refuses(checkpoint) is None
    card = model_card(Origin("tiny"), checkpoint, TARGETS["transformers"], "tiny")
    assert "2 ↑3 ↑3  2  2" in card
    assert "run 9 times over a prompt" in card
