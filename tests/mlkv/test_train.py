"""Training: what it learns, whatever a batch is cut into, and how it goes on after a stop or a kill."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from mlkv.context import Interrupted, Outcome, Row, StepFailed
from mlkv.corpus.blocks import Blocks, check_ids, open_blocks
from mlkv.hf import load_checked
from mlkv.shape import DecoderShape
from mlkv.train import step as train
from mlkv.train.arguments import training_arguments
from mlkv.train.dataset import IGNORED, BlockDataset
from mlkv.train.prefetch import PREFETCH
from mlkv.train.schedule import final_loss
from mlkv.training_recipes import TrainRecipe
from tests.support.processes import PATIENCE
from tests.support.read_back import present
from tests.support.tiny import SHAPE, context, make_corpus, start_python

RECIPE = TrainRecipe(steps=12, batch_size=4, lr=3e-3, precision="fp32", log_every=2, save_every=4)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), task_items=0)


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("padded"), task_items=0, packing="whole_documents", snippets=True)


def go(
    folder: Path,
    corpus: Path,
    recipe: TrainRecipe = RECIPE,
    rows: list[Row] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Base training in `folder`, which may hold an earlier attempt's work."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    ctx = context(folder / "work", rows, stop or (lambda: False))
    return train.run(recipe, folder / "out", ctx, corpus=corpus, start=None, shape=SHAPE)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "model.safetensors")


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    go(folder, corpus)
    return folder


# Data


@pytest.fixture(scope="module")
def blocks(padded: Path) -> Blocks:
    return open_blocks(padded, "train")


def test_order_is_a_fresh_permutation_for_each_epoch_and_seed(blocks: Blocks) -> None:
    n = len(blocks.rows)
    first, other = (BlockDataset(blocks, 2 * n, seed) for seed in (1, 2))
    order = [[tuple(first[i].tolist()) for i in range(start, start + n)] for start in (0, n)]
    assert sorted(order[0]) == sorted(order[1]) == sorted(map(tuple, blocks.rows.astype(int).tolist()))
    assert order[0] != order[1]
    assert order[0] != [tuple(other[i].tolist()) for i in range(n)]
    assert order[0][3] == tuple(BlockDataset(blocks, n, 1)[3].tolist())


def test_padding_and_first_tokens_are_left_out_of_the_loss(blocks: Blocks) -> None:
    dataset = BlockDataset(blocks, 16, 0)
    batch = dataset.collate([dataset[i] for i in range(16)])
    rows_BT = torch.stack([dataset[i] for i in range(16)])
    assert (rows_BT == blocks.padding).any()
    assert ((batch["labels"] == IGNORED)[:, 1:] == (rows_BT == blocks.padding)[:, 1:]).all()
    assert (batch["labels"][:, 0] == IGNORED).all()
    assert batch["input_ids"].max() < SHAPE.vocab_size


def test_a_document_begins_with_the_end_of_text_before_it(blocks: Blocks) -> None:
    dataset, together = (BlockDataset(blocks, 16, 0, apart=apart) for apart in (True, False))
    rows_BT = torch.stack([dataset[i] for i in range(16)])
    batch = dataset.collate(list(rows_BT))
    flat, length = rows_BT.flatten(), rows_BT.shape[1]
    expected = [i for i in range(len(flat)) if i % length == 0 or flat[i] == blocks.end_of_text]
    assert len(expected) > 16
    assert batch.pop("documents").tolist() == [*expected, len(flat)]
    assert all(torch.equal(value, batch[name]) for name, value in together.collate(list(rows_BT)).items())


# Training


def test_training_learns_and_leaves_a_checkpoint_with_its_tokenizer(corpus: Path, tmp_path: Path) -> None:
    logged: list[Row] = []
    result = go(tmp_path, corpus, replace(RECIPE, steps=40), logged)
    losses = [row["loss"] for row in logged]
    assert losses[-1] < losses[0] - 0.5
    assert [row["step"] for row in logged] == list(range(2, 41, 2))
    assert [row["tokens"] for row in logged] == pytest.approx([step * 4 * 96 for step in range(2, 41, 2)], rel=0.01)
    assert all(row["steps"] == 40 and row["tokens_per_second"] > 0 for row in logged)
    metrics = {row.metric: row.value for row in result.metrics}
    assert metrics["train_loss"] == pytest.approx(np.mean(losses[-2:]))
    assert present(metrics["tokens_per_second"]) > 0
    model = load_checked(tmp_path / "out")
    assert model.dtype == torch.float32
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (corpus / "tokenizer" / "tokenizer.json").read_bytes()
    assert result.facts == {
        "parameters": SHAPE.parameters(model.layout),
        "trained_parameters": SHAPE.parameters(model.layout),
        "steps": 40,
        "tokens": result.facts["tokens"],
        "precision": "fp32",
        "device": result.facts["device"],
        "devices": 1,
        "threads": 1,
        "unstable": False,
        "spikes": [],
    }


def test_a_trained_checkpoint_answers_with_a_cache_as_others_do(undisturbed: Path) -> None:
    assert load_checked(undisturbed / "out")(torch.tensor([[1, 2]])).past_key_values is not None


def test_uptraining_starts_from_the_checkpoint(corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    tiny_lr = replace(RECIPE, steps=1, lr=1e-12, weight_decay=0.0)
    (tmp_path / "out").mkdir()
    train.run(tiny_lr, tmp_path / "out", context(tmp_path / "work"), corpus=corpus, start=undisturbed / "out")
    before, after = weights(undisturbed), weights(tmp_path)
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)


def test_uptraining_keeps_the_generation_config_in_all_that_it_saves(
    corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    start, work = tmp_path / "start", tmp_path / "work"
    shutil.copytree(undisturbed / "out", start)
    settings = {"eos_token_id": [3, 5], "temperature": 0.7}  # without do_sample the temperature is ignored, and kept
    (start / "generation_config.json").write_text(json.dumps(settings))
    (tmp_path / "out").mkdir()
    train.run(RECIPE, tmp_path / "out", context(work), corpus=corpus, start=start)
    saved = [tmp_path / "out", *work.glob("checkpoint-*")]
    assert len(saved) == 2
    for folder in saved:
        written = json.loads((folder / "generation_config.json").read_text())
        assert {name: written.get(name) for name in settings} == settings


def test_the_same_run_gives_the_same_bits_and_another_seed_does_not(
    corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    go(tmp_path / "again", corpus)
    go(tmp_path / "other", corpus, replace(RECIPE, seed=7))
    assert_equal(weights(tmp_path / "again"), weights(undisturbed))
    assert not torch.equal(
        weights(tmp_path / "other")["model.embed.weight"], weights(undisturbed)["model.embed.weight"]
    )


@pytest.mark.long
def test_how_a_batch_is_computed_does_not_change_what_comes_out(padded: Path, tmp_path: Path) -> None:
    one_step = replace(RECIPE, steps=3, batch_size=8, eps=1e-4)
    go(tmp_path / "whole", padded, one_step)
    go(tmp_path / "parts", padded, replace(one_step, micro_batch=2))
    go(tmp_path / "checkpointed", padded, replace(one_step, gradient_checkpointing=True))
    whole = weights(tmp_path / "whole")
    for other in ("parts", "checkpointed"):
        for name, value in weights(tmp_path / other).items():
            assert torch.allclose(value, whole[name], atol=2e-5), (other, name)


def test_bf16_trains_and_its_checkpoint_is_fp32(corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    result = go(tmp_path, corpus, replace(RECIPE, precision="bf16"))
    assert result.facts["precision"] == "bf16"
    assert all(value.dtype == torch.float32 for value in weights(tmp_path).values())
    assert not torch.equal(weights(tmp_path)["model.embed.weight"], weights(undisturbed)["model.embed.weight"])


def test_a_diverging_run_fails_with_step_and_value(corpus: Path, tmp_path: Path) -> None:
    wild = replace(RECIPE, steps=20, lr=1e30, grad_clip=0.0, warmup=0.0)
    with pytest.raises(StepFailed, match=r"= (nan|inf) at step \d+: training diverged; lower lr"):
        go(tmp_path, corpus, wild)


def spoiled(undisturbed: Path, folder: Path, value: float) -> Path:
    """A checkpoint, one of whose weights is `value`."""
    shutil.copytree(undisturbed / "out", folder)
    state = load_file(folder / "model.safetensors")
    state["model.blocks.0.mlp.up.weight"][1, 2] = value
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_start_that_is_not_finite_is_named_and_not_the_training(
    corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    start = spoiled(undisturbed, tmp_path / "start", math.nan)
    with pytest.raises(StepFailed, match=r"start: weight model.blocks.0.mlp.up.weight is not finite \(1 of its"):
        train.run(RECIPE, tmp_path, context(tmp_path), corpus=corpus, start=start)
    huge = spoiled(undisturbed, tmp_path / "huge", 3e38)
    with pytest.raises(StepFailed, match="before the first update: the start computes nothing finite"):
        train.run(replace(RECIPE, steps=2), tmp_path, context(tmp_path), corpus=corpus, start=huge)


def test_weights_that_the_last_update_spoiled_are_never_saved(corpus: Path, tmp_path: Path) -> None:
    wild = replace(RECIPE, steps=1, lr=1e39, grad_clip=0.0, warmup=0.0)
    with pytest.raises(
        StepFailed, match=r"weight model\.\S+ is not finite .* after step 1: training diverged; lower lr"
    ):
        go(tmp_path, corpus, wild)
    assert not [*tmp_path.rglob("*.safetensors")]


@pytest.mark.parametrize(("shape", "most"), [(replace(SHAPE, context=64), 64), (replace(SHAPE, vocab_size=300), 300)])
def test_a_corpus_the_model_cannot_take_is_refused(
    corpus: Path, tmp_path: Path, shape: DecoderShape, most: int
) -> None:
    with pytest.raises(StepFailed, match=rf"= \d+: the model takes {most} at most"):
        train.run(RECIPE, tmp_path, context(tmp_path), corpus=corpus, start=None, shape=shape)


def test_ids_without_an_embedding_count_only_where_the_text_uses_them() -> None:
    rows = np.full((5000, 4), 65535, np.uint16)
    rows[:, :3] = 299
    check_ids(Blocks(rows, 15_000), vocab_size=512, known=300)
    rows[4999, 1] = 300
    check_ids(Blocks(rows, 15_000), vocab_size=301, known=301)
    with pytest.raises(
        StepFailed, match=r"^corpus token = 300: the model takes 300 at most \(its vocab_size; .* 512\)$"
    ):
        check_ids(Blocks(rows, 15_000), vocab_size=512, known=300)


# Going on


def stop_at(logged: list[Row], step: int) -> Callable[[], bool]:
    return lambda: bool(logged) and logged[-1]["step"] >= step


def test_a_stopped_run_goes_on_bit_for_bit(corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    logged: list[Row] = []
    with pytest.raises(Interrupted, match="stopped after step 7 of 12"):
        go(tmp_path, corpus, rows=logged, stop=stop_at(logged, 6))
    assert [path.name for path in (tmp_path / "work").glob("checkpoint-*")] == ["checkpoint-7"]
    go(tmp_path, corpus, rows=logged)
    assert_equal(weights(tmp_path), weights(undisturbed))
    steps = [row["step"] for row in logged]
    assert steps == sorted(set(steps))


@pytest.mark.long
def test_batches_that_another_process_makes_are_the_same(
    padded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, with documents apart: bit for bit, through a stop, and whatever signals a queue sends to all."""
    recipe = replace(RECIPE, documents="apart", micro_batch=2)
    go(tmp_path / "here", padded, recipe)
    monkeypatch.setattr("mlkv.train.trainer.training_arguments", with_prefetch)
    logged: list[Row] = []

    def stop_at_6() -> bool:
        (worker,) = multiprocessing.active_children()
        subprocess.run([sys.executable, "-c", SIGNALS, str(worker.pid)], check=True)
        return bool(logged) and logged[-1]["step"] >= 6

    with pytest.raises(Interrupted, match="stopped after step 7 of 12"):
        go(tmp_path / "there", padded, recipe, logged, stop_at_6)
    go(tmp_path / "there", padded, recipe)
    assert_equal(weights(tmp_path / "there"), weights(tmp_path / "here"))
    go(tmp_path / "together", padded, replace(recipe, documents="together"))
    first, second = (weights(tmp_path / name)["model.embed.weight"] for name in ("here", "together"))
    assert not torch.equal(first, second)


SIGNALS = """
import os, signal, sys
for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
    os.kill(int(sys.argv[1]), number)
"""


@pytest.mark.long
def test_a_failed_training_does_not_wait_for_the_process_that_makes_batches(corpus: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mlkv.train import trainer\n"
        "from tests.mlkv import test_train as t\n"
        "trainer.training_arguments = t.with_prefetch\n"
        "t.go(Path(sys.argv[1]), Path(sys.argv[2]), stop=lambda: 1 / 0)"
    )
    process = start_python(code, tmp_path, corpus)
    output, _ = process.communicate(timeout=PATIENCE)
    assert output.rstrip().endswith("ZeroDivisionError: division by zero")
    assert process.returncode == 1


def with_prefetch(*given: Any, **named: Any) -> TrainingArguments:
    return replace(training_arguments(*given, **named), **PREFETCH)


@pytest.mark.long
def test_a_resumed_run_remembers_its_losses(corpus: Path, tmp_path: Path) -> None:
    first: list[Row] = []
    with pytest.raises(Interrupted):
        go(tmp_path, corpus, rows=first, stop=stop_at(first, 10))
    second: list[Row] = []
    result = go(tmp_path, corpus, rows=second)
    losses = [(row["step"], row["loss"]) for row in first + second]
    assert result.metrics[0].value == pytest.approx(final_loss(losses))


def test_leftovers_of_a_torn_checkpoint_are_never_loaded(corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    torn = tmp_path / "work" / "staging" / "checkpoint-8"
    torn.mkdir(parents=True)
    (torn / "trainer_state.json").write_text('{"global_step": 8')
    logged: list[Row] = []
    go(tmp_path, corpus, rows=logged)
    assert logged[0]["step"] == 2, "training began anew"
    assert_equal(weights(tmp_path), weights(undisturbed))


def test_a_checkpoint_that_lacks_a_weight_is_refused(corpus: Path, tmp_path: Path) -> None:
    logged: list[Row] = []
    with pytest.raises(Interrupted):
        go(tmp_path, corpus, rows=logged, stop=stop_at(logged, 4))
    (path,) = (tmp_path / "work").glob("checkpoint-*/model.safetensors")
    weights = load_file(path)
    del weights["model.head.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing keys: model\.head\.weight"):
        go(tmp_path, corpus)


VICTIM = """
import json, sys
from pathlib import Path
from tests.support.tiny import SHAPE
from mlkv.train import step as train
from mlkv.context import Context
from mlkv.training_recipes import TrainRecipe
folder, corpus = Path(sys.argv[1]), Path(sys.argv[2])
(folder / "out").mkdir(parents=True, exist_ok=True)
def log(row):
    print(json.dumps(row), flush=True)
train.run(TrainRecipe(**json.loads(sys.argv[3])), folder / "out", Context(folder / "work", log),
          corpus=corpus, start=None, shape=SHAPE)
"""


def last_step(process: subprocess.Popen[str], until: int) -> int:
    """The step of the first logged row at or after `until`; -1 if the process ended before."""
    for line in present(process.stdout):
        if line.startswith("{") and (step := int(json.loads(line)["step"])) >= until:
            return step
    return -1


@pytest.mark.long
def test_a_killed_run_goes_on_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=60, log_every=1, save_every=3)
    given = json.dumps({"steps": 60, "batch_size": 4, "lr": 3e-3, "precision": "fp32", "log_every": 1, "save_every": 3})
    go(tmp_path / "undisturbed", corpus, recipe)
    for until, delay in ((5, 0.0), (20, 0.02), (33, 0.013)):
        process = start_python(VICTIM, tmp_path / "killed", corpus, given)
        assert last_step(process, until) >= until
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        present(process.stdout).close()
    logged: list[Row] = []
    go(tmp_path / "killed", corpus, recipe, logged)
    assert logged[0]["step"] > 30, "the last attempt went on from a checkpoint"
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "undisturbed"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes would share one GPU")
def test_two_processes_share_the_batch_and_only_the_first_logs_and_saves(padded: Path, tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "steps": 3,
        "batch_size": 8,
        "lr": 3e-3,
        "precision": "fp32",
        "log_every": 1,
        "eps": 1e-4,
        "save_every": 2,
    }
    go(tmp_path / "one", padded, TrainRecipe(**recipe))
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        os.symlink(tmp_path / "work", tmp_path / rank / "work")
    (tmp_path / "work").mkdir()
    for rank in ("0", "1"):
        started = start_python(VICTIM, tmp_path / rank, padded, json.dumps(recipe), RANK=rank, LOCAL_RANK=rank, **group)
        processes.append(started)
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0].count('"tokens_per_second"') == 3
    assert '"tokens_per_second"' not in outputs[1]
    assert not list((tmp_path / "1" / "out").iterdir())
    assert [path.name for path in (tmp_path / "work").glob("checkpoint-*")] == ["checkpoint-2"]
    one = weights(tmp_path / "one")
    for name, value in weights(tmp_path / "0").items():
        assert torch.allclose(value, one[name], atol=2e-5), name


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 16))
def test_a_batch_is_shared_evenly_in_parts_no_larger_than_asked_or_not_at_all(
    batch: int, micro: int, processes: int
) -> None:
    if batch % micro:
        micro = batch
    recipe = TrainRecipe(steps=1, batch_size=batch, micro_batch=micro)
    try:
        size = recipe.micro_batch_size(processes)
    except ValueError:
        share, rest = divmod(batch, processes)
        assert rest or not share or share % min(micro, share)
    else:
        assert 1 <= size <= micro
        assert batch % (size * processes) == 0


def test_a_training_that_ends_early_leaves_nothing_unfinished(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(StepFailed):
        go(tmp_path, corpus, replace(RECIPE, lr=1e30, warmup=0.0))
    assert [path.name for path in (tmp_path / "work").iterdir() if path.name.startswith("staging")] == []
