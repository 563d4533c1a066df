"""What the mean of an import is over, the same for all its variants, and what its reader has to know about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from difflib import get_close_matches

from analysis.data.contents import Content, Pair, listed
from analysis.data.frame import Row
from analysis.data.metrics import METRICS, plain_name
from analysis.data.runs import Run

ACCURACY = (("arc_easy", "acc"), ("lambada_openai", "acc"), ("piqa", "acc"), ("sciq", "acc"))
"""What the MLKV paper averages."""


def wanted_scores(contents: Sequence[Content], runs: Sequence[Run], accuracy: Sequence[Pair] | None) -> list[Pair]:
    """What the mean is over, the same for all variants. Raises ValueError for a score that is nowhere."""
    there = sorted({pair for content in contents for pair in content.scores})
    if accuracy is not None:
        falling = {pair for run in runs for pair in run.falling}
        words = [f"{task}.{metric.removesuffix(',none')}" for task, metric in accuracy]
        return list(dict.fromkeys(_chosen(word, there, falling) for word in words))
    if set(there).issuperset(ACCURACY):
        return list(ACCURACY)
    below = _below_groups(runs)
    return [(task, metric) for task, metric in there if metric == "acc" and (task, metric) not in below]


def _below_groups(runs: Sequence[Run]) -> dict[Pair, str]:
    """Scores of tasks that are in a group which has that score itself → the group."""
    below: dict[Pair, str] = {}
    for run in runs:
        scored = {(score.task, score.metric) for score in run.scores}
        for group, members in run.members.items():
            metrics = {metric for task, metric in scored if task == group}
            below |= {(member, metric): group for member in members for metric in metrics}
    return below


def _chosen(word: str, there: Sequence[Pair], falling: set[Pair]) -> Pair:
    """The score called TASK.METRIC; the name of its filter may be left out where it has one only."""
    exact = [(task, metric) for task, metric in there if f"{task}.{metric}" == word]
    meant = exact or [(task, metric) for task, metric in there if f"{task}.{plain_name(metric)}" == word]
    if len(meant) != 1:
        names = [f"{task}.{metric}" for task, metric in (meant or there)]
        near = get_close_matches(word, names, 3) if not meant else []
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"accuracy = {word}: {'several scores' if meant else 'no such score'}{hint}; there: {listed(names)}"
        )
    task, name = meant[0]
    metric = METRICS.get(name)
    falls = not metric.higher_is_better if metric else (task, plain_name(name)) in falling
    if falls:
        raise ValueError(f"accuracy = {word}: is better when lower; a mean accuracy is made of scores that rise")
    return meant[0]


def absent(pair: Pair) -> Row:
    """The empty cell of a variant that lacks a score."""
    task, metric = pair
    return {
        "kind": "evaluate",
        "task": task,
        "metric": metric,
        "value": None,
        "reason": f"no result of {task}.{metric}",
    }


def notes(contents: Sequence[Content], runs: Sequence[Run], wanted: Sequence[Pair]) -> list[str]:
    """What the mean is not over, a line each."""
    return [*_missing_notes(contents, wanted), *_group_notes(runs, wanted), *_setting_notes(contents)]


def _missing_notes(contents: Sequence[Content], wanted: Sequence[Pair]) -> list[str]:
    """Which variants have no mean, and why."""
    if not wanted:
        there = sorted({f"{task}.{metric}" for content in contents for task, metric in content.scores})
        return [f"no mean: no task has acc; --accuracy chooses among {listed(there)}"] if there else []
    lacking = {content.label: [why for pair in wanted if (why := _why_not(content, pair))] for content in contents}
    without = [f"no mean of {label}: {listed(why)}" for label, why in lacking.items() if why]
    metrics = {metric for _, metric in wanted}
    candidates = [pair for pair in dict.fromkeys(contents[0].scores) if pair[1] in metrics]
    everywhere = [".".join(pair) for pair in candidates if not any(_why_not(content, pair) for content in contents)]
    return [*without, f"all variants have: --accuracy {' '.join(everywhere)}"] if without and everywhere else without


def _why_not(content: Content, pair: Pair) -> str | None:
    if (row := content.score(pair)) is None:
        return str(absent(pair)["reason"])
    return None if row["value"] is not None else f"{'.'.join(pair)} ({row['file']}): {row['reason']}"


def _group_notes(runs: Sequence[Run], wanted: Sequence[Pair]) -> list[str]:
    """Which of what is averaged are groups, and which of these are the mean of their members."""
    averaged = {task for task, _ in wanted}
    groups = {group: members for run in runs for group, members in run.members.items() if group in averaged}
    computed = {group for run in runs for group in run.computed}
    return [
        f"{group}: a group; {'the mean of its members' if group in computed else 'its own score'} counts, its "
        f"{len(members)} members do not"
        for group, members in sorted(groups.items())
    ]


def _setting_notes(contents: Sequence[Content]) -> list[str]:
    """Tasks that the variants have under different settings: their scores are not of the same thing."""
    limits = {content.variant.facts.get("limit", "none"): None for content in contents if content.variant.runs}
    different = [f"not the same limit in all results: {listed(list(limits))}"] if len(limits) > 1 else []
    for setting in ("n-shot", "version", "samples"):
        values: dict[str, dict[str, None]] = defaultdict(dict)
        for run in (run for content in contents for run in content.variant.runs):
            for task, value in run.settings.get(setting, {}).items():
                values[task][value] = None
        tasks = [f"{task} ({', '.join(of_task)})" for task, of_task in sorted(values.items()) if len(of_task) > 1]
        different += [f"not the same {setting} in all results: {listed(tasks)}"] if tasks else []
    return different
