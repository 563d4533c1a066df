"""A checkpoint is a transformers model like any other: each thing that users do to one gives what transformers' own
model of the family gives with the same weights, and works for layouts that no family has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    pipeline,
)

from mlkv.corpus.tokenizer import train as train_tokenizer
from mlkv.families.config import layout_of, shape_of
from mlkv.families.save import to_family
from mlkv.hf import MLKVForCausalLM, load_checked
from mlkv.layout import KVLayout
from mlkv.shape import DecoderShape
from tests.support.matrix import FAMILY_CONFIGS, LAYERS, LAYOUTS, SHAPES, VOCAB

FAST = ("opt", "gemma2")
"""One with learned positions, and one with windows and caps; the others run with the long tests."""
EVERY_FAMILY = pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=name, marks=() if name in FAST else pytest.mark.long)
        for name, config in FAMILY_CONFIGS.items()
    ],
)
IDS = torch.randint(1, VOCAB, (2, 9), generator=torch.Generator().manual_seed(6))
PADDED = torch.ones_like(IDS)
PADDED[0, :3] = 0
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


def assert_close(own: Any, expected: Any) -> None:
    """Values are up to 5 here, and float32 rounds each layer's."""
    torch.testing.assert_close(own, expected, atol=5e-5, rtol=1e-4)


def shared(shape: DecoderShape = SHAPES["neox"], layout: KVLayout = LAYOUTS["explicit"]) -> MLKVForCausalLM:
    """A model whose readers and owners interleave, which no family can have."""
    return MLKVForCausalLM.from_shape(shape, layout, seed=7).eval()


def pair(config: dict[str, Any]) -> tuple[MLKVForCausalLM, PreTrainedModel]:
    """The same weights as ours and as transformers' own model; none of them are zeros or ones, as biases and norms
    would be."""
    ours = MLKVForCausalLM.from_shape(shape_of(config), layout_of(config), seed=3).eval()
    generator = torch.Generator().manual_seed(4)
    for parameter in ours.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    theirs = to_family(ours, config["model_type"]).eval()
    theirs.set_attn_implementation("eager")
    return ours, theirs


@EVERY_FAMILY
@torch.no_grad()
def test_hidden_states_and_attentions_are_those_of_the_family(config: dict[str, Any]) -> None:
    ours, theirs = pair(config)
    positions = (PADDED.cumsum(-1) - 1).clamp(min=0)
    arguments = {"attention_mask": PADDED, "output_hidden_states": True, "output_attentions": True}
    own, expected = ours(IDS, **arguments), theirs(IDS, position_ids=positions, **arguments)
    assert (len(own.hidden_states), len(own.attentions)) == (LAYERS + 1, LAYERS)
    real = PADDED.bool()
    for one, other in zip(own.hidden_states, expected.hidden_states, strict=True):
        assert_close(one[real], other[real])
    for one, other in zip(own.attentions, expected.attentions, strict=True):
        assert_close(one.transpose(1, 2)[real], other.transpose(1, 2)[real])
    assert_close(own.logits[real], expected.logits[real])


@pytest.mark.parametrize("layout", [LAYOUTS["mqa"], LAYOUTS["explicit"]], ids=["mqa", "explicit"])
@torch.no_grad()
def test_attentions_of_a_reader_are_over_its_owners_keys(layout: KVLayout) -> None:
    subject = shared(layout=layout)
    output = subject(IDS, output_attentions=True)
    assert_close(output.logits, subject(IDS).logits)
    assert all(weights.shape == (2, layout.heads, 9, 9) for weights in output.attentions)
    causal = torch.ones(9, 9).tril()
    for weights in output.attentions:
        assert_close(weights.sum(-1), torch.ones(2, layout.heads, 9))
        assert not (weights * (1 - causal)).any()
    assert subject(IDS).attentions is subject(IDS).hidden_states is None


@torch.no_grad()
def test_a_config_that_asks_for_hidden_states_and_eager_attention_is_followed(tmp_path: Path) -> None:
    shared().save_pretrained(tmp_path)
    subject = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_hidden_states=True, output_attentions=True
    )
    output = subject(IDS)
    assert (len(output.hidden_states), len(output.attentions)) == (LAYERS + 1, LAYERS)
    generated = subject.generate(IDS, return_dict_in_generate=True, output_attentions=True, **GREEDY)
    assert [len(step) for step in generated.attentions] == [LAYERS] * 5
    assert generated.attentions[1][0].shape == (2, 4, 1, 10)


@EVERY_FAMILY
@torch.no_grad()
def test_embeddings_take_the_place_of_ids_as_in_the_family(config: dict[str, Any]) -> None:
    ours, theirs = pair(config)
    embeds = ours.get_input_embeddings()(IDS) + 0.1
    expected = theirs(inputs_embeds=embeds).logits
    assert_close(ours(inputs_embeds=embeds).logits, expected)
    sequences = [m.generate(inputs_embeds=embeds, attention_mask=PADDED, **GREEDY) for m in (ours, theirs)]
    assert torch.equal(*sequences)


def test_ids_and_embeddings_together_or_neither_are_refused() -> None:
    subject = shared()
    for arguments in ({}, {"input_ids": IDS, "inputs_embeds": subject.get_input_embeddings()(IDS)}):
        with pytest.raises(ValueError, match="input_ids or inputs_embeds: one of them"):
            subject(**arguments)


@pytest.mark.parametrize("tokens", [VOCAB + 9, VOCAB - 9])
@pytest.mark.parametrize("shape", [SHAPES["neox"], SHAPES["opt"]], ids=["untied", "tied"])
@torch.no_grad()
def test_a_resized_vocabulary_keeps_its_tokens_and_comes_back(shape: DecoderShape, tokens: int, tmp_path: Path) -> None:
    subject, rows = shared(shape), min(tokens, VOCAB)
    ids = IDS % rows
    before = subject(ids).logits[..., :rows]
    embeddings = subject.resize_token_embeddings(tokens)
    assert embeddings is subject.get_input_embeddings()
    assert embeddings.weight.shape[0] == tokens
    assert subject.config.vocab_size == subject.shape.vocab_size == tokens
    assert (subject.get_output_embeddings().weight is embeddings.weight) is shape.tied
    assert_close(subject(ids).logits[..., :rows], before)
    subject.save_pretrained(tmp_path)
    loaded = load_checked(tmp_path)
    assert torch.equal(loaded(ids).logits, subject(ids).logits)
    assert loaded(torch.tensor([[tokens - 1]]), labels=torch.tensor([[tokens - 1]])).logits.shape[-1] == tokens


def test_embeddings_can_be_replaced() -> None:
    subject = shared()
    for module in (torch.nn.Embedding(VOCAB, 32), torch.nn.Linear(32, VOCAB, bias=False)):
        side = "input" if isinstance(module, torch.nn.Embedding) else "output"
        getattr(subject, f"set_{side}_embeddings")(module)
        assert getattr(subject, f"get_{side}_embeddings")() is module


def test_adapters_of_peft_train_are_saved_loaded_and_merged(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q", "k", "v", "o"], r=2, init_lora_weights=False)
    subject = get_peft_model(shared(), config)
    optimiser = torch.optim.SGD([p for p in subject.parameters() if p.requires_grad], lr=0.1)
    before = subject(input_ids=IDS, labels=IDS).loss
    before.backward()
    optimiser.step()
    after = subject(input_ids=IDS, labels=IDS).loss
    assert after < before
    adapted = {name.split(".lora_")[0] for name, p in subject.named_parameters() if p.grad is not None}
    assert len(adapted) == 2 * LAYERS + 2 * LAYOUTS["explicit"].kv_layers  # q and o of all, k and v of owners
    subject.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(shared(), tmp_path).eval()
    assert torch.equal(loaded(input_ids=IDS).logits, subject(input_ids=IDS).logits)
    sequence = subject.generate(input_ids=IDS, **GREEDY)
    merged = subject.merge_and_unload()
    assert type(merged) is MLKVForCausalLM
    assert torch.equal(merged.generate(IDS, **GREEDY), sequence)
    assert_close(merged(IDS, labels=IDS).loss, after)


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        row = torch.randint(1, VOCAB, (9,), generator=torch.Generator().manual_seed(i % 3))
        return {"input_ids": row, "labels": row}


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def stock_trainer(out: Path, stop_at: int = 6) -> Trainer:
    arguments = TrainingArguments(
        str(out),
        max_steps=6,
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_steps=2,
        eval_steps=2,
        eval_strategy="steps",
        load_best_model_at_end=True,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=1,
    )
    subject = shared()
    return Trainer(subject, arguments, train_dataset=Rows(), eval_dataset=Rows(), callbacks=[StopAt(stop_at)])


@pytest.mark.long
def test_the_stock_trainer_trains_saves_resumes_and_loads_the_best(tmp_path: Path) -> None:
    straight = stock_trainer(tmp_path / "straight")
    straight.train()
    losses = [row["eval_loss"] for row in straight.state.log_history if "eval_loss" in row]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert straight.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)
    stock_trainer(tmp_path / "cut", stop_at=4).train()
    resumed = stock_trainer(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    resumed.save_model(str(tmp_path / "saved"))
    saved = load_checked(tmp_path / "saved")
    for (name, one), other in zip(saved.named_parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_stock_trainer_takes_a_step(tmp_path: Path) -> None:
    trainer = stock_trainer(tmp_path, stop_at=1)
    before = trainer.model.model.norm.weight.clone()
    trainer.train()
    assert not torch.equal(trainer.model.model.norm.weight, before)


def gradients(subject: PreTrainedModel, **arguments: Any) -> dict[str, Tensor]:
    subject.zero_grad()
    subject.train()(IDS, labels=IDS, **arguments).loss.backward()
    return {name: p.grad for name, p in subject.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers ≥ 5.23, about the old name
@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_by_its_old_and_its_new_name_changes_no_gradient(name: str) -> None:
    subject = shared()
    if not hasattr(subject, f"{name}_enable"):
        pytest.skip(f"this transformers has no {name}_enable")
    expected = gradients(subject)
    for kwargs in (None, {"use_reentrant": False}):
        getattr(subject, f"{name}_enable")(**({f"{name}_kwargs": kwargs} if kwargs else {}))
        assert subject.model.gradient_checkpointing
        for use_cache in (False, True, None):
            for key, gradient in gradients(subject, use_cache=use_cache).items():
                assert_close(gradient, expected[key])
        getattr(subject, f"{name}_disable")()
        assert not subject.model.gradient_checkpointing
    with pytest.raises(ValueError, match="use_reentrant = True"):
        getattr(subject, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": True}})


def test_a_filled_cache_under_checkpointing_is_refused_rather_than_left_unread() -> None:
    subject = shared()
    cache = subject(IDS[:, :4]).past_key_values
    subject.train().gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="past_key_values has tokens"):
        subject(IDS[:, 4:], past_key_values=cache)


@EVERY_FAMILY
@torch.no_grad()
def test_a_pass_returns_its_cache_as_the_familys_does(config: dict[str, Any]) -> None:
    ours, theirs = pair(config)
    for subject in (ours, theirs):
        cache = subject(IDS[:, :5]).past_key_values
        assert isinstance(cache, DynamicCache)
        assert cache.get_seq_length() == 5
        rest = subject(IDS[:, 5:], past_key_values=cache).logits
        assert_close(rest, subject(IDS).logits[:, 5:])
        assert subject(IDS, use_cache=False).past_key_values is None


@torch.no_grad()
def test_a_tuple_has_the_same_parts_in_the_same_order_as_the_familys() -> None:
    ours, theirs = pair(FAMILY_CONFIGS["llama"])
    arguments = {"labels": IDS, "use_cache": True, "output_hidden_states": True, "output_attentions": True}
    own, expected = (m(IDS, return_dict=False, **arguments) for m in (ours, theirs))
    assert len(own) == len(expected) == 5
    assert_close(own[:2], expected[:2])
    assert_close(own[3:], expected[3:])
    assert own[2].get_seq_length() == expected[2].get_seq_length()


@EVERY_FAMILY
@torch.no_grad()
def test_a_whole_mask_and_positions_of_the_callers_are_followed(config: dict[str, Any]) -> None:
    """Two texts packed into one row: neither sees the other, and each counts its positions from 0."""
    ours, theirs = pair(config)
    text_T = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    allowed = ((text_T[:, None] == text_T) & torch.ones(9, 9, dtype=torch.bool).tril())[None, None].expand(2, 1, 9, 9)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(2, 9)
    added = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    expected = torch.cat([theirs(IDS[:, :4]).logits, theirs(IDS[:, 4:]).logits], 1)
    for mask in (allowed, added):
        own = ours(IDS, attention_mask=mask, position_ids=positions, output_attentions=True)
        assert_close(own.logits, expected)
        assert_close(ours(IDS, attention_mask=mask, position_ids=positions).logits, expected)


def test_a_checkpoint_loads_in_bfloat16(tmp_path: Path) -> None:
    shared().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded(IDS, output_attentions=True, labels=IDS).attentions[0].dtype == torch.bfloat16


def test_the_text_generation_pipeline_continues_a_text(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog"], 280)
    subject = shared()
    subject.resize_token_embeddings(len(tokenizer))
    subject.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    generate = pipeline("text-generation", model=str(tmp_path), device="cpu")
    text = generate("the quick", max_new_tokens=4, do_sample=False, return_full_text=False)[0]["generated_text"]
    ids = tokenizer("the quick", return_tensors="pt").input_ids
    expected = subject.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=tokenizer.pad_token_id or 0)
    assert text == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("draft", [{"assistant_model": "mqa"}, {"prompt_lookup_num_tokens": 2}], ids=["model", "text"])
def test_drafted_tokens_change_nothing(draft: dict[str, Any]) -> None:
    subject = shared()
    if "assistant_model" in draft:
        draft = {"assistant_model": shared(layout=LAYOUTS[draft["assistant_model"]])}
    assert torch.equal(subject.generate(IDS[:1], **GREEDY, **draft), subject.generate(IDS[:1], **GREEDY))
