"""Distillation: what is learned from a teacher, asked at every step or stored before, and that all else stays as in any
training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.distributions import Categorical
from torch.distributions import kl_divergence as reference_kl
from torch.nn import functional

from mlkv.context import Interrupted, Outcome, Row, StepFailed
from mlkv.convert.step import convert
from mlkv.corpus.blocks import open_blocks
from mlkv.hf import MLKVForCausalLM, load_checked
from mlkv.layout import KVLayout, mha
from mlkv.recipes import ConvertRecipe
from mlkv.train import step as train
from mlkv.train import teacher as teacher_module
from mlkv.train.distillation import Distillation, bucketed_kl, hidden_error, kl_divergence
from mlkv.train.teacher import StoredTeacher, TaughtDataset, largest
from mlkv.train.teacher import run as store_teacher
from mlkv.training_recipes import TeacherRecipe, TrainRecipe
from tests.support.blocks import write_blocks
from tests.support.matrix import HEADS, LAYERS, LAYOUTS, SHAPES, VOCAB
from tests.support.tiny import SHAPE, context

RECIPE = TrainRecipe(
    steps=6, batch_size=4, lr=3e-3, precision="fp32", log_every=2, save_every=3, eps=1e-4, teacher="base"
)
STORED = replace(RECIPE, teacher_logits="stored")
VARIED = replace(RECIPE, temperature=2.0, distill_weight=0.7, hidden_weight=0.5)


def logits(seed: int, *sizes: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The losses of one token


def test_the_divergence_is_that_of_the_two_distributions() -> None:
    student, teacher = logits(1, 5, 30), logits(2, 5, 30)
    expected = reference_kl(Categorical(logits=teacher), Categorical(logits=student))
    torch.testing.assert_close(kl_divergence(student, teacher), expected)
    assert kl_divergence(teacher, teacher).abs().max() < 1e-15
    assert torch.autograd.gradcheck(lambda x: kl_divergence(x, teacher), (student.requires_grad_(),))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 40), st.floats(0.01, 20), st.data())
def test_a_bucket_hides_less_the_more_tokens_are_known_and_nothing_where_all_are(
    seed: int, vocabulary: int, scale: float, data: st.DataObject
) -> None:
    student, teacher = logits(seed, 3, vocabulary, scale=scale), logits(seed + 1, 3, vocabulary, scale=scale)
    few, more = sorted(data.draw(st.lists(st.integers(1, vocabulary), min_size=2, max_size=2)))
    full = kl_divergence(student, teacher)
    known = [bucketed_kl(student, *largest(teacher, top_k)) for top_k in (few, more, vocabulary)]
    for less, most in zip(known, [*known[1:], full], strict=True):
        assert (less <= most + 1e-12 * (1 + most)).all()
    torch.testing.assert_close(known[-1], full)
    assert (known[0] >= -1e-12).all()


def test_what_is_stored_of_a_distribution_is_its_largest_shares_and_the_rest() -> None:
    shares = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    ids, log_p = largest(shares.log(), 2)
    assert ids.tolist() == [1, 3]
    torch.testing.assert_close(log_p.exp(), torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64))
    student = logits(3, 4).softmax(-1)
    merged = torch.stack([student[1], student[3], student[0] + student[2]])
    expected = reference_kl(Categorical(probs=log_p.exp()), Categorical(probs=merged))
    torch.testing.assert_close(bucketed_kl(student.log(), ids, log_p), expected)
    given_logits = student.log().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: bucketed_kl(x, ids, log_p), (given_logits,))


def test_the_default_bucket_is_within_a_hundredth_of_the_divergence_that_a_conversion_opens() -> None:
    """On predictions as spread out as those of the quickstart's base, which gives 1.3 % to the less likely half of its
    2,048 tokens."""
    teacher = logits(1, 64, 2048, scale=2.2)
    student = teacher + logits(2, 64, 2048, scale=0.5)
    ids, log_p = largest(teacher, TeacherRecipe().top_k)
    assert log_p[:, -1].exp().mean() == pytest.approx(0.013, abs=0.002)
    rounded = log_p.half().double().log_softmax(-1)  # as it is read from the disk
    full, known = kl_divergence(student, teacher).mean(), bucketed_kl(student, ids, rounded).mean()
    assert 0 < (full - known) / full < 0.02


def test_the_hidden_loss_is_the_share_of_the_states_that_is_wrong() -> None:
    right = [torch.ones(1, 2, 4), torch.full((1, 2, 4), 10.0)]
    wrong = [torch.zeros(1, 2, 4), torch.full((1, 2, 4), 10.0)]
    torch.testing.assert_close(hidden_error(wrong, right), torch.full((1, 2), 0.5))


# The loss of a batch


def models(shape: str, layout: KVLayout = LAYOUTS["mqa"]) -> tuple[MLKVForCausalLM, MLKVForCausalLM]:
    base = MLKVForCausalLM.from_shape(SHAPES[shape], mha(LAYERS, HEADS), seed=11)
    for parameter in base.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4))
    return convert(base, layout, ConvertRecipe()), base.eval().requires_grad_(False)


IDS = torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(5))
LABELS = IDS.masked_fill(torch.arange(12) > torch.tensor([[8], [11]]), -100)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_family_learns_what_its_base_predicts(shape: str) -> None:
    student, base = models(shape)
    found = Distillation(VARIED, base, "fp32")(student, input_ids=IDS, labels=LABELS)["loss"]
    states: dict[str, list[Tensor]] = {"student": [], "base": []}
    for name, model in (("student", student), ("base", base)):
        for block in model.model.blocks:
            block.register_forward_hook(lambda _b, _i, out, own=states[name]: own.append(out[0].double()))
    own, theirs = student(IDS).logits.double()[:, :-1], base(IDS).logits.double()[:, :-1]
    kl = reference_kl(Categorical(logits=theirs / 2), Categorical(logits=own / 2))
    hidden = sum(
        ((s - t) ** 2).sum(-1) / (t**2).sum(-1) for s, t in zip(states["student"], states["base"], strict=True)
    )
    entropy = functional.cross_entropy(own.transpose(1, 2), LABELS[:, 1:], reduction="none", ignore_index=-100)
    each = 0.7 * 4 * kl + 0.3 * entropy + 0.5 * torch.as_tensor(hidden)[:, :-1] / LAYERS
    expected = each[LABELS[:, 1:] != -100].mean()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    found.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in base.parameters())


def test_without_weight_on_the_teacher_it_is_the_plain_loss_of_a_part_of_a_batch() -> None:
    student, base = models("neox")
    given = {"input_ids": IDS, "labels": LABELS, "num_items_in_batch": torch.tensor(50)}
    found = Distillation(replace(RECIPE, distill_weight=0.0), base, "fp32")(student, **given)["loss"]
    torch.testing.assert_close(found, student(**given).loss)


def test_bf16_computes_the_loss_in_fp32() -> None:
    student, base = models("neox")
    with torch.autocast("cpu", torch.bfloat16):
        loss = Distillation(RECIPE, base, "bf16")(student, input_ids=IDS, labels=LABELS)["loss"]
        own, theirs = student(IDS).logits[:, :-1].float(), base(IDS).logits[:, :-1].float()
    expected = kl_divergence(own, theirs)[LABELS[:, 1:] != -100].mean()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


# Runs


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, some of whose rows are padded."""
    return write_blocks(tmp_path_factory.mktemp("padded"), 40, 96, 512, padded=True)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, and what a conversion made of it."""
    folder = tmp_path_factory.mktemp("start")
    base = MLKVForCausalLM.from_shape(replace(SHAPE, init_std=0.2), mha(SHAPE.layers, SHAPE.heads), seed=1)
    base.save_pretrained(folder / "base")
    convert(base, KVLayout((0, 0), (1,), SHAPE.heads), ConvertRecipe()).save_pretrained(folder / "converted")
    return {"base": folder / "base", "converted": folder / "converted"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, start: dict[str, Path], padded: Path) -> Path:
    """What the base predicts on ten rows; a run of six steps of four needs more."""
    folder = tmp_path_factory.mktemp("stored")
    store_teacher(
        TeacherRecipe(top_k=40, tokens=960, precision="fp32"),
        folder,
        context(folder),
        base=start["base"],
        corpus=padded,
    )
    return folder


def go(
    folder: Path,
    recipe: TrainRecipe,
    corpus: Path,
    start: Path,
    teacher: Path,
    rows: list[Row] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    ctx = context(folder / "work", rows, stop)
    return train.run(recipe, folder / "out", ctx, corpus=corpus, start=start, teacher=teacher)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "out" / "model.safetensors")


def equal(one: Path, other: Path, tolerance: float = 0.0) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(
        torch.allclose(first[name], second[name], rtol=0, atol=tolerance) for name in first
    )


def test_a_stopped_run_goes_on_bit_for_bit_and_logs_what_its_loss_is_made_of(
    padded: Path, start: dict[str, Path], tmp_path: Path
) -> None:
    rows: list[Row] = []
    given = VARIED, padded, start["converted"], start["base"]
    outcome = go(tmp_path / "whole", *given, rows)
    for row in rows:
        expected = 0.7 * row["kl"] + 0.3 * row["cross_entropy"] + 0.5 * row["hidden"]
        assert row["loss"] == pytest.approx(expected, rel=1e-5)
    assert rows[-1]["kl"] < 0.9 * rows[0]["kl"]
    found = {row.metric: row.value for row in outcome.metrics}
    assert found["train_kl"] == pytest.approx(rows[-1]["kl"])
    assert found["train_cross_entropy"] == pytest.approx(rows[-1]["cross_entropy"])
    assert (outcome.facts["teacher"], outcome.facts["teacher_logits"]) == ("base", "online")
    again: list[Row] = []
    with pytest.raises(Interrupted):
        go(tmp_path / "stopped", *given, again, lambda: bool(again))
    resumed = go(tmp_path / "stopped", *given, again)
    assert equal(tmp_path / "stopped", tmp_path / "whole")
    assert [row["step"] for row in again] == [2, 3, 4, 6]
    assert resumed.metrics[:4] == outcome.metrics[:4]


def test_how_a_batch_is_computed_changes_nothing(
    padded: Path, start: dict[str, Path], stored: Path, tmp_path: Path
) -> None:
    given = padded, start["converted"], stored
    rows: tuple[list[Row], list[Row]] = [], []
    go(tmp_path / "whole", STORED, *given, rows[0])
    outcome = go(tmp_path / "parts", replace(STORED, micro_batch=1, gradient_checkpointing=True), *given, rows[1])
    assert equal(tmp_path / "parts", tmp_path / "whole", 2e-5)
    for whole, parts in zip(*rows, strict=True):
        assert [whole[name] for name in ("loss", "kl", "cross_entropy")] == pytest.approx(
            [parts[name] for name in ("loss", "kl", "cross_entropy")], rel=1e-4
        )
    assert (outcome.facts["teacher_rows"], outcome.facts["teacher_top_k"]) == (10, 40)


def test_a_model_that_is_its_own_teacher_stays_what_it_is(padded: Path, start: dict[str, Path], tmp_path: Path) -> None:
    rows: list[Row] = []
    recipe = replace(RECIPE, steps=3, weight_decay=0.0, eps=1e-8)
    go(tmp_path, recipe, padded, start["base"], start["base"], rows)
    assert all(abs(row["kl"]) < 1e-7 for row in rows)
    own, base = weights(tmp_path), load_file(start["base"] / "model.safetensors")
    assert own.keys() == base.keys(), "the teacher is not in the checkpoint"
    assert all(torch.equal(own[name], base[name]) for name in own)


def test_another_model_is_no_teacher(padded: Path, start: dict[str, Path], tmp_path: Path) -> None:
    shape = replace(SHAPE, vocab_size=600)
    MLKVForCausalLM.from_shape(shape, mha(shape.layers, shape.heads), seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(StepFailed, match=r"teacher = base: its vocab_size is 600, and that of the run .* 512"):
        go(tmp_path, RECIPE, padded, start["converted"], tmp_path / "other")


# Stored predictions


def test_what_is_stored_is_what_the_base_predicts(padded: Path, start: dict[str, Path], stored: Path) -> None:
    read, base = StoredTeacher.open(stored), load_checked(start["base"]).eval()
    corpus_rows = {row.tobytes() for row in open_blocks(padded, "train").rows}
    assert len(read.blocks.rows) == 10
    assert all(row.tobytes() in corpus_rows for row in read.blocks.rows)
    assert read.ids is not None
    for tokens, ids, log_probs in zip(read.blocks.rows, read.ids, read.log_probs, strict=True):
        fed = torch.from_numpy(np.where(tokens == read.blocks.padding, 0, tokens).astype(np.int64))
        with torch.no_grad():
            expected_ids, expected = largest(base(fed[None]).logits[0, :-1], 40)
        known = torch.from_numpy(log_probs.astype(np.float32))
        torch.testing.assert_close(known, expected, rtol=1e-3, atol=1e-3)
        assert (torch.from_numpy(ids.astype(np.int64)) == expected_ids).float().mean() > 0.99
    assert 0.3 < read.sizes.rest < 0.95


def test_all_tokens_stored_are_the_online_teacher(padded: Path, start: dict[str, Path], tmp_path: Path) -> None:
    for name in ("all", "run"):
        (tmp_path / name).mkdir()
    recipe = TeacherRecipe(top_k=10_000, tokens=960, precision="fp32")
    store_teacher(recipe, tmp_path / "all", context(tmp_path), base=start["base"], corpus=padded, temperature=2.0)
    read, (student, base) = StoredTeacher.open(tmp_path / "all"), map(load_checked, (start["converted"], start["base"]))
    assert read.ids is None
    dataset = TaughtDataset(read, 4, 1)
    batch = dataset.collate([dataset[i] for i in range(4)])
    asked = Distillation(replace(RECIPE, temperature=2.0), base.eval(), "fp32")
    known = Distillation(replace(STORED, temperature=2.0), read, "fp32")
    fed = {name: batch[name] for name in ("input_ids", "labels")}
    with torch.no_grad():
        torch.testing.assert_close(known(student, **batch)["loss"], asked(student, **fed)["loss"], rtol=1e-3, atol=0)


def test_a_run_goes_through_the_stored_rows_again_and_again(stored: Path) -> None:
    dataset, rows = TaughtDataset(StoredTeacher.open(stored), 20, seed=1), []
    for i in range(20):
        tokens, ids, log_probs = dataset[i]
        rows.append(tokens.numpy().tobytes())
        assert ids is not None
        assert (ids.shape, log_probs.shape) == ((95, 40), (95, 41))
    assert sorted(rows[:10]) == sorted(rows[10:])
    assert len(set(rows)) == 10
    other = TaughtDataset(StoredTeacher.open(stored), 20, seed=2)
    assert [other[i].tokens.numpy().tobytes() for i in range(10)] != rows[:10]


def test_the_rows_depend_on_the_seed_of_the_teacher_alone(padded: Path, start: dict[str, Path], tmp_path: Path) -> None:
    kept = []
    for seed, size in ((1, 8), (1, 3), (2, 8)):
        out = tmp_path / f"{seed}-{size}"
        out.mkdir()
        recipe = TeacherRecipe(top_k=4, tokens=500, seed=seed, batch_size=size, precision="fp32")
        facts = store_teacher(recipe, out, context(tmp_path), base=start["base"], corpus=padded).facts
        kept.append((out / "rows.bin").read_bytes())
        written = sum(path.stat().st_size for path in out.glob("*.bin"))
        assert facts["bytes"] == written == 6 * recipe.row_bytes(96, 512)
    assert kept[0] == kept[1] != kept[2]


def test_a_teacher_that_cannot_be_stored_says_why(
    padded: Path, start: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, base = TeacherRecipe(tokens=5), start["base"]
    with pytest.raises(Interrupted, match="stopped after 0 of 1 rows"):
        store_teacher(recipe, tmp_path, context(tmp_path, should_stop=lambda: True), base=base, corpus=padded)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(StepFailed, match=r"teacher.top_k = 1024: 1 rows take 0.0 GB, and .*; lower teacher.top_k or"):
        store_teacher(recipe, tmp_path, context(tmp_path), base=base, corpus=padded)


@pytest.mark.parametrize("name", ["teacher.json", "ids.bin", "log_probs.bin", "rows.bin"])
def test_a_damaged_store_of_predictions_is_refused(
    name: str, padded: Path, start: dict[str, Path], stored: Path, tmp_path: Path
) -> None:
    shutil.copytree(stored, tmp_path / "torn")
    (tmp_path / "torn" / name).write_bytes((stored / name).read_bytes()[:-5])
    with pytest.raises(StepFailed, match=rf"teacher = .*: {name}"):
        go(tmp_path, STORED, padded, start["converted"], tmp_path / "torn")


def test_predictions_at_another_temperature_are_refused(
    padded: Path, start: dict[str, Path], stored: Path, tmp_path: Path
) -> None:
    with pytest.raises(StepFailed, match=r"its temperature is 1.0, and that of the run .* 2.0"):
        go(tmp_path, replace(STORED, temperature=2.0), padded, start["converted"], stored)
    assert json.loads((stored / "teacher.json").read_text())["temperature"] == 1.0
    assert teacher_module.SIZES == "teacher.json"
