"""What `train` = kv and lora change of a model, and what they leave."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from mlkv.context import Interrupted, Outcome, Row
from mlkv.families.config import shape_of
from mlkv.hf import MLKVForCausalLM, load_checked
from mlkv.layout import KVLayout
from mlkv.train import step as train
from mlkv.train.adapters import choose_trained, merge, trained
from mlkv.train.trunk import FOLDER
from mlkv.training_recipes import TrainRecipe
from tests.support.matrix import FAMILY_CONFIGS, LATER, LAYOUTS, VOCAB
from tests.support.tiny import SHAPE, context, make_corpus

RANK = 2
RECIPE = TrainRecipe(
    steps=4, batch_size=4, lr=1e-2, precision="fp32", log_every=1, save_every=9, lora_rank=RANK, lora_alpha=3.0
)
SHARED = KVLayout((0, 0), (1,), 2)
"""Of two layers the second reads the keys and values of the first."""


def part(train: Literal["all", "kv", "lora"]) -> TrainRecipe:
    return replace(RECIPE, train=train)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), task_items=0)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    MLKVForCausalLM.from_shape(replace(SHAPE, kv_norm=True), SHARED, seed=0).save_pretrained(folder)
    return folder


def go(
    folder: Path,
    corpus: Path,
    start: Path,
    recipe: TrainRecipe,
    shorter: Path | None = None,
    stop: Callable[[list[Row]], bool] = lambda rows: False,
) -> Outcome:
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    rows: list[Row] = []
    ctx = context(folder / "work", rows, lambda: stop(rows))
    shorter = shorter and shorter / "out"
    return train.run(recipe, folder / "out", ctx, corpus=corpus, start=start, shorter=shorter)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(folder: Path, start: Path) -> set[str]:
    before, after = weights(start), weights(folder / "out")
    assert before.keys() == after.keys(), "an ordinary checkpoint"
    return {name.removeprefix("model.") for name in before if not torch.equal(before[name], after[name])}


PROJECTIONS = {f"blocks.0.attention.{part}.weight" for part in "qkvo"} | {
    f"blocks.1.attention.{part}.weight" for part in "qo"
}
KEYS_AND_VALUES = {f"blocks.0.attention.{part}.{end}" for part in "kv" for end in ("weight", "bias")} | {
    f"blocks.0.kv_norm.{end}" for end in ("weight", "bias")
}


def lora_parameters(start: Path) -> int:
    return sum(RANK * sum(weights(start)[f"model.{name}"].shape) for name in PROJECTIONS)


@pytest.mark.parametrize(
    ("kind", "expected"), [("kv", KEYS_AND_VALUES), pytest.param("lora", PROJECTIONS, marks=pytest.mark.long)]
)
def test_the_rest_stays_and_has_no_state(
    kind: Literal["kv", "lora"], expected: set[str], corpus: Path, start: Path, tmp_path: Path
) -> None:
    recipe = replace(part(kind), steps=None, rungs=(4,), schedule="wsd")
    facts = go(tmp_path, corpus, start, recipe).facts
    assert changed(tmp_path, start) == expected
    load_checked(tmp_path / "out")
    own = sum(weights(start)[f"model.{name}"].numel() for name in KEYS_AND_VALUES)
    assert facts["trained_parameters"] == (own if kind == "kv" else lora_parameters(start))
    assert facts["parameters"] == sum(weight.numel() for weight in weights(start).values())
    state = torch.load(tmp_path / "out" / FOLDER / "optimizer.pt", weights_only=True)["state"]
    assert sum(of_one["exp_avg"].numel() for of_one in state.values()) == facts["trained_parameters"]


@pytest.mark.parametrize("kind", ["lora", pytest.param("kv", marks=pytest.mark.long)])
def test_an_interrupted_run_and_a_longer_one_go_on_bit_for_bit(
    kind: Literal["kv", "lora"], corpus: Path, start: Path, tmp_path: Path
) -> None:
    long = replace(part(kind), steps=None, rungs=(3, 6), schedule="wsd", decay=0.5)
    go(tmp_path / "short", corpus, start, replace(long, rungs=(3,)))
    with pytest.raises(Interrupted):
        go(tmp_path / "long", corpus, start, long, tmp_path / "short", lambda rows: bool(rows) and rows[-1]["step"] > 3)
    go(tmp_path / "long", corpus, start, long, tmp_path / "short")
    go(tmp_path / "alone", corpus, start, long)
    one, other = weights(tmp_path / "long" / "out"), weights(tmp_path / "alone" / "out")
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert changed(tmp_path / "alone", start)


@pytest.mark.parametrize("family", [name for name in FAMILY_CONFIGS if name not in LATER])
def test_merging_leaves_the_function_as_it_was(family: str) -> None:
    shape = shape_of(FAMILY_CONFIGS[family])
    widened = replace(shape, mlp_width=shape.mlp_width + 6)
    model = MLKVForCausalLM.from_shape(widened, LAYOUTS["explicit"], seed=1).eval()
    names, tokens = set(model.state_dict()), torch.arange(24).reshape(2, 12) % VOCAB
    with torch.no_grad():
        untouched = model(tokens).logits
        adapters = choose_trained(model, part("lora"))
        assert adapters
        assert torch.equal(model(tokens).logits, untouched), "adapters begin as nothing"
        for weight in trained(model).values():
            weight.normal_(std=0.2)
        before = model(tokens).logits
        merged = merge(adapters)
        after = merged(tokens).logits
    assert set(merged.state_dict()) == names
    assert (before - untouched).abs().max() > 0.1
    assert (before - after).abs().max() < 1e-5 * before.abs().max().clamp(min=1)


def test_adapters_begin_by_the_seed_and_leave_other_random_numbers_alone() -> None:
    def adapters_of(seed: int) -> list[torch.Tensor]:
        model = MLKVForCausalLM.from_shape(SHAPE, SHARED, seed=0)
        choose_trained(model, replace(part("lora"), seed=seed))
        return list(trained(model).values())

    torch.manual_seed(5)
    first = adapters_of(1)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    assert all(map(torch.equal, first, adapters_of(1)))
    assert not all(map(torch.equal, first, adapters_of(2)))
