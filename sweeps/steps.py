"""The step kinds: what identifies each, what it needs, and the mlkv function it calls.

A step's id is the hash of what it is: kind, schema version, config slice, parents and pinned outside facts. Bump a
kind's schema version when its code changes what comes out. A recipe field added later declares a neutral value in its
metadata: at that value it stays out of the hash, so older ids keep their meaning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from mlkv.context import Context
from mlkv.layout import KVLayout
from mlkv.recipes import ConvertRecipe, CorpusRecipe, EvaluateRecipe, MeasureRecipe, TrainRecipe
from mlkv.shape import DecoderShape

Json = dict[str, Any]
Inputs = Mapping[str, Path]
R = TypeVar("R")


@dataclass(frozen=True)
class Step:
    """One unit of work. `slice`, `parents` (role → id) and `pinned` identify it; `how` and `label` do not."""

    kind: str
    slice: Json
    parents: dict[str, str] = field(default_factory=dict)
    pinned: dict[str, str] = field(default_factory=dict)
    how: Json = field(default_factory=dict)
    label: str = ""

    @cached_property
    def spec(self) -> Json:
        return {
            "kind": self.kind,
            "schema": KINDS[self.kind].schema,
            "slice": self.slice,
            "parents": self.parents,
            "pinned": self.pinned,
        }

    @cached_property
    def id(self) -> str:
        return f"{self.kind}-{hashlib.sha256(canonical(self.spec).encode()).hexdigest()[:16]}"


def canonical(value: Any) -> str:
    """The one spelling of a JSON value. Raises ValueError on NaN, TypeError on what JSON cannot hold."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def what(recipe: Any) -> Json:
    """The fields of a recipe that decide what comes out."""
    return {f.name: _plain(getattr(recipe, f.name)) for f in dataclasses.fields(recipe) if _counts(f, recipe)}


def _counts(f: dataclasses.Field[Any], recipe: Any) -> bool:
    if f.metadata.get("how"):
        return False
    return "neutral" not in f.metadata or getattr(recipe, f.name) != f.metadata["neutral"]


def where(recipe: Any) -> Json:
    """The fields of a recipe that say where or how fast."""
    return {f.name: _plain(getattr(recipe, f.name)) for f in dataclasses.fields(recipe) if f.metadata.get("how")}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def layout_slice(layout: KVLayout) -> Json:
    return {
        "kv_source_layers": list(layout.kv_source_layers),
        "kv_heads": list(layout.kv_heads),
        "heads": layout.heads,
    }


def layout_of(values: Json) -> KVLayout:
    return KVLayout(tuple(values["kv_source_layers"]), tuple(values["kv_heads"]), values["heads"])


def recipe_of(schema: type[R], values: Json, how: Json) -> R:
    """A recipe back from its slice and its `how`; lists are tuples again."""
    names = {f.name for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    merged = {key: value for key, value in {**values, **how}.items() if key in names}
    return schema(**{key: tuple(value) if isinstance(value, list) else value for key, value in merged.items()})


def trains(spec: Json) -> bool:
    """Whether a step is training, which several processes can share."""
    return spec.get("kind") == "uptrain" or "train" in spec.get("slice", {})


# Making steps


def with_work(step: Step, work: float) -> Step:
    """The step with its amount of work, in units of its kind: seconds per unit carry over to steps like it."""
    return dataclasses.replace(step, how={**step.how, "work": round(work, 6)})


def corpus_step(recipe: CorpusRecipe, pins: dict[str, str], tokenizer: dict[str, str]) -> Step:
    kept = what(recipe)
    if recipe.tokenizer != "train":
        kept.pop("vocab_size")
    how = where(recipe) | ({"tokenizer_source": tokenizer} if tokenizer else {})
    return Step("corpus", kept, {}, pins, how, recipe.source)


def trained_base_step(recipe: TrainRecipe, shape: DecoderShape, corpus: Step, label: str) -> Step:
    return Step("base", {"train": what(recipe), "shape": what(shape)}, {"corpus": corpus.id}, {}, where(recipe), label)


def loaded_base_step(pins: dict[str, str], source: dict[str, str], label: str) -> Step:
    return Step("base", {}, {}, pins, {"source": source}, label)


def convert_step(recipe: ConvertRecipe, layout: KVLayout, source: KVLayout, base: Step, label: str) -> Step:
    """From a base. Merging and widening say nothing where the layout stays as it is, so they are left out there."""
    kept: Json = {"layout": layout_slice(layout)}
    if layout != source:
        kept |= {"merge": recipe.merge, "widening": recipe.widening}
        kept |= {"seed": recipe.seed} if recipe.merge == "random" else {}
    return Step("convert", kept, {"base": base.id}, {}, {}, label)


def scratch_step(recipe: ConvertRecipe, layout: KVLayout, shape: DecoderShape, corpus: Step, label: str) -> Step:
    kept = {"layout": layout_slice(layout), "shape": what(shape), "seed": recipe.seed}
    return Step("convert", kept, {"corpus": corpus.id}, {}, {}, label)


def uptrain_step(recipe: TrainRecipe, start: Step, corpus: Step, label: str) -> Step:
    return Step("uptrain", what(recipe), {"start": start.id, "corpus": corpus.id}, {}, where(recipe), label)


def evaluate_step(
    recipe: EvaluateRecipe, checkpoint: Step, corpus: Step | None, pins: dict[str, str], label: str
) -> Step:
    """`corpus` for tasks made of its held-out documents. The seed only picks few-shot examples."""
    kept = what(recipe)
    if not recipe.few_shot:
        kept.pop("seed")
    parents = {"checkpoint": checkpoint.id} | ({"corpus": corpus.id} if corpus else {})
    return Step("evaluate", kept, parents, pins, where(recipe), label)


def measure_step(
    recipe: MeasureRecipe, layout: KVLayout, shape: DecoderShape, pins: dict[str, str], label: str
) -> Step:
    kept = {"measure": what(recipe), "layout": layout_slice(layout), "shape": what(shape)}
    return Step("measure", kept, {}, pins, where(recipe), label)


# Running them: each imports what it needs when it runs, so that planning never loads torch


def _run_corpus(values: Json, how: Json, inputs: Inputs, out: Path, ctx: Context) -> Json:
    from mlkv import corpus
    from sweeps import hub

    source = how.get("tokenizer_source")
    tokenizer = hub.local_copy(source, hub.TOKENIZER) if source else None
    return corpus.run(recipe_of(CorpusRecipe, values, how), out, ctx, tokenizer=tokenizer)


def _run_base(values: Json, how: Json, inputs: Inputs, out: Path, ctx: Context) -> Json:
    if source := how.get("source"):
        from mlkv import families
        from sweeps import hub

        return families.import_pretrained(hub.local_copy(source), out, ctx)
    from mlkv import train

    recipe = recipe_of(TrainRecipe, values["train"], how)
    shape = recipe_of(DecoderShape, values["shape"], {})
    return train.run(recipe, out, ctx, corpus=inputs["corpus"], start=None, shape=shape)


def _run_convert(values: Json, how: Json, inputs: Inputs, out: Path, ctx: Context) -> Json:
    from mlkv import convert

    layout = layout_of(values["layout"])
    if "base" in inputs:
        recipe = recipe_of(ConvertRecipe, values, {"start": "convert"})
        return convert.run(recipe, out, ctx, layout=layout, base=inputs["base"])
    recipe = recipe_of(ConvertRecipe, values, {"start": "scratch"})
    shape = recipe_of(DecoderShape, values["shape"], {})
    tokenizer = inputs["corpus"] / "tokenizer"
    return convert.run(recipe, out, ctx, layout=layout, base=None, shape=shape, tokenizer=tokenizer)


def _run_uptrain(values: Json, how: Json, inputs: Inputs, out: Path, ctx: Context) -> Json:
    from mlkv import train

    recipe = recipe_of(TrainRecipe, values, how)
    return train.run(recipe, out, ctx, corpus=inputs["corpus"], start=inputs["start"])


def _run_evaluate(values: Json, how: Json, inputs: Inputs, out: Path, ctx: Context) -> Json:
    from mlkv import evaluate

    recipe = recipe_of(EvaluateRecipe, values, how)
    return evaluate.run(recipe, out, ctx, checkpoint=inputs["checkpoint"], corpus=inputs.get("corpus"))


def _run_measure(values: Json, how: Json, inputs: Inputs, out: Path, ctx: Context) -> Json:
    from mlkv import measure

    recipe = recipe_of(MeasureRecipe, values["measure"], how)
    shape = recipe_of(DecoderShape, values["shape"], {})
    return measure.run(recipe, out, ctx, shape=shape, layout=layout_of(values["layout"]))


@dataclass(frozen=True)
class StepKind:
    """`schema` is the version of what a step of this kind means; `run` makes the output, returns metrics and facts."""

    schema: int
    run: Callable[[Json, Json, Inputs, Path, Context], Json]


KINDS = {
    "corpus": StepKind(1, _run_corpus),
    "base": StepKind(1, _run_base),
    "convert": StepKind(1, _run_convert),
    "uptrain": StepKind(1, _run_uptrain),
    "evaluate": StepKind(1, _run_evaluate),
    "measure": StepKind(1, _run_measure),
}
