"""The corpus step: text → tokenizer → packed token blocks (mlkv/corpus)."""

from __future__ import annotations

import json
from pathlib import Path

from mlkv.context import MetricRow, Outcome
from mlkv.recipes import CorpusRecipe
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.step import Step, identity_fields, runtime_fields
from sweeps.store.schema import LoggedRow


def corpus_step(recipe: CorpusRecipe, pins: dict[str, str], tokenizer: dict[str, str]) -> Step:
    identity = identity_fields(recipe)
    if recipe.tokenizer != "train":
        identity.pop("vocab_size")
    how = runtime_fields(recipe) | ({"tokenizer_source": tokenizer} if tokenizer else {})
    return Step("corpus", identity, {}, pins, how, recipe.source)


def run(execution: Execution) -> Outcome:
    from mlkv.corpus.step import run as make_corpus
    from sweeps.steps.model_files import TOKENIZER, local_copy

    step = execution.step
    source = step.how.get("tokenizer_source")
    tokenizer = local_copy(source, TOKENIZER) if source else None
    recipe, text = execution.recipe(CorpusRecipe), step.pinned.get("text")
    return make_corpus(recipe, execution.out, execution.ctx, tokenizer=tokenizer, text=text)


def numbers(out: Path, rows: list[LoggedRow]) -> list[MetricRow]:
    """As records without a seal have them."""
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return [
        MetricRow(f"{split}_{unit}", manifest[split][unit])
        for split in ("train", "heldout")
        for unit in ("documents", "tokens", "bytes")
    ]


def online(step: Step) -> bool:
    """A hub dataset is streamed and never stored, so that no job without internet could read it."""
    return bool(step.slice["source"] == "hf")


KIND = StepKind(run, CorpusRecipe, online=online, numbers=numbers, modules=("mlkv.corpus.step",))
