"""One result file of lm-eval, of any version: its model, its settings, and every score.

The formats: `acc,none` with `acc_stderr,none` and a filter's name after the comma (0.4 and later), `acc` with
`acc_stderr` (0.3 and before).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from analysis.data.json_values import Object, name_of, text
from analysis.data.lm_eval_document import NotRead, ResultFile, read_file
from analysis.data.lm_eval_groups import below, children_of, means_of
from analysis.data.metrics import METRICS
from analysis.data.runs import Run, Score
from sweeps.tracking.read.runs import number

MODEL_KEYS = ("peft", "delta", "pretrained", "model", "path", "engine")
"""The model arguments that name a model, in lm-eval's own order."""
_RUNTIME = {"batch_size", "batch_sizes", "max_batch_size", "device", "use_cache", "no_cache", "bootstrap_iters"}
_RUNTIME |= {"cache_requests", "check_integrity", "write_out", "output_base_path", "output_path", "log_samples"}
_RUNTIME |= {"verbosity", "decontamination_ngrams_path", "tasks"}
"""Keys of `config` that do not change a score."""
_ELSEWHERE = {"model", "model_args", "limit", "num_fewshot"}
_OF_MODEL = re.compile(r"(model|peft|delta)_.*|.*(quant|dtype|revision|sha|bit).*")
"""Keys of `config` that describe the model itself."""
_NO_METRICS = {"sample_len", "sample_count", "samples", "name", "alias"}
_RENAMED = {"ppl": "perplexity", "em": "exact_match"}
"""Names of metrics in older versions → today's names."""


def read_run(path: Path, file: str) -> Run:
    """The run in a result file, which is called `file`. Raises NotRead for anything else, also for a torn file."""
    try:
        return _run_of(read_file(path), file)
    except RecursionError:
        raise NotRead("is nested too deeply") from None


def _run_of(file: ResultFile, name: str) -> Run:
    arguments = _arguments(file.config.get("model_args"))
    model = _model(file, arguments)
    scores = list(_scores(file))
    if not scores:
        raise NotRead("has no scores")
    stem = str(PurePosixPath(name).with_suffix("")).removesuffix("_results")
    run = Run(name, model or stem, _identity(file, arguments), date=number(file.other.get("date")) or 0.0)
    if not model:
        run.identity["file"] = name
    of_model = {name: value for name, value in _further(file).items() if _OF_MODEL.fullmatch(name)}
    run.details = {name: text(value) for name, value in of_model.items() if value not in (None, "")}
    run.settings = _settings(file, {score.task for score in scores})
    run.falling = _falling(file)
    children = children_of(file)
    computed = list(means_of(children, scores))
    run.scores = [*scores, *computed]
    run.members = {group: below(group, children) for group in children}
    run.computed = {score.task for score in computed}
    return run


# Which model


def _arguments(given: object) -> dict[str, str]:
    """Model arguments by name, from `pretrained=x,dtype=float16` or a mapping of them."""
    if isinstance(given, str):
        pairs = (part.partition("=") for part in given.split(",") if part.strip())
        values: Object = {name.strip(): value for name, _, value in pairs}
    else:
        values = given if isinstance(given, dict) else {"model_args": given}
    texts = {name: text(value) for name, value in values.items() if value is not None}
    return {name: plain_path(value) if name in MODEL_KEYS else value for name, value in texts.items()}


def plain_path(path: str) -> str:
    """`./runs/gqa/` and `runs/gqa` are one."""
    return str(PurePosixPath(path)) if path else path


def _model(file: ResultFile, arguments: dict[str, str]) -> str:
    """By its own name, else the argument that names it; a backend's name is no model's, unless it is a path."""
    named = [file.other.get("model_name"), *(arguments.get(key) for key in MODEL_KEYS)]
    if isinstance(backend := file.config.get("model"), str) and "/" in backend:
        named.append(backend)
    return next((plain_path(name.strip()) for name in named if isinstance(name, str) and name.strip()), "")


def _identity(file: ResultFile, arguments: dict[str, str]) -> dict[str, str]:
    config, other = file.config, file.other
    further = {
        "model": config.get("model"),
        "limit": config.get("limit"),
        "chat_template": other.get("chat_template_sha") or _digest(other.get("chat_template")),
        "system_instruction": other.get("system_instruction_sha") or _digest(other.get("system_instruction")),
        "fewshot_as_multiturn": other.get("fewshot_as_multiturn") or None,
    }
    texts = {(f"--{name}" if name in arguments else name): text(value) for name, value in further.items() if value}
    return {**arguments, **texts}


def _digest(value: object) -> str | None:
    return hashlib.sha256(text(value).encode("utf-8", "replace")).hexdigest() if value else None


def _further(file: ResultFile) -> Object:
    return {name: value for name, value in file.config.items() if name not in _RUNTIME | _ELSEWHERE}


def _settings(file: ResultFile, tasks: set[str]) -> dict[str, dict[str, str]]:
    settings: dict[str, Object] = {
        "n-shot": {task: _n_shot(file, task) for task in tasks},
        "version": {task: file.versions.get(task) for task in tasks},
        "samples": {task: _samples(file.samples.get(task, {})) for task in tasks},
        **{
            name: dict.fromkeys(tasks, text(value))
            for name, value in _further(file).items()
            if not _OF_MODEL.fullmatch(name)
        },
    }
    return {
        name: {task: text(value) for task, value in of_tasks.items() if value is not None}
        for name, of_tasks in settings.items()
    }


def _n_shot(file: ResultFile, task: str) -> object:
    """By its own entry, else its definition, else the command line; of a group nowhere but on the command line."""
    definition = file.configs.get(task, {})
    return file.n_shot.get(task, definition.get("num_fewshot", file.config.get("num_fewshot")))


def _samples(count: Object) -> object:
    """How many samples were scored, or that all were."""
    return count.get("effective") if count.get("effective") != count.get("original") else "all" if count else None


# Scores


def _scores(file: ResultFile) -> Iterator[Score]:
    results = {task: scores for task, scores in {**file.groups, **file.results}.items() if task.strip()}
    filters = any("," in key for scores in results.values() for key in scores)
    for task, scores in results.items():
        n, n_shot = _count(file.samples.get(task, {}).get("effective")), _count(_n_shot(file, task))
        for metric, value, stderr, reason in _metrics(scores, filters):
            yield Score(name_of(task), metric, value, stderr, n, reason, n_shot)


def _count(value: object) -> int | None:
    count = number(value)
    return int(count) if count is not None and 0 <= count < 2**53 and count.is_integer() else None


def _metrics(scores: Object, filters: bool) -> Iterator[tuple[str, float | None, float | None, str | None]]:
    """(metric, value, stderr, reason). Where keys have a filter's name behind a comma, the others are no metrics."""
    for key, given in scores.items():
        metric, comma, filtered = key.partition(",")
        if not metric.strip() or metric.endswith("_stderr") or metric in _NO_METRICS or bool(comma) != filters:
            continue
        called = name_of(_RENAMED.get(metric, metric))
        value, reason = _value(given)
        if value is None and not (filters or reason == "not finite"):
            continue
        if value is not None and _is_no_share(called, value):
            value, reason = None, f"{value:g} is no share of 1 (a percentage?)"
        stderr = number(scores.get(f"{metric}_stderr{comma}{filtered}"))
        name = called if filtered in ("", "none") else f"{called},{name_of(filtered)}"
        yield name, value, stderr if stderr is None or stderr >= 0 else None, reason


def _is_no_share(metric: str, value: float) -> bool:
    """Whether a score that is printed in percent cannot be one: some files, and some tasks, have percentages."""
    known = METRICS.get(metric)
    return known is not None and known.scale == 100 and abs(value) > 1 + 1e-9


def _falling(file: ResultFile) -> set[tuple[str, str]]:
    """(task, metric) that are better when lower, by the file itself."""
    return {
        (name_of(task), name_of(_RENAMED.get(metric, metric)))
        for task, of_task in file.directions.items()
        for metric, higher in of_task.items()
        if higher is False
    }


def _value(given: object) -> tuple[float | None, str | None]:
    """A score, or why there is none."""
    if (value := number(given)) is not None:
        return value, None
    try:
        finite = math.isfinite(float(given)) if isinstance(given, int | float | str) else True
    except OverflowError:
        finite = False
    except ValueError:
        finite = True
    return None, "is no number" if finite else "not finite"
