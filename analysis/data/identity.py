"""Which runs belong to one variant, and the label of a variant: the shortest one that no other variant has."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from analysis.data.runs import Run

_LONGEST = 48
"""The most characters of a value in a label; a longer value is shown by its hash."""


@dataclass
class Variant:
    """The runs of one model with the same arguments, under the same settings."""

    model: str
    facts: dict[str, str]
    """All that distinguishes it from others; no two variants of one model have the same."""
    runs: list[Run]


def variants(runs: Iterable[Run]) -> list[Variant]:
    """Runs of one model with the same arguments, limit and prompts are one variant if they agree: on what is known of
    the weights, and for every task that two of them have on its n-shot, version and samples.

    So a file for each task is one variant with all of them, and a model that was evaluated twice in different ways is
    two: no mean mixes settings.
    """
    groups: dict[object, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.model, frozenset(run.identity.items())].append(run)
    return [variant for members in groups.values() for variant in _split(members)]


def _split(runs: list[Run]) -> Iterator[Variant]:
    """Runs that disagree, by their values. A value that a run lacks disagrees with none."""
    details = dict.fromkeys(name for run in runs for name in run.details)
    differing = [name for name in details if len({run.details[name] for run in runs if name in run.details}) > 1]
    settings = dict.fromkeys(name for run in runs for name in run.settings)
    disputed = {name: tasks for name in settings if (tasks := _disputed(runs, name))}
    groups: dict[tuple[str | None, ...], list[Run]] = defaultdict(list)
    for run in runs:
        known = [run.details.get(name) for name in differing]
        groups[*known, *(_value(run, name, tasks) for name, tasks in disputed.items())].append(run)
    for values, members in groups.items():
        named = zip([*differing, *disputed], values, strict=True)
        facts = members[0].identity | {name: value for name, value in named if value is not None}
        yield Variant(members[0].model, facts, members)


def _disputed(runs: Sequence[Run], setting: str) -> set[str]:
    """Tasks that two runs have under different values of a setting."""
    seen: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for task, value in run.settings.get(setting, {}).items():
            seen[task].add(value)
    return {task for task, values in seen.items() if len(values) > 1}


def _value(run: Run, setting: str, disputed: set[str]) -> str | None:
    """A run's value of a setting: one for all its tasks, else that of each disputed task."""
    of_tasks = run.settings.get(setting, {})
    values = set(of_tasks.values())
    if len(values) <= 1:
        return next(iter(values), None)
    return ",".join(f"{task}:{of_tasks[task]}" for task in sorted(disputed & set(of_tasks))) or None


def labels(names: Sequence[str], facts: Sequence[Mapping[str, str]]) -> list[str]:
    """A label for each variant: its name, followed by the facts that distinguish it from the others of that name.

    `llama`, or `llama revision=step1000` and `llama revision=step3000`. No two labels are the same.
    """
    named: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        named[_printable(name)].append(i)
    chosen = [""] * len(names)
    for name, members in named.items():
        distinguishing = _distinguishing([facts[i] for i in members])
        for i in members:
            shown = (f"{_printable(fact)}={_short(facts[i][fact])}" for fact in distinguishing if fact in facts[i])
            chosen[i] = " ".join([name, *shown])
    return _unique(chosen)


def _distinguishing(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """Few facts that distinguish all, chosen greedily: each time the one that leaves the most different."""
    names = list(dict.fromkeys(name for of_one in facts for name in of_one))
    chosen: list[str] = []

    def different(more: Sequence[str]) -> int:
        return len({tuple(of_one.get(name) for name in [*chosen, *more]) for of_one in facts})

    while different(()) < len(facts):
        best = max(names, key=lambda name: different([name]), default=None)
        if best is None or different([best]) == different(()):
            break
        chosen.append(best)
    return chosen


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Path → its last parts, as few as no other path has: `gqa/checkpoint-1000`."""
    parts = {path: PurePosixPath(path.replace("\\", "/")).parts for path in paths}
    shown = dict.fromkeys(parts, 1)
    while True:
        ends = {path: str(PurePosixPath(*parts[path][-count:])) for path, count in shown.items()}
        taken = Counter(ends.values())
        longer = [path for path, end in ends.items() if taken[end] > 1 and shown[path] < len(parts[path])]
        if not longer:
            return ends
        for path in longer:
            shown[path] += 1


def ends_with(path: str, end: str) -> bool:
    """Whether the last parts of a path are these."""
    parts, wanted = PurePosixPath(path).parts, PurePosixPath(end).parts
    return bool(wanted) and parts[-len(wanted) :] == wanted


def _unique(labels: Sequence[str]) -> list[str]:
    taken: set[str] = set()
    unique = []
    for label in labels:
        tried, again = label, 2
        while tried in taken:
            tried, again = f"{label} ({again})", again + 1
        taken.add(tried)
        unique.append(tried)
    return unique


def _printable(value: str) -> str:
    return "".join(letter if letter.isprintable() else "�" for letter in value).strip() or "unnamed"


def _short(value: str) -> str:
    shown = _printable(value)
    return shown if len(shown) <= _LONGEST else hashlib.sha256(shown.encode()).hexdigest()[:8]
