"""The scores that the mean accuracy of an import averages, the same for all its variants, and the notes on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from difflib import get_close_matches

from analysis.data.contents import Content, Pair, listed
from analysis.data.frame import Row
from analysis.data.metrics import METRICS, plain_name
from analysis.data.runs import Run

ACCURACY = (("arc_easy", "acc"), ("lambada_openai", "acc"), ("piqa", "acc"), ("sciq", "acc"))
"""The scores that the MLKV paper (arXiv 2406.09297) averages."""


def wanted_scores(contents: Sequence[Content], runs: Sequence[Run], accuracy: Sequence[Pair] | None) -> list[Pair]:
    """The scores that the mean averages, the same for all variants: those of `accuracy`, else the MLKV paper's where
    all are there, else every task's `acc`. Raises ValueError for a score that no variant has.

    A task below a group that has the same score is left out: it would count twice.
    """
    known = sorted({pair for content in contents for pair in content.scores})
    if accuracy is not None:
        falling = {pair for run in runs for pair in run.falling}
        words = [f"{task}.{metric.removesuffix(',none')}" for task, metric in accuracy]
        return list(dict.fromkeys(_chosen(word, known, falling) for word in words))
    if set(known).issuperset(ACCURACY):
        return list(ACCURACY)
    below = _below_groups(runs)
    return [(task, metric) for task, metric in known if metric == "acc" and (task, metric) not in below]


def _below_groups(runs: Sequence[Run]) -> dict[Pair, str]:
    """Scores of tasks in a group that has the same score → the group."""
    below: dict[Pair, str] = {}
    for run in runs:
        scored = {(score.task, score.metric) for score in run.scores}
        for group, members in run.members.items():
            metrics = {metric for task, metric in scored if task == group}
            below |= {(member, metric): group for member in members for metric in metrics}
    return below


def _chosen(word: str, known: Sequence[Pair], falling: set[Pair]) -> Pair:
    """The score called TASK.METRIC. The name of its filter may be left out where there is only one."""
    exact = [(task, metric) for task, metric in known if f"{task}.{metric}" == word]
    matches = exact or [(task, metric) for task, metric in known if f"{task}.{plain_name(metric)}" == word]
    if len(matches) != 1:
        names = [f"{task}.{metric}" for task, metric in (matches or known)]
        near = get_close_matches(word, names, 3) if not matches else []
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        fault = "several scores" if matches else "no such score"
        raise ValueError(f"accuracy = {word}: {fault}{hint}; there: {listed(names)}")
    task, name = matches[0]
    metric = METRICS.get(name)
    is_falling = not metric.higher_is_better if metric else (task, plain_name(name)) in falling
    if is_falling:
        raise ValueError(
            f"accuracy = {word}: is better when lower; a mean accuracy averages scores that should be high"
        )
    return matches[0]


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
    """What a reader of the mean has to know, a line each: missing scores, groups, settings that differ."""
    return [*_missing_notes(contents, wanted), *_group_notes(runs, wanted), *_setting_notes(contents)]


def _missing_notes(contents: Sequence[Content], wanted: Sequence[Pair]) -> list[str]:
    """The variants that have no mean, with the reason."""
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
    """The averaged scores that are of groups, and which of these are the mean of their members."""
    averaged = {task for task, _ in wanted}
    groups = {group: members for run in runs for group, members in run.members.items() if group in averaged}
    computed = {group for run in runs for group in run.computed}
    return [
        f"{group}: a group; {'the mean of its members' if group in computed else 'its own score'} counts, its "
        f"{len(members)} members do not"
        for group, members in sorted(groups.items())
    ]


def _setting_notes(contents: Sequence[Content]) -> list[str]:
    """Tasks with different settings in different results: their scores do not measure the same."""
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
