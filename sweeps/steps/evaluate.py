"""The evaluate step: one task on one checkpoint (mlkv/evaluate)."""

from __future__ import annotations

import json
from pathlib import Path

from mlkv.cache.formats import CACHES
from mlkv.context import MetricRow, Outcome
from mlkv.evaluate.entry_rule import failure
from mlkv.recipes import EvaluateRecipe
from mlkv.signature import of_scores
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.step import Step, identity_fields, runtime_fields
from sweeps.store.schema import LoggedRow

TASK_FILES = "task files"
"""The pin of a step whose task is defined by files of the user's: their digest."""
LIBRARY_TEXT = "library"
"""The pin of a step whose task is on the standard library's text: its digest."""
TASK = "task"
"""The input of such a step: the copy of these files."""


def evaluate_step(
    recipe: EvaluateRecipe,
    checkpoint: Step,
    corpus: Step | None,
    pins: dict[str, str],
    label: str,
    base: Step | None = None,
) -> Step:
    """`corpus` for tasks made of its held-out documents, `base` for those that compare a checkpoint with it. The seed
    only picks few-shot examples."""
    identity = identity_fields(recipe)
    if not recipe.few_shot:
        identity.pop("seed")
    parents = {"checkpoint": checkpoint.id} | ({"corpus": corpus.id} if corpus else {})
    parents |= {"base": base.id} if base else {}
    pins = pins | CACHES.pins(recipe.cache)
    return Step("evaluate", identity, parents, pins, runtime_fields(recipe), label)


def run(execution: Execution) -> Outcome:
    from mlkv.evaluate.step import run as evaluate

    recipe, inputs = execution.recipe(EvaluateRecipe), execution.inputs
    checkpoint, corpus = inputs["checkpoint"], inputs.get("corpus")
    base, own, library = inputs.get("base"), inputs.get(TASK), execution.step.pinned.get(LIBRARY_TEXT)
    return evaluate(
        recipe, execution.out, execution.ctx, checkpoint=checkpoint, corpus=corpus, base=base, own=own, library=library
    )


def numbers(out: Path, rows: list[LoggedRow]) -> list[MetricRow]:
    """As records without a seal have them."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return [MetricRow.from_json(row) for row in results["metrics"]]


def work(step: Step, millions: float, sequence_length: int) -> float:
    """Millions of parameters times items; the usual number of them where there is no limit."""
    return millions * (step.slice["limit"] or 1000)


def task_data(step: Step) -> str | None:
    """A task that lm-eval defines; ours are made of the corpus."""
    return None if "corpus" in step.parents else str(step.slice["task"])


KIND = StepKind(
    run,
    EvaluateRecipe,
    scores=True,
    job="with_parent",
    work=work,
    task_data=task_data,
    numbers=numbers,
    remark=failure,
    signatures=of_scores,
    saves_memory="evaluate.batch_size=auto, or a smaller number",
    modules=("mlkv.evaluate.step", "mlkv.evaluate.bits", "mlkv.evaluate.harness", "mlkv.evaluate.harness_model"),
)
