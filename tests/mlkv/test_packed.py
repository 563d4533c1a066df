"""Documents that share a row and are apart: each is computed as if it were alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mlkv.attention import Attention, attend, attend_in_documents
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, mha
from mlkv.packed import Documents, starts_of
from mlkv.train.chunked_distillation import ChunkedDistillation
from mlkv.train.distillation import Distillation
from mlkv.train.elastic import ElasticDecoder
from mlkv.train.loss import chunked_cross_entropy
from mlkv.train.packing import SINCE, has_kernel, takes_documents
from mlkv.training_recipes import TrainRecipe
from sweeps.steps.step import identity_fields
from tests.support.latents import latent_of, noisy
from tests.support.matrix import HEADS, LAYERS, LAYOUTS, SHAPES, VOCAB

ROWS, LENGTH = 2, 11
APART = TrainRecipe(steps=1, documents="apart")
_WINDOWS: dict[str, Any] = {"window": 3, "local_layers": (0, 2, 3)}
SUBJECTS = {
    **{
        f"{shape}, {layout}": (SHAPES[shape], LAYOUTS[layout])
        for shape in SHAPES
        for layout in ("explicit", "kv_apart")
    },
    "windows": (replace(SHAPES["llama"], **_WINDOWS), LAYOUTS["explicit"]),
    "windows of one rotation, capped": (
        replace(SHAPES["llama"], **_WINDOWS, attention_cap=2.0, local_rotary_base=20.0),
        LAYOUTS["mlkv"],
    ),
    "latent": (SHAPES["neox"], latent_of(SHAPES["neox"], LAYOUTS["cla"], 9)),
    "latent that nothing rotates": (SHAPES["opt"], latent_of(SHAPES["opt"], LAYOUTS["mlkv"], 9)),
    "reads from above": (SHAPES["neox"], KVLayout((0, 5, 5, 5, 5, 5), (2, 4), HEADS, forward_passes=LENGTH)),
}


@cache
def subject(name: str) -> MLKVForCausalLM:
    shape, layout = SUBJECTS[name]
    model = MLKVForCausalLM.from_shape(shape, layout, seed=3, dtype=torch.float64)
    return noisy(model)


@st.composite
def rows_of_documents(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Ids `[B, T]`, and where documents begin in them."""
    seed, share = draw(st.integers(0, 2**31)), draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(VOCAB, (ROWS, LENGTH), generator=generator)
    return ids_BT, starts_of(torch.rand(ROWS, LENGTH, generator=generator) < share)


def spans(starts: Tensor) -> list[slice]:
    return [slice(begin, end) for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]


@settings(max_examples=30)
@given(st.sampled_from(sorted(SUBJECTS)), rows_of_documents())
def test_each_document_is_computed_as_if_it_were_alone(name: str, packed: tuple[Tensor, Tensor]) -> None:
    model, (ids_BT, starts) = subject(name), packed
    with torch.no_grad():
        together = model(ids_BT, documents=starts).logits.flatten(0, 1)
        for document in spans(starts):
            alone = model(ids_BT.flatten()[None, document], use_cache=False).logits[0]
            torch.testing.assert_close(together[document], alone, rtol=1e-5, atol=1e-5)


@settings(max_examples=10)
@given(rows_of_documents(), st.integers(0, ROWS * LENGTH - 1))
def test_no_token_of_another_document_changes_a_loss(packed: tuple[Tensor, Tensor], place: int) -> None:
    model, (ids_BT, starts) = subject("windows"), packed
    changed_BT = ids_BT.flatten().index_fill(0, torch.tensor([place]), 0).view_as(ids_BT)
    touched = next(document for document in spans(starts) if document.start <= place < document.stop)
    with torch.no_grad():
        first, second = (model(ids, documents=starts).logits.flatten(0, 1) for ids in (ids_BT, changed_BT))
    for document in spans(starts):
        if document != touched:
            torch.testing.assert_close(first[document], second[document], rtol=0, atol=1e-9)


def test_published_keys_are_rotated_by_positions_in_the_document() -> None:
    shape = SUBJECTS["llama, explicit"][0]
    model = noisy(MLKVForCausalLM.from_shape(shape, LAYOUTS["mlkv"], seed=1, dtype=torch.float64, keys="unrotated"))
    ids_BT = torch.arange(LENGTH)[None]
    together = model(ids_BT, documents=torch.tensor([0, 4, LENGTH], dtype=torch.int32)).logits[0, 4:]
    torch.testing.assert_close(together, model(ids_BT[:, 4:]).logits[0])


def test_a_training_pass_is_the_same_however_it_is_computed() -> None:
    """Checkpointed, by products, with chunked logits: loss and gradients."""
    model = subject("llama, explicit").train()
    ids_BT = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH)
    starts = starts_of(ids_BT % 4 == 3)

    def computed() -> list[Tensor]:
        model.zero_grad()
        loss: Tensor = model(ids_BT, labels=ids_BT, documents=starts).loss
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    expected = computed()
    model.model.gradient_checkpointing, model.own_loss = True, chunked_cross_entropy
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    for module in attentions:
        module.by_products = True
    found = computed()
    model.model.gradient_checkpointing, model.own_loss = False, None
    for module in attentions:
        module.by_products = False
    model.eval().zero_grad()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Distillation, ChunkedDistillation])
def test_a_teacher_sees_each_document_alone(kind: type[Distillation]) -> None:
    model, base = (MLKVForCausalLM.from_shape(SHAPES["opt"], LAYOUTS[name], seed=2).eval() for name in ("mqa", "mha"))
    recipe = replace(APART, teacher="base", hidden_weight=0.5, distill_weight=0.6)
    loss = kind(recipe, base.requires_grad_(False), "fp32")
    if isinstance(loss, ChunkedDistillation):
        model.own_loss = loss.loss_of_hidden
    ids_BT = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH)
    labels_BT = ids_BT.masked_fill(ids_BT % LENGTH == 4, -100)  # what would be predicted from another document
    starts = torch.tensor([0, 4, LENGTH, LENGTH + 4, ROWS * LENGTH], dtype=torch.int32)
    found = loss(model, input_ids=ids_BT, labels=labels_BT, documents=starts, num_items_in_batch=1)["loss"]
    parts = [ids_BT[:, :4], ids_BT[:, 4:]]
    alone = [loss(model, input_ids=part, labels=part, num_items_in_batch=1)["loss"] for part in parts]
    torch.testing.assert_close(found, sum(alone))


def test_sampled_layouts_keep_documents_apart() -> None:
    base = MLKVForCausalLM.from_shape(SHAPES["opt"], mha(LAYERS, HEADS), seed=2, dtype=torch.float64).eval()
    decoder = torch.nn.Module.to(
        ElasticDecoder(base.model, [mha(LAYERS, HEADS), LAYOUTS["mlkv"]], "mean"), torch.float64
    )
    ids_BT = torch.arange(3 * LENGTH).view(3, LENGTH)
    decoder.chosen = torch.tensor([1, 0, 1])
    together = decoder(ids_BT, documents=starts_of(ids_BT % 5 == 2)).flatten(0, 1)
    for document in spans(starts_of(ids_BT % 5 == 2)):
        decoder.chosen = torch.tensor([1, 0, 1])[[document.start // LENGTH]]
        torch.testing.assert_close(together[document], decoder(ids_BT.flatten()[None, document])[0])


@pytest.mark.parametrize("given", ["attention_mask", "position_ids", "use_cache"])
def test_documents_leave_nothing_to_a_mask_or_a_cache(given: str) -> None:
    ids_BT = torch.zeros(1, LENGTH, dtype=torch.int64)
    other = {given: True if given == "use_cache" else torch.ones_like(ids_BT)}
    with pytest.raises(ValueError, match="documents: say which tokens attend to which"):
        subject("windows")(ids_BT, documents=starts_of(ids_BT > 0), **other)


# The kernel of GPUs


def _by_documents(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    scale: float,
    window_size: list[int],
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """What torch documents of its operation, document by document."""
    longest = int(cu_seq_q.diff().max())
    assert (is_causal, window_size, cu_seq_k.tolist()) == (True, [-1, 0], cu_seq_q.tolist())
    assert min(max_q, max_k) >= longest
    heads = [[each[place].transpose(0, 1)[None] for each in (query, key, value)] for place in spans(cu_seq_q)]
    out = [
        functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=enable_gqa)
        for q, k, v in heads
    ]
    return (
        torch.cat([each[0].transpose(0, 1) for each in out]),
        query.new_zeros(query.shape[1], len(query)),
        query.new_zeros(2, dtype=torch.uint64),
    )


@pytest.fixture
def kernel() -> None:
    """torch's own is for CUDA alone: one for CPUs stands in for it, behind torch's own function."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SINCE:
        pytest.skip(f"torch {torch.__version__} has none for groups of query heads")
    from torch.nn.attention import varlen

    varlen._varlen_attn.register_kernel("cpu")(_by_documents)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("k_heads", "v_heads"), [(4, 4), (2, 2), (1, 1), (2, 4)])
def test_a_kernel_is_told_of_the_documents_that_a_mask_would_show(k_heads: int, v_heads: int) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(ROWS, heads, LENGTH, 8, generator=generator) for heads in (4, k_heads, v_heads))
    starts = starts_of(torch.rand(ROWS, LENGTH, generator=generator) < 0.3)
    expected = attend(q, k, v, Documents(starts).mask(ROWS, LENGTH), 0.3)
    torch.testing.assert_close(attend_in_documents(q, k, v, starts, 0.3), expected)


@pytest.mark.usefixtures("kernel")
def test_a_decoder_gives_documents_to_a_kernel_but_for_windows() -> None:
    model = subject("windows")
    ids_BT = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH)
    starts = starts_of(ids_BT % 5 == 3)
    with torch.no_grad():
        expected = model(ids_BT, documents=starts).logits
        model.model.documents_by_kernel = True
        found = model(ids_BT, documents=starts).logits
        model.model.documents_by_kernel = False
    torch.testing.assert_close(found, expected)


def test_which_decoders_the_kernel_takes() -> None:
    assert not has_kernel(torch.device("cpu"))
    neox, mqa = SHAPES["neox"], LAYOUTS["mqa"]
    assert takes_documents(neox, mqa, bf16=True)
    assert takes_documents(neox, LAYOUTS["kv_apart"], bf16=True)
    assert not takes_documents(neox, mqa, bf16=False)
    for shape in (replace(neox, head_dim=7), replace(neox, head_dim=264), replace(neox, attention_cap=2.0)):
        assert not takes_documents(shape, mqa, bf16=True)
    for name in ("latent", "reads from above"):
        assert not takes_documents(*SUBJECTS[name], bf16=True)


# The recipe


def test_documents_together_are_what_a_step_was_before() -> None:
    together = identity_fields(TrainRecipe(steps=1, documents="together"))
    assert "documents" not in together
    assert identity_fields(APART) == {**together, "documents": "apart"}
    assert replace(APART, efficiency="auto").settled("cpu", 64).attention is None, "a mask has no faster products"


def test_stored_predictions_know_no_documents() -> None:
    with pytest.raises(ValueError, match=r"^teacher_logits = stored: .* set teacher_logits = online$"):
        replace(APART, teacher="base", teacher_logits="stored")
