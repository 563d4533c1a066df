"""A line's option of which the experiment replaces values is said to be so, and none else."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sweeps.planning.compose import Composer
from sweeps.planning.overruled import overruled
from sweeps.planning.plan import Plan
from tests.support.shell import Shell

MEASURED = r"measure=none: the experiment sets measure.batch_sizes = \[8\]; to change that, give it on the line$"


@pytest.mark.parametrize(
    ("line", "notes"),
    [
        ("experiment=quickstart", []),
        ("measure=none uptrain=short", []),
        ("experiment=quickstart convert=mean uptrain=short layout=mqa", []),
        ("experiment=kv_apart scale=small measure=none", [MEASURED]),
        ("experiment=kv_apart scale=small measure=none uptrain=none", [MEASURED]),
        ("experiment=kv_apart scale=small measure=none measure.batch_sizes=[]", []),
        ("experiment=stacking scale=small model=embedded_recall", [r"model=embedded_recall: .* and \d+ more; "]),
    ],
)
def test_what_an_experiment_replaces_is_named_with_its_value(line: str, notes: list[str]) -> None:
    found = overruled(Composer(), line.split(), line.split())
    assert len(found) == len(notes)
    for note, expected in zip(found, notes, strict=True):
        assert re.match(expected, note)


def test_what_the_experiment_chooses_itself_is_no_fault_of_the_line(
    planner: Callable[[Sequence[str]], Plan],
) -> None:
    """Its grid chooses an option of measure, and its own values stand above that one too."""
    assert planner(["experiment=context", "scale=small"]).overruled == ()


def test_plans_and_searches_say_it(tmp_path: Path) -> None:
    mlkv = Shell(tmp_path)
    line = ["experiment=kv_apart", "scale=small", "measure=none"]
    assert "measure=none: the experiment sets" in mlkv("plan", *line)
