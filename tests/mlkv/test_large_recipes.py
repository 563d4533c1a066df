"""What two processes train as one does: the recipes of models of a billion parameters and more, with two layers and
shared weights, and an elastic training."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from mlkv.families.config import layout_of, shape_of
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, mha
from mlkv.shape import DecoderShape
from mlkv.train import step as train
from mlkv.train.elastic import Elastic
from mlkv.training_recipes import ElasticRecipe, TrainRecipe
from sweeps.planning.compose import Composer
from sweeps.planning.config import Config
from sweeps.planning.parse import parse
from tests.mlkv.test_together import assert_alike, trained
from tests.mlkv.test_train import free_port
from tests.support.processes import PATIENCE
from tests.support.tiny import SHAPE, context, make_corpus, start_python

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(torch.cuda.is_available(), reason="two processes would share one GPU"),
]
ONE_BILLION = 1_000_000_000
PYTHIA_1B = "EleutherAI/pythia-1b-deduped"
OTHERS = {"8b": ["model=llama-3.1-8b", "base=none", "uptrain=8b"]}

RANKS = """
import json, sys
from dataclasses import fields
from pathlib import Path
from accelerate.state import AcceleratorState
from tests.mlkv.test_together import trained
from tests.mlkv.test_large_recipes import trained_as_layouts
from mlkv.training_recipes import TrainRecipe
from mlkv.train import sharded
collected, whole_weights = [], sharded.whole_weights
sharded.whole_weights = lambda model: collected.append(1) or whole_weights(model)
folder, corpus, recipes = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
print(json.dumps(["elastic", 0, trained_as_layouts(folder / "elastic", corpus), 0]), flush=True)
for name, recipe in recipes.items():
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in recipe.items()}
    for stop in (1, 0):
        AcceleratorState._reset_state(reset_partial_state=False)
        facts = trained(folder / name, corpus, TrainRecipe(**given), stop, start=folder / name / "start")
        print(json.dumps([name, stop, facts["losses"], len(collected)]), flush=True)
        collected.clear()
"""


def lines() -> dict[str, list[str]]:
    """Every experiment, and the rows without one."""
    named = {name: [f"experiment={name}"] for name in Composer().options("experiment") if "/" not in name}
    return named | OTHERS


@cache
def large() -> dict[str, tuple[Config, DecoderShape, KVLayout]]:
    """The configurations whose model has a billion parameters or more and is trained, one for each pair of model and
    recipe."""
    found: dict[Any, tuple[str, tuple[Config, DecoderShape, KVLayout]]] = {}
    for name, line in lines().items():
        config = parse(Composer()(line))
        shape, layout = shape_and_layout(config)
        if config.uptrain.steps != 0 and config.convert.start != "none" and shape.parameters(layout) >= ONE_BILLION:
            found.setdefault((config.model, config.uptrain), (name, (config, shape, layout)))
    return dict(found.values())


def shape_and_layout(config: Config) -> tuple[DecoderShape, KVLayout]:
    model = config.model
    if model.decoder:
        return model.decoder, mha(model.decoder.layers, model.decoder.heads)
    if model.config:
        return shape_of(model.config), layout_of(model.config)
    if model.hub != PYTHIA_1B:  # other models of the hub that experiments take are smaller
        return SMALL, mha(1, 1)
    decoder = parse(Composer()(["model=pythia-1b", "base=none"])).model.decoder
    assert decoder
    return decoder, mha(decoder.layers, decoder.heads)


SMALL = DecoderShape(vocab_size=8, width=8, layers=1, heads=1, head_dim=8, mlp_width=8, context=8)


def start_of(shape: DecoderShape, layout: KVLayout) -> MLKVForCausalLM:
    """Two layers, of which the upper reads the lower; a sixteenth of the width, with the heads' numbers and what else
    the shape says."""
    heads, kv_heads = max(2, shape.heads // 8), max(1, layout.kv_heads[0] // 8)
    sizes: dict[str, Any] = {"vocab_size": 512, "context": 96, "layers": 2, "width": shape.width // 16, "heads": heads}
    small = replace(shape, **sizes, head_dim=16, mlp_width=shape.mlp_width // 16, rotary_context=shape.rotary_context)
    return MLKVForCausalLM.from_shape(small, KVLayout((0, 0), (kv_heads,), heads), seed=1)


def recipe_of(config: Config) -> TrainRecipe:
    """The configuration's own, with two steps of four rows, and shared weights."""
    given = config.uptrain
    lengths: dict[str, Any] = {"steps": 2, "tokens": None, "epochs": None, "rungs": ()}
    micro = min(2, given.micro_batch or 2)
    return replace(
        given,
        **lengths,
        batch_size=4,
        micro_batch=micro,
        strategy="fsdp",
        precision="fp32",
        eps=1e-4,  # where gradients are hardly more than rounding, AdamW's steps would be that
        save_every=1,
        log_every=1,
    )


def as_json(recipe: TrainRecipe) -> dict[str, Any]:
    return {f.name: getattr(recipe, f.name) for f in fields(recipe)}


ELASTIC = ElasticRecipe(
    steps=2,
    batch_size=4,
    micro_batch=1,
    layouts_per_step=2,
    precision="fp32",
    eps=1e-4,
    log_every=1,
    gradient_checkpointing=True,
)


def trained_as_layouts(folder: Path, corpus: Path) -> list[float]:
    """The losses of an elastic training of `folder`/start. Its merge leaves some heads of a layout without a
    gradient."""
    (folder / "out").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    layouts = (mha(2, 2), KVLayout((0, 0), (2,), 2), KVLayout((0, 0), (1,), 2))
    elastic = Elastic(layouts, "first", ELASTIC.layouts_per_step)
    ctx = context(folder / "work", rows)
    train.run(ELASTIC, folder / "out", ctx, corpus=corpus, start=folder / "start", elastic=elastic)
    return [row["loss"] for row in rows]


def test_every_recipe_of_a_billion_parameters_trains_in_two_processes_as_in_one(tmp_path: Path) -> None:
    """Two layers, a sixteenth of the width, 512 tokens of vocabulary, rows of 96 tokens. Both steps are one attempt
    each, and the second resumes from the first one's checkpoint."""
    corpus = make_corpus(tmp_path, task_items=0)
    recipes = {name: recipe_of(config) for name, (config, _, _) in large().items()}
    assert len(recipes) >= 5
    for name, (_, shape, layout) in large().items():
        for folder in (tmp_path / "two", tmp_path / "two" / "second", tmp_path / "one"):
            start_of(shape, layout).save_pretrained(folder / name / "start")
        (tmp_path / "two" / name / "work").mkdir()
        os.symlink(tmp_path / "two" / name / "work", tmp_path / "two" / "second" / name / "work")
    for folder in (tmp_path / "two", tmp_path / "two" / "second", tmp_path / "one"):
        MLKVForCausalLM.from_shape(SHAPE, mha(2, 2), seed=1).save_pretrained(folder / "elastic" / "start")
    (tmp_path / "two" / "elastic" / "work").mkdir()
    os.symlink(tmp_path / "two" / "elastic" / "work", tmp_path / "two" / "second" / "elastic" / "work")
    printed = both(tmp_path / "two", corpus, recipes)
    alone = trained_as_layouts(tmp_path / "one" / "elastic", corpus)
    assert next(own for of, _, own, _ in printed if of == "elastic") == pytest.approx(alone, 1e-4)
    assert_alike(tmp_path / "two" / "elastic", tmp_path / "one" / "elastic", 2e-5)
    for name, recipe in recipes.items():
        facts = trained(tmp_path / "one" / name, corpus, recipe, start=tmp_path / "one" / name / "start")
        losses = [loss for of, _, own, _ in printed if of == name for loss in own]
        assert losses == pytest.approx(facts["losses"], 1e-4), name
        assert [stop for of, stop, _, shared in printed if of == name and shared] == [1, 0]
        assert_alike(tmp_path / "two" / name, tmp_path / "one" / name, 2e-5)


def both(folder: Path, corpus: Path, recipes: dict[str, TrainRecipe]) -> list[Any]:
    """What the first of two processes printed; one launch for all recipes, as starting takes longer than a step."""
    given = json.dumps({name: as_json(recipe) for name, recipe in recipes.items()})
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    places = enumerate((folder, folder / "second"))
    started = [start_python(RANKS, at, corpus, given, **group, RANK=str(i), LOCAL_RANK=str(i)) for i, at in places]
    printed = [process.communicate(timeout=PATIENCE)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    return [json.loads(line) for line in printed[0].splitlines() if line.startswith('["')]
