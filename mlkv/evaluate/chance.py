"""What an accuracy is without a model: by guessing among the answers, or by giving always the same one.

A checkpoint that is no better has collapsed (mlkv/signature.py). Levels stand in an evaluation's record, so that tables
and `mlkv why` compare with those of the very questions that were scored.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.task import ConfigurableTask

from ..context import MetricRow
from ..signature import Chance

CHOOSING, ALWAYS, WORDS = "guessing among the choices", "always the commonest answer", "guessing among the words"
_WORD = re.compile(r"\w+")
_ACCURACIES = ("acc", "acc_norm", "acc_bytes")
"""Metrics that are the share of questions whose answer is right."""


def of_questions(
    tasks: Mapping[str, Any], questions: Iterable[tuple[str, Any]], rows: Sequence[MetricRow], *, of_words: bool = False
) -> dict[str, Chance]:
    """Chance of each row that is an accuracy, by its metric (of a group's member: `MEMBER/METRIC`).

    tasks: lm-eval's, by name. questions: the task and the document of each that was scored. of_words: answers are drawn
    from the words of the questions.
    """
    documents: dict[str, list[Any]] = {}
    for name, document in questions:
        documents.setdefault(name, []).append(document)
    levels = {name: level for name, own in documents.items() if (level := _of_task(tasks[name], own, of_words))}
    whole = _of_group(levels, documents)
    found = {}
    for row in rows:
        level = levels.get(row.subtask) if row.subtask else whole
        if level and row.metric in _ACCURACIES:
            found[f"{row.subtask}/{row.metric}" if row.subtask else row.metric] = level
    return found


def _of_task(task: Any, documents: Sequence[Any], of_words: bool) -> Chance | None:
    """None where an answer is generated, and where a task of another class than lm-eval's own does not tell."""
    kind = getattr(task, "OUTPUT_TYPE", None) if isinstance(task, ConfigurableTask) else None
    if kind == "multiple_choice":
        return _of_choices([list(task.doc_to_choice(document)) for document in documents], task, documents)
    if kind != "loglikelihood":
        return None
    targets = [str(task.doc_to_target(document)) for document in documents]
    if of_words:
        texts = (f"{task.doc_to_text(document)}{target}" for document, target in zip(documents, targets, strict=True))
        share = 1 / len({word for text in texts for word in _WORD.findall(text)})
        return Chance(share, _spread([share] * len(documents)), WORDS)
    return Chance(_share_of_commonest(targets), 0.0, ALWAYS)


def _of_choices(choices: Sequence[Sequence[Any]], task: Any, documents: Sequence[Any]) -> Chance | None:
    """Guessing evenly; or, where all questions have the same choices (yes and no), always the commonest one."""
    if not all(choices):
        return None
    guessed = [1 / len(each) for each in choices]
    level = Chance(math.fsum(guessed) / len(guessed), _spread(guessed), CHOOSING)
    if len({tuple(map(str, each)) for each in choices}) == 1:
        share = _share_of_commonest([str(task.doc_to_target(document)) for document in documents])
        if share > level.value:
            return Chance(share, level.stderr, ALWAYS)
    return level


def _of_group(by_task: Mapping[str, Chance], documents: Mapping[str, Sequence[Any]]) -> Chance | None:
    """Over all questions of a task, or of a group's members; None where one has no level."""
    if not by_task or by_task.keys() != documents.keys():
        return None
    counts = {name: len(own) for name, own in documents.items()}
    whole = sum(counts.values())
    value = math.fsum(by_task[name].value * count for name, count in counts.items()) / whole
    stderr = math.sqrt(math.fsum((by_task[name].stderr * count) ** 2 for name, count in counts.items())) / whole
    return Chance(value, stderr, next(iter(by_task.values())).by)


def _share_of_commonest(answers: Sequence[str]) -> float:
    """Of a question's others, how many have its answer, for the commonest one: 0 where no two have the same."""
    return (max(Counter(answers).values()) - 1) / max(1, len(answers) - 1)


def _spread(guessed: Sequence[float]) -> float:
    """Standard error of the share of right guesses, of which each is right with its probability."""
    return math.sqrt(math.fsum(p * (1 - p) for p in guessed)) / len(guessed)
