"""The task groups of a result file of lm-eval: their members, and the mean that replaces a missing group score.

`results` has both groups and their members; `group_subtasks` names the members. In early 0.4
only the aliases show it: a member's is indented deeper than its group's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from analysis.data.json_values import name_of
from analysis.data.lm_eval_document import ResultFile
from analysis.data.means import mean
from analysis.data.runs import Score

_INDENTED = re.compile(r"( *)- ")


def means_of(children: Mapping[str, Sequence[str]], scores: Sequence[Score]) -> Iterator[Score]:
    """For each group without a score of its own the mean of its members, of groups of groups from below."""
    scored = {(score.task, score.metric): score for score in scores}
    having = {score.task for score in scores}
    for group in sorted(children, key=lambda group: len(below(group, children))):
        for score in _means(group, children[group], scored) if group not in having else ():
            scored[group, score.metric] = score
            yield score


def children_of(file: ResultFile) -> dict[str, list[str]]:
    """Group → what is directly in it; lm-eval lists tasks as groups of nothing."""
    children = {
        name_of(group): [name_of(member) for member in members if isinstance(member, str) and member != group]
        for group, members in file.group_subtasks.items()
        if isinstance(members, list)
    }
    return {group: members for group, members in children.items() if members} or _by_indentation(file)


def _by_indentation(file: ResultFile) -> dict[str, list[str]]:
    """Of early 0.4: a member follows its group, with an alias that is indented deeper."""
    children: dict[str, list[str]] = {}
    above: list[tuple[int, str]] = []
    for task, scores in file.results.items():
        alias = scores.get("alias")
        indented = _INDENTED.match(alias) if isinstance(alias, str) else None
        depth = len(indented[1]) if indented else 0
        above = [(d, name) for d, name in above if d < depth]
        if above and (not file.groups or above[-1][1] in file.groups):
            children.setdefault(name_of(above[-1][1]), []).append(name_of(task))
        above.append((depth, task))
    return children


def below(group: str, children: Mapping[str, Sequence[str]]) -> set[str]:
    """All members of a group, and theirs."""
    members: set[str] = set()
    left = [group]
    while left:
        new = set(children.get(left.pop(), ())) - members
        members |= new
        left += sorted(new)
    return members - {group}


def _means(group: str, members: Sequence[str], scored: Mapping[tuple[str, str], Score]) -> Iterator[Score]:
    """The mean of each metric that all scored members have; without a value where a member is not there."""
    metrics = [{metric for task, metric in scored if task == member} for member in members]
    there = [of_member for of_member in metrics if of_member]
    absent = [member for member, of_member in zip(members, metrics, strict=True) if not of_member]
    for metric in sorted(set.intersection(*there)) if there else ():
        parts = [scored[member, metric] for member in members if (member, metric) in scored]
        lacking = [*absent, *(part.task for part in parts if part.value is None)]
        if lacking:
            yield Score(group, metric, None, reason=f"its member {lacking[0]} has no value")
            continue
        value, stderr = mean([part.value or 0.0 for part in parts], [part.stderr for part in parts])
        shots = {part.n_shot for part in parts}
        yield Score(group, metric, value, stderr, n_shot=shots.pop() if len(shots) == 1 else None)
