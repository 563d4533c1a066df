"""Losses without whole logits, attention by products, and what `efficiency` decides: the same numbers another way."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlkv.attention import Attention
from mlkv.convert.step import convert
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import mha
from mlkv.recipes import ConvertRecipe
from mlkv.train import loss as loss_module
from mlkv.train.chunked_distillation import ChunkedDistillation
from mlkv.train.distillation import Distillation
from mlkv.train.lean import make_lean
from mlkv.train.loss import chunked_cross_entropy
from mlkv.train.memory import is_lean
from mlkv.train.teacher import Sizes, StoredTeacher, largest
from mlkv.train.utilisation import flops_per_token, mfu
from mlkv.training_recipes import LONGEST_BY_PRODUCTS, PLAIN, TrainRecipe
from sweeps.steps.step import identity_fields
from tests.support.matrix import HEADS, LAYERS, LAYOUTS, SHAPES, VOCAB

IDS = torch.randint(VOCAB, (3, 13), generator=torch.Generator().manual_seed(5))
LABELS = IDS.masked_fill(torch.arange(13) > torch.tensor([[8], [11], [0]]), -100)
CHUNKS = (7, 500)
Gradients = dict[str, Tensor]


def made(shape: str, layout: str = "mqa") -> tuple[MLKVForCausalLM, MLKVForCausalLM]:
    base = MLKVForCausalLM.from_shape(SHAPES[shape], mha(LAYERS, HEADS), seed=11)
    for parameter in base.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4))
    return convert(base, LAYOUTS[layout], ConvertRecipe()), base.eval().requires_grad_(False)


def gradients(model: MLKVForCausalLM, loss: Tensor) -> Gradients:
    model.zero_grad()
    (3 * loss).backward()  # as one that is scaled on its way
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_close(model: MLKVForCausalLM, found: Tensor, expected: Tensor) -> None:
    own, whole = gradients(model, found), gradients(model, expected)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)
    largest_gradient = max(float(each.abs().max()) for each in whole.values())
    torch.testing.assert_close(own, whole, rtol=1e-4, atol=1e-5 * largest_gradient)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_chunked_loss_is_that_of_whole_logits(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = made(shape)
    for chunk, items in zip(CHUNKS, (None, torch.tensor(50)), strict=True):
        monkeypatch.setattr(loss_module, "CHUNK", chunk)
        model.own_loss = chunked_cross_entropy
        found = model(IDS, labels=LABELS, num_items_in_batch=items, loss_only=True).loss
        model.own_loss = None
        assert_close(model, found, model(IDS, labels=LABELS, num_items_in_batch=items).loss)


@pytest.mark.parametrize("changes", [{}, {"temperature": 2.0, "distill_weight": 0.7, "hidden_weight": 0.5}])
@pytest.mark.parametrize("shape", list(SHAPES)[-2:])
def test_a_chunked_distillation_is_that_of_whole_logits(
    shape: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, base = made(shape)
    recipe = replace(TrainRecipe(steps=1, teacher="base"), **changes)
    whole, own = Distillation(recipe, base, "fp32"), ChunkedDistillation(recipe, base, "fp32")
    for chunk in CHUNKS[:1]:
        monkeypatch.setattr(loss_module, "CHUNK", chunk)
        model.own_loss = own.loss_of_hidden
        found = own(model, input_ids=IDS, labels=LABELS)["loss"]
        model.own_loss = None
        assert_close(model, found, whole(model, input_ids=IDS, labels=LABELS)["loss"])
        terms = [each.take_means(lambda sums: sums) for each in (own, whole)]
        assert terms[0] == pytest.approx(terms[1], rel=1e-4)


@pytest.mark.parametrize("top_k", [9, VOCAB])
def test_a_chunked_distillation_takes_what_a_teacher_stored(top_k: int) -> None:
    model, base = made(next(iter(SHAPES)))
    ids, log_probs = largest(base(IDS).logits[:, :-1], top_k)
    stored = StoredTeacher.__new__(StoredTeacher)
    object.__setattr__(stored, "sizes", Sizes(3, 13, top_k, VOCAB, "<u2", 1.0, 0.0))
    recipe = TrainRecipe(steps=1, teacher="base", teacher_logits="stored", distill_weight=0.6)
    own, whole = ChunkedDistillation(recipe, stored, "fp32"), Distillation(recipe, stored, "fp32")
    given_ids = None if top_k == VOCAB else ids
    if given_ids is None:
        order = ids.argsort(-1)
        log_probs = torch.cat([log_probs[..., :-1].gather(-1, order), log_probs[..., -1:]], -1)
    batch: dict[str, Any] = {
        "input_ids": IDS,
        "labels": LABELS,
        "teacher_ids": given_ids,
        "teacher_log_probs": log_probs.detach(),
    }
    model.own_loss = own.loss_of_hidden
    found = own(model, **batch)["loss"]
    model.own_loss = None
    assert_close(model, found, whole(model, **batch)["loss"])


def test_a_base_that_is_its_own_teacher_has_no_gradient() -> None:
    _, base = made(next(iter(SHAPES)))
    student = convert(base, mha(LAYERS, HEADS), ConvertRecipe()).requires_grad_()
    own = ChunkedDistillation(TrainRecipe(steps=1, teacher="base"), base, "fp32")
    student.own_loss = own.loss_of_hidden
    loss = own(student, input_ids=IDS, labels=LABELS)["loss"]
    assert loss == 0
    assert all(not gradient.any() for gradient in gradients(student, loss).values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_by_products_is_that_of_the_kernel(layout: str) -> None:
    model, _ = made(next(iter(SHAPES)), layout)
    expected = model(IDS, labels=LABELS).loss
    for module in model.modules():
        if isinstance(module, Attention):
            module.by_products = True
    assert_close(model, model(IDS, labels=LABELS).loss, expected)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_computed_again_has_the_same_bits(shape: str, bf16: bool) -> None:
    model, _ = made(shape)
    for module in model.modules():
        if isinstance(module, Attention):
            module.by_products = True
    found = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(IDS, labels=LABELS).loss
        found.append((loss.detach(), gradients(model, loss)))
        make_lean(model.model)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_only_a_large_vocabulary_and_a_chunked_loss_make_a_training_lean() -> None:
    shape = replace(SHAPES[next(iter(SHAPES))], vocab_size=50_304, width=256, heads=4, head_dim=64)
    recipe = TrainRecipe(steps=1, loss="chunked")
    assert is_lean(recipe, shape, gpu=False)
    assert not is_lean(recipe, shape, gpu=True)
    assert not is_lean(recipe, replace(shape, vocab_size=20_000), gpu=False)
    for other in (TrainRecipe(steps=1), replace(recipe, compile=True), replace(recipe, gradient_checkpointing=True)):
        assert not is_lean(other, shape, gpu=False)


@settings(max_examples=50)
@given(
    st.sampled_from(["cpu", "cuda"]),
    st.integers(2, 4096),
    st.sampled_from(["auto", "fp32", "bf16"]),
    st.sampled_from([None, "whole", "chunked"]),
    st.sampled_from([None, "kernel", "products"]),
    st.sampled_from([None, False, True]),
)
def test_efficiency_decides_what_is_unset_and_leaves_no_trace_of_itself(
    device: str, length: int, precision: str, loss: str | None, attention: str | None, compiled: bool | None
) -> None:
    chosen = {"loss": loss, "attention": attention, "compile": compiled}
    recipe = TrainRecipe(steps=1, precision=precision, **chosen)  # type: ignore[arg-type]
    plain, auto = recipe.settled(device, length), replace(recipe, efficiency="auto").settled(device, length)
    assert auto.settled("cuda", 2) == auto
    assert auto.efficiency == plain.efficiency == "none"
    for name, value in chosen.items():
        assert getattr(plain, name) == (None if value == PLAIN[name] else value)
        if value is not None:
            assert getattr(auto, name) == getattr(plain, name)
    short = device == "cpu" and length <= LONGEST_BY_PRODUCTS and precision != "fp32"
    assert loss or auto.loss == "chunked"
    assert attention or auto.attention == ("products" if short else None)
    assert compiled is not None or auto.compile == (True if device == "cuda" else None)


def test_what_is_set_to_its_plain_value_keeps_the_id() -> None:
    explicit = TrainRecipe(steps=1, **PLAIN).settled("cuda", 64)  # type: ignore[arg-type]
    assert identity_fields(explicit) == identity_fields(TrainRecipe(steps=1))
    assert {f.name for f in fields(TrainRecipe)} >= PLAIN.keys()


def test_flops_of_a_token_are_those_of_its_products() -> None:
    shape, layout = SHAPES[next(iter(SHAPES))], LAYOUTS["mqa"]
    model = MLKVForCausalLM.from_shape(shape, layout, seed=0)
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    attention = 12 * shape.layers * shape.heads * shape.head_dim * 40 / 2
    assert flops_per_token(shape, layout, 40) == 6 * sum(each.numel() for each in matrices) + attention
    assert mfu(1e6, 1e9, torch.device("cpu")) is None
