"""RULER's tasks at lengths: what a plan takes and refuses, and what stands in a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkv.evaluate import ruler
from sweeps.planning.plan import Plan
from sweeps.store.errors import UserError

Planner = Callable[[Sequence[str]], Plan]
OFFERED = tuple(4096 << n for n in range(6))
LINE = ["evaluate.tasks=[niah_single_1]", "evaluate.accuracy=[]", "evaluate.axis=null", "evaluate.converted=[]"]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the packages were there: a plan makes no questions."""
    monkeypatch.setattr(ruler, "PACKAGES", ())


def test_only_tasks_of_ruler_have_lengths() -> None:
    assert all(ruler.offered(task) == OFFERED for task in ("niah_single_1", "niah_multiquery", "ruler_vt"))
    assert not any(map(ruler.offered, ("ruler", "arc_easy", "longcxt", "no_such_task")))


@given(st.integers(4096, 2**18), st.lists(st.sampled_from(OFFERED), unique=True))
def test_lengths_are_those_that_were_asked_for_or_all_that_fit(context: int, wanted: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ruler, "PACKAGES", ())
        if any(length > context for length in wanted):
            with pytest.raises(ValueError, match=f"in a context of {context} tokens, takes 4096"):
                ruler.chosen("niah_single_2", wanted, context)
        else:
            found = ruler.chosen("niah_single_2", wanted, context)
            assert found == (tuple(wanted) or tuple(length for length in OFFERED if length <= context))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ruler, "PACKAGES", ("nltk", "no_such_package"))
    with pytest.raises(ValueError, match=r"niah_single_1: .* with no_such_package: pip install no_such_package"):
        ruler.chosen("niah_single_1", (), 8192)


@pytest.mark.usefixtures("installed")
def test_each_length_stands_in_the_step(planner: Planner) -> None:
    longer = "model.decoder.context=8192"
    recipes = {line: present_lengths(planner([*LINE, longer, *line])) for line in ((), ("evaluate.lengths=[4096]",))}
    assert recipes == {(): {(4096, 8192)}, ("evaluate.lengths=[4096]",): {(4096,)}}


def present_lengths(plan: Plan) -> set[tuple[int, ...]]:
    steps = [step for variant in plan.variants for step in variant.evaluate.values()]
    assert steps
    return {tuple(step.slice.get("lengths", ())) for step in steps}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ([*LINE], "a context of 256 tokens has room for none: the shortest is 4096"),
        ([*LINE, "evaluate.lengths=[5000]", "model.decoder.context=8192"], "lengths = 5000: .* takes 4096, 8192"),
        ([*LINE, "evaluate.lengths=[4096,4096]"], "a length is scored once"),
        (["evaluate.lengths=[4096]"], "none of evaluate.tasks is a task of RULER"),
    ],
)
def test_what_could_not_be_scored_ends_the_plan(planner: Planner, line: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        planner(line)
