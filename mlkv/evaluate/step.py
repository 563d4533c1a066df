"""The evaluate step: one task on one checkpoint, through lm-eval or by a function (mlkv/evaluate/tasks.py)."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..cache.formats import AS_COMPUTED
from ..cache.packing import rounding
from ..context import Context, Interrupted, MetricRow, Outcome, StepFailed
from ..corpus.domains import check_library
from ..device import resolve_precision
from ..files import Json
from ..recipes import EvaluateRecipe
from ..signature import CHANCE
from . import outcomes
from .models import LastModel, LastTokenizer
from .task_files import TaskCopy
from .task_names import TASKS_FOLDER, check_task
from .tasks import TASKS, Scores, Scoring

CHECKPOINT = LastModel()
TOKENIZER = LastTokenizer()


def run(
    recipe: EvaluateRecipe,
    out: Path,
    ctx: Context,
    *,
    checkpoint: Path,
    corpus: Path | None,
    base: Path | None = None,
    tasks: Path = TASKS_FOLDER,
    own: Path | None = None,
    library: str | None = None,
) -> Outcome:
    """Score `checkpoint`. Writes results.json, scores/ (each sample's share of the scores) and, for lm-eval's tasks,
    samples.jsonl (the answers) into `out`.

    `base` is the checkpoint that `checkpoint` was made of, for tasks that compare the two. `tasks` is the folder of our
    task definitions; `own` that of a copy of the user's. `library` is the digest of the standard library's text that
    was planned, for tasks on it. Raises StepFailed for an unknown task, a task whose data cannot be loaded, another
    library, and a corpus that the checkpoint does not fit; Interrupted when the step should stop.
    """
    if library:
        check_library(library)
    try:
        copy = TaskCopy.read(own) if own else None
        if copy is None:
            check_task(recipe.task, tasks)
    except (ValueError, OSError, KeyError) as error:
        raise StepFailed(str(error)) from error
    torch.set_num_threads(recipe.threads)
    model = CHECKPOINT.of(checkpoint)
    model.model.rounding = rounding(recipe.cache)  # of every task anew: the next one on this checkpoint finds the model
    precision = resolve_precision(recipe.precision, model.device)
    scoring = Scoring(recipe, model, checkpoint, corpus, precision, Progress(ctx), base)
    facts: Json = {"precision": precision, "device": model.device.type}
    facts |= {"cache": recipe.cache} if recipe.cache != AS_COMPUTED else {}
    if copy is None and recipe.task in TASKS:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            scores = TASKS[recipe.task].scores(scoring)
    else:
        scores, answer_tokens = _scores_of_lm_eval(scoring, tasks, out, ctx.work / "datasets", copy)
        facts |= {"max_gen_toks": answer_tokens} if answer_tokens else {}
    metrics = scores.metrics
    _check_finite(recipe.task, metrics)
    facts |= {CHANCE: {name: level.as_json() for name, level in scores.chance.items()}} if scores.chance else {}
    outcomes.save(scores.outcomes, out)
    answers = {key: value for key, value in facts.items() if key == "max_gen_toks"}
    results_json = {"task": recipe.task, **answers, "metrics": [row.as_json() for row in metrics]}
    (out / "results.json").write_text(json.dumps(results_json, indent=2) + "\n", "utf-8")
    return Outcome(metrics, facts)


def _scores_of_lm_eval(
    scoring: Scoring, tasks: Path, out: Path, datasets: Path, copy: TaskCopy | None
) -> tuple[Scores, int | None]:
    """Also the most tokens that an answer could have, where answers were generated. Writes samples.jsonl."""
    from . import harness, harness_model  # takes seconds to import, and tasks with a function do without

    recipe, tokenizer = scoring.recipe, TOKENIZER.of(scoring.checkpoint)
    lm = harness_model.HarnessLM(
        scoring.model,
        tokenizer,
        batch_size=scoring.batch_size,
        precision=scoring.precision,
        progress=scoring.progress,
        encoded=TOKENIZER.encoded,
    )
    scores = harness.score(lm, recipe, tasks, scoring.corpus, datasets, copy, scoring.checkpoint)
    with (out / "samples.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(sample.as_json(), default=str) + "\n" for sample in scores.samples)
    own = outcomes.of_samples(scores.samples, recipe.task, scores.rows)
    return Scores(scores.rows, own, scores.chance), lm.answer_tokens


@dataclass
class Progress:
    """Reports work done, at most once a second, and raises Interrupted when the step should stop."""

    ctx: Context
    _reported: float = 0.0

    def __call__(self, done: int, of: int) -> None:
        if self.ctx.should_stop():
            raise Interrupted(f"stopped after {done} of {of}; an evaluation is made in one go")
        if done == of or time.monotonic() - self._reported > 1:
            self.ctx.log({"step": done, "steps": of})
            self._reported = time.monotonic()


def _check_finite(task: str, metrics: list[MetricRow]) -> None:
    lost = [row.metric for row in metrics if row.value is None or not math.isfinite(row.value)]
    if lost or not metrics:
        raise StepFailed(f"task = {task}: {', '.join(lost) or 'it'} has no finite value")
