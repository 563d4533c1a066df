"""Several processes that train one model, and share its weights out among them."""

from __future__ import annotations

import ast
import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from mlkv.context import Interrupted
from mlkv.convert.step import convert
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, Latent, mha
from mlkv.recipes import ConvertRecipe
from mlkv.train import step as train
from mlkv.training_recipes import TrainRecipe
from tests.support.processes import PATIENCE
from tests.support.tiny import SHAPE, context, make_corpus, start_python

pytestmark = [
    pytest.mark.long(minutes=3),
    pytest.mark.skipif(torch.cuda.is_available(), reason="two processes would share one GPU"),
]

RANK = """
import json, sys
from pathlib import Path
from tests.mlkv.test_together import trained
from mlkv.training_recipes import TrainRecipe
folder, corpus, recipe, stop, tied = Path(sys.argv[1]), Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
print(trained(folder, corpus, TrainRecipe(**recipe), stop, tied, start=folder / "start"))
"""
RECIPE = TrainRecipe(
    steps=6, batch_size=8, micro_batch=2, lr=3e-3, precision="fp32", log_every=1, eps=1e-4, save_every=2
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of documents shorter than a row: padding, whose tokens count in no process."""
    folder = tmp_path_factory.mktemp("corpus")
    return make_corpus(folder, task_items=0, packing="whole_documents", snippets=True)


def trained(
    folder: Path, corpus: Path, recipe: TrainRecipe, stop: int = 0, tied: bool = False, start: Path | None = None
) -> dict[str, Any]:
    """The facts, with `losses`; those alone if it stopped, a step after `stop`. From `start` if it is there."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    ctx = context(folder / "work", rows, lambda: bool(stop and rows and rows[-1]["step"] >= stop))
    facts: dict[str, Any] = {}
    try:
        shape, bases = replace(SHAPE, tied=tied), corpus.parent
        teacher = bases / "base" if recipe.teacher == "base" else None
        start = bases / "converted" if teacher else start if start and start.is_dir() else None
        out = folder / "out"
        facts = train.run(recipe, out, ctx, corpus=corpus, start=start, shape=shape, teacher=teacher).facts
    except Interrupted:
        assert stop
    return {**facts, "losses": [row["loss"] for row in rows], "kl": [row.get("kl") for row in rows]}


def together(folder: Path, corpus: Path, recipe: TrainRecipe, stop: int = 0, tied: bool = False) -> str:
    """Two processes; what they leave is where `trained` would leave it. What the first one printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    given = [json.dumps(value) for value in (vars(recipe), stop, tied)]
    (folder / "work").mkdir(parents=True, exist_ok=True)
    (folder / "second").mkdir(exist_ok=True)
    if not (folder / "second" / "work").exists():
        os.symlink(folder / "work", folder / "second" / "work")
    places = enumerate((folder, folder / "second"))
    started = [start_python(RANK, at, corpus, *given, **group, RANK=str(i), LOCAL_RANK=str(i)) for i, at in places]
    printed = [process.communicate(timeout=PATIENCE)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    assert not list((folder / "second" / "out").iterdir()), "the first process saves"
    return printed[0]


def assert_alike(folder: Path, other: Path, tolerance: float) -> None:
    """The same files, byte for byte but for rounding in the weights."""
    assert {path.name for path in (folder / "out").iterdir()} == {path.name for path in (other / "out").iterdir()}
    for path in (folder / "out").iterdir():
        if path.suffix != ".safetensors":
            assert path.read_bytes() == (other / "out" / path.name).read_bytes(), path.name
    weights, wanted = (load_file(place / "out" / "model.safetensors") for place in (folder, other))
    assert weights.keys() == wanted.keys()
    for name, value in weights.items():
        assert value.dtype == wanted[name].dtype
        assert torch.allclose(value, wanted[name], atol=tolerance), name


def test_shared_weights_train_as_whole_ones_and_another_number_of_processes_goes_on(
    corpus: Path, tmp_path: Path
) -> None:
    trained(tmp_path / "one", corpus, RECIPE)
    shared, changing = replace(RECIPE, strategy="fsdp"), tmp_path / "changing"
    together(changing, corpus, shared, stop=2)
    assert [path.name for path in (changing / "work").glob("checkpoint-*")] == ["checkpoint-3"]
    assert len(trained(changing, corpus, RECIPE, stop=4)["losses"]) == 2, "from where two processes stopped"
    together(changing, corpus, shared)
    assert_alike(changing, tmp_path / "one", 2e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_shared_tied_weights(precision: Literal["fp32", "bf16"], corpus: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, precision=precision)
    trained(tmp_path / "one", corpus, recipe, tied=True)
    together(tmp_path / "two", corpus, replace(recipe, strategy="fsdp"), tied=True)
    assert_alike(tmp_path / "two", tmp_path / "one", 2e-5 if precision == "fp32" else 5e-3)


@pytest.mark.parametrize(("train", "strategy"), [("lora", "ddp"), ("kv", "ddp"), ("kv", "fsdp")])
def test_parts_of_a_model_train_as_in_one_process(
    train: Literal["kv", "lora"], strategy: Literal["ddp", "fsdp"], corpus: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, train=train, steps=4)
    trained(tmp_path / "one", corpus, recipe)
    together(tmp_path / "two", corpus, replace(recipe, strategy=strategy))
    assert_alike(tmp_path / "two", tmp_path / "one", 2e-5)


def test_runs_that_learn_from_a_teacher_share_a_batch(corpus: Path, tmp_path: Path) -> None:
    """Weights that are shared, and whole ones; each process has the teacher for itself."""
    shape = replace(SHAPE, tied=True, init_std=0.2)
    base = MLKVForCausalLM.from_shape(shape, mha(shape.layers, shape.heads), seed=1)
    base.save_pretrained(corpus.parent / "base")
    convert(base, KVLayout((0, 0), (1,), 2), ConvertRecipe()).save_pretrained(corpus.parent / "converted")
    recipe = replace(RECIPE, teacher="base", distill_weight=0.7, hidden_weight=0.5, steps=4)
    alone = trained(tmp_path / "one", corpus, recipe)
    for strategy in ("ddp", "fsdp"):
        printed = together(tmp_path / strategy, corpus, replace(recipe, strategy=strategy))
        assert_alike(tmp_path / strategy, tmp_path / "one", 2e-5)
        found = ast.literal_eval(printed.splitlines()[-1])
        assert [found["losses"], found["kl"]] == [
            pytest.approx(alone["losses"], 1e-4),
            pytest.approx(alone["kl"], 1e-4),
        ]


def test_readers_of_a_latent_train_the_maps_of_an_owner_whose_weights_are_shared_out(
    corpus: Path, tmp_path: Path
) -> None:
    """While a reader runs, its owner's weights are gathered no longer."""
    start = MLKVForCausalLM.from_shape(SHAPE, KVLayout((0, 0), (2,), 2, Latent((9,), 4)), seed=3)
    for folder in (tmp_path / "two", tmp_path / "two" / "second"):
        start.save_pretrained(folder / "start")
    trained(tmp_path / "one", corpus, RECIPE, start=tmp_path / "two" / "start")
    together(tmp_path / "two", corpus, replace(RECIPE, strategy="fsdp"))
    assert_alike(tmp_path / "two", tmp_path / "one", 2e-5)


def test_layers_that_run_several_times_train_as_in_one_process(corpus: Path, tmp_path: Path) -> None:
    start = MLKVForCausalLM.from_shape(SHAPE, KVLayout((1, 1), (2,), 2, forward_passes=1), seed=3)
    for folder in (tmp_path / "two", tmp_path / "two" / "second"):
        start.save_pretrained(folder / "start")
    trained(tmp_path / "one", corpus, RECIPE, start=tmp_path / "two" / "start")
    together(tmp_path / "two", corpus, replace(RECIPE, strategy="fsdp"))
    assert_alike(tmp_path / "two", tmp_path / "one", 2e-5)
