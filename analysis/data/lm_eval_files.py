"""One result file of lm-eval, of any version: which model it is about, under which settings, and every score.

The formats: `acc,none` with `acc_stderr,none` and a filter's name after the comma (0.4 and later), `acc` with
`acc_stderr` (0.3 and before).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from analysis.data.json_values import Json, as_dict, name_of, text
from analysis.data.lm_eval_groups import below, children_of, means_of
from analysis.data.metrics import METRICS
from analysis.data.runs import Run, Score
from sweeps.tracking.read.runs import number

MODEL_KEYS = ("peft", "delta", "pretrained", "model", "path", "engine")
"""The model arguments that name a model, in lm-eval's own order."""
_RUNTIME = {"batch_size", "batch_sizes", "max_batch_size", "device", "use_cache", "no_cache", "bootstrap_iters"}
_RUNTIME |= {"cache_requests", "check_integrity", "write_out", "output_base_path", "output_path", "log_samples"}
_RUNTIME |= {"verbosity", "decontamination_ngrams_path", "tasks"}
"""Keys of `config` that say how a run was done, not what was measured."""
_ELSEWHERE = {"model", "model_args", "limit", "num_fewshot"}
_OF_MODEL = re.compile(r"(model|peft|delta)_.*|.*(quant|dtype|revision|sha|bit).*")
"""Keys of `config` that tell of the model itself."""
_OTHER_TOOLS = ("config_general", "config_tasks", "summary_general", "summary_tasks")
_SUMMARIES = {"all", "average", "avg", "mean", "overall", "total"}
_MARKS = ("configs", "versions", "n-shot", "n-samples", "group_subtasks", "groups", "git_hash", "lm_eval_version")
_NO_METRICS = {"sample_len", "sample_count", "samples", "name", "alias"}
_RENAMED = {"ppl": "perplexity", "em": "exact_match"}
"""Metrics that older versions call otherwise."""


class NotRead(ValueError):
    """Why a file is skipped, in a few words."""


def read_run(path: Path, file: str) -> Run:
    """The run in a result file, which is called `file`. Raises NotRead for anything else, also for a torn file."""
    try:
        return _run_of(_results_of(_json(path)), file)
    except RecursionError:
        raise NotRead("is nested too deeply") from None


def _run_of(document: Json, file: str) -> Run:
    config = as_dict(document.get("config"))
    arguments = _arguments(config.get("model_args"))
    model = _model(document, config, arguments)
    scores = list(_scores(document))
    if not scores:
        raise NotRead("has no scores")
    run = Run(
        file, model or _stem(file), _identity(document, config, arguments), date=number(document.get("date")) or 0.0
    )
    if not model:
        run.identity["file"] = file
    run.details = _details(config)
    run.settings = _settings(document, config, {score.task for score in scores})
    run.falling = _falling(document)
    children = children_of(document)
    computed = list(means_of(children, scores))
    run.scores = [*scores, *computed]
    run.members = {group: below(group, children) for group in children}
    run.computed = {score.task for score in computed}
    return run


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise NotRead(f"is not JSON ({error})") from None
    except OSError as error:
        raise NotRead(f"cannot be read ({error.strerror})") from None


def _results_of(document: Any) -> Json:
    """A file that is lm-eval's. Raises NotRead saying what it is instead."""
    results = as_dict(document).get("results")
    if not isinstance(results, dict):
        raise NotRead("is no result file of lm-eval")
    if any(key in document for key in _OTHER_TOOLS) or any("|" in task for task in results):
        raise NotRead("is a result file of lighteval or of the leaderboard, which are not read")
    if summaries := [task for task in results if task.lower() in _SUMMARIES]:
        raise NotRead(f"is another tool's: its results hold a summary ({summaries[0]})")
    keys = {key for scores in results.values() for key in as_dict(scores)}
    if not (any(mark in document for mark in _MARKS) or isinstance(document.get("config"), dict) or _has_filters(keys)):
        raise NotRead("is no result file of lm-eval (no config, no versions)")
    return dict(document)


def _has_filters(keys: set[str]) -> bool:
    return any("," in key for key in keys)


def _stem(file: str) -> str:
    return str(PurePosixPath(file).with_suffix("")).removesuffix("_results")


# Which model


def _arguments(given: Any) -> dict[str, str]:
    """Model arguments by name, from `pretrained=x,dtype=float16` or a mapping of them."""
    if isinstance(given, str):
        pairs = (part.partition("=") for part in given.split(",") if part.strip())
        given = {name.strip(): value for name, _, value in pairs}
    elif not isinstance(given, dict):
        given = {} if given is None else {"model_args": given}
    texts = {name: text(value) for name, value in given.items() if value is not None}
    return {name: plain_path(value) if name in MODEL_KEYS else value for name, value in texts.items()}


def plain_path(path: str) -> str:
    """`./runs/gqa/` and `runs/gqa` are one."""
    return str(PurePosixPath(path)) if path else path


def _model(document: Json, config: Json, arguments: dict[str, str]) -> str:
    """By its own name, else the argument that names it; a backend's name is no model's, unless it is a path."""
    named = [document.get("model_name"), *(arguments.get(key) for key in MODEL_KEYS)]
    if isinstance(backend := config.get("model"), str) and "/" in backend:
        named.append(backend)
    return next((plain_path(name.strip()) for name in named if isinstance(name, str) and name.strip()), "")


def _identity(document: Json, config: Json, arguments: dict[str, str]) -> dict[str, str]:
    further = {
        "model": config.get("model"),
        "limit": config.get("limit"),
        "chat_template": document.get("chat_template_sha") or _digest(document.get("chat_template")),
        "system_instruction": document.get("system_instruction_sha") or _digest(document.get("system_instruction")),
        "fewshot_as_multiturn": document.get("fewshot_as_multiturn") or None,
    }
    texts = {(f"--{name}" if name in arguments else name): text(value) for name, value in further.items() if value}
    return {**arguments, **texts}


def _digest(value: Any) -> str | None:
    return hashlib.sha256(text(value).encode("utf-8", "replace")).hexdigest() if value else None


def _details(config: Json) -> dict[str, str]:
    of_model = {name: value for name, value in _further(config).items() if _OF_MODEL.fullmatch(name)}
    return {name: text(value) for name, value in of_model.items() if value not in (None, "")}


def _further(config: Json) -> Json:
    return {name: value for name, value in config.items() if name not in _RUNTIME | _ELSEWHERE}


def _settings(document: Json, config: Json, tasks: set[str]) -> dict[str, dict[str, str]]:
    shots, configs, counts = (as_dict(document.get(part)) for part in ("n-shot", "configs", "n-samples"))
    settings: dict[str, dict[str, Any]] = {
        "n-shot": {
            task: shots.get(task, as_dict(configs.get(task)).get("num_fewshot", config.get("num_fewshot")))
            for task in tasks
        },
        "version": {task: as_dict(document.get("versions")).get(task) for task in tasks},
        "samples": {task: _part_of(as_dict(counts.get(task))) for task in tasks},
        **{
            name: dict.fromkeys(tasks, text(value))
            for name, value in _further(config).items()
            if not _OF_MODEL.fullmatch(name)
        },
    }
    return {
        name: {task: text(value) for task, value in of_tasks.items() if value is not None}
        for name, of_tasks in settings.items()
    }


def _part_of(count: Json) -> Any:
    """How many samples were scored, or that all were."""
    return count.get("effective") if count.get("effective") != count.get("original") else "all" if count else None


# Scores


def _scores(document: Json) -> Iterator[Score]:
    results = {**as_dict(document.get("groups")), **document["results"]}
    scored = {task: as_dict(scores) for task, scores in results.items() if task.strip()}
    filters = _has_filters({key for scores in scored.values() for key in scores})
    for task, scores in scored.items():
        count = number(as_dict(as_dict(document.get("n-samples")).get(task)).get("effective"))
        n = int(count) if count is not None and 0 <= count < 2**53 else None
        for metric, value, stderr, reason in _metrics(scores, filters):
            yield Score(name_of(task), metric, value, stderr, n, reason)


def _metrics(scores: Mapping[str, Any], filters: bool) -> Iterator[tuple[str, float | None, float | None, str | None]]:
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


def _falling(document: Json) -> set[tuple[str, str]]:
    """(task, metric) that the file itself calls better when lower."""
    directions = as_dict(document.get("higher_is_better")).items()
    return {
        (name_of(task), name_of(_RENAMED.get(metric, metric)))
        for task, of_task in directions
        for metric, higher in as_dict(of_task).items()
        if higher is False
    }


def _value(given: Any) -> tuple[float | None, str | None]:
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
