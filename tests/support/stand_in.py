"""A stand-in for what comes from the hub: a Pythia that is small, but trained, with a tokenizer of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mlkv.corpus import step as corpus
from mlkv.families.save import export_pretrained
from mlkv.shape import DecoderShape
from mlkv.train import step as train
from mlkv.training_recipes import TrainRecipe
from tests.support.tiny import context, corpus_recipe, text_files

COMMIT = "5" * 40
SHAPE = DecoderShape(
    vocab_size=512, width=48, layers=12, heads=12, head_dim=4, mlp_width=192, context=128, rotary_fraction=0.5
)
"""Pythia-160M's layers and heads. Of so narrow a head its quarter would be an odd number of rotated dimensions."""


def pythia(folder: Path, *, steps: int, shape: DecoderShape = SHAPE) -> Path:
    """A GPT-NeoX directory under `folder`, trained for so many steps on some modules of the standard library."""
    text, made, trained, out = (folder / name for name in ("text", "corpus", "trained", "pythia"))
    for each in (made, trained):
        each.mkdir(parents=True)
    recipe = corpus_recipe(text_files(text), sequence_length=shape.context, task_items=0)
    corpus.run(replace(recipe, vocab_size=shape.vocab_size), made, context(folder / "work"))
    schedule = TrainRecipe(steps=steps, batch_size=16, lr=4e-3, min_lr_ratio=0.02, threads=1, save_every=10**6)
    train.run(schedule, trained, context(folder / "work"), corpus=made, start=None, shape=shape)
    export_pretrained(trained, out, "gpt_neox")
    return out


def on_hub(cache: Path, name: str, directory: Path) -> None:
    """Lay a directory into a hub cache as model `name`, where the hub's client finds it without the internet."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / COMMIT).symlink_to(directory, target_is_directory=True)
