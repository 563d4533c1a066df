"""How many examples a task gets: its own number unless another is asked for, and which of them stands in an id."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlkv.evaluate import few_shot, task_names
from mlkv.evaluate.few_shot import own_counts
from sweeps.planning.plan import Plan
from sweeps.store.errors import UserError

Planner = Callable[[Sequence[str]], Plan]
LINE = ["layout=mqa", "measure=none", "uptrain=none", "sweep.baselines=[]", "evaluate=none"]


def counts(planner: Planner, tasks: str, *more: str) -> dict[str, Any]:
    [variant] = planner([*LINE, f"evaluate.tasks=[{tasks}]", *more]).variants
    given = {task: step.slice["few_shot"] for task, step in variant.evaluate.items()}
    assert variant.row().few_shot == {task: count for task, count in given.items() if task != "bits_per_byte"}
    return given


def ids(planner: Planner, tasks: str, *more: str) -> list[str]:
    [variant] = planner([*LINE, f"evaluate.tasks=[{tasks}]", *more]).variants
    return [step.id for step in variant.evaluate.values()]


def test_a_task_has_its_own_number(planner: Planner) -> None:
    tasks = "bits_per_byte,heldout_cloze,arc_easy,mmlu,gsm8k"
    own = {"bits_per_byte": 0, "heldout_cloze": 0, "arc_easy": 0, "mmlu": 0, "gsm8k": 5}
    assert counts(planner, tasks) == counts(planner, tasks, "evaluate.few_shot=null") == own
    assert counts(planner, tasks, "evaluate.few_shot=2") == dict.fromkeys(own, 2)
    assert counts(planner, tasks, "evaluate.few_shot={gsm8k: 3, mmlu: 5}") == own | {"gsm8k": 3, "mmlu": 5}
    assert counts(planner, tasks, "evaluate.few_shot={gsm8k:0}")["gsm8k"] == 0


def test_a_group_with_a_member_that_has_no_name_is_refused_as_lm_eval_refuses_it(planner: Planner) -> None:
    with pytest.raises(UserError, match=r"evaluate\.task = t0_eval: group t0_eval has a member without a name"):
        counts(planner, "t0_eval")


def test_the_number_stands_in_the_id(planner: Planner) -> None:
    without = "bits_per_byte,heldout_cloze,arc_easy,mmlu"
    assert ids(planner, without) == ids(planner, without, "evaluate.few_shot=0"), "they keep their ids"
    assert (
        ids(planner, "gsm8k")
        == ids(planner, "gsm8k", "evaluate.few_shot=5")
        != ids(planner, "gsm8k", "evaluate.few_shot=0")
    )
    assert ids(planner, "gsm8k", "evaluate.few_shot={gsm8k: 3}") == ids(planner, "gsm8k", "evaluate.few_shot=3")


def test_a_group_whose_tasks_differ_says_each_of_them(planner: Planner) -> None:
    own = counts(planner, "openllm")["openllm"]
    assert (own["arc_challenge"], own["hellaswag"], own["truthfulqa_mc2"], own["gsm8k"]) == (25, 10, 0, 5)
    assert own["mmlu_anatomy"] == 5, "a member that is a group hands it on"
    [step] = planner([*LINE, "evaluate.tasks=[openllm]"]).variants[0].evaluate.values()
    assert "seed" in step.slice, "it picks the examples"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{gsm8: 5}", r"few_shot\.gsm8: not among tasks; did you mean gsm8k\? valid: gsm8k, winogender_all"),
        ("5", r"few_shot = 5: task \S+ takes none; set evaluate\.few_shot=\{TASK: N\}"),
        ("-1", r"few_shot = -1: must be greater than or equal to 0"),
        ("{gsm8k: -1}", r"few_shot\.gsm8k = -1: must be greater than or equal to 0"),
        ("{gsm8k: many}", r"few_shot\.gsm8k = many: must be a valid integer"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(planner: Planner, value: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        counts(
            planner,
            "gsm8k,gsm8k_cot_zeroshot" if value == "5" else "gsm8k,winogender_all",
            f"evaluate.few_shot={value}",
        )
    assert "\n" not in str(raised.value)


# Definitions, by lm-eval's rules

FILES = {
    "_base": "num_fewshot: 4\ntag: by_include\n",
    "a/_other_yaml": "include: ../_base\nnum_fewshot: 3\n",
    "a/plain.yaml": "task: plain\n",
    "a/inherits.yaml": "task: inherits\ninclude: _other_yaml\ntag: [two, three]\n",
    "a/overrides.yaml": "task: overrides\ninclude: [_other_yaml, ../_base]\nnum_fewshot: 1\nprocess: !function u.f\n",
    "a/later.yaml": "include:\n  - _other_yaml\n  - ../_base\ntask: later\n",
    "a/zero.yaml": "task: zero\nnum_fewshot: 0\n",
    "group.yaml": "group: hands_on\ntask: [plain, inherits, zero]\nnum_fewshot: 7\n",
    "nested.yaml": """group: nested
task:
  - hands_on
  - task: overrides
    num_fewshot: 2
  - task: two
    num_fewshot: 6
  - task: on_the_spot
    dataset_path: x
  - group: inner
    task: [plain]
""",
}


@pytest.fixture
def definitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An lm-eval with these definitions alone."""
    for name, text in FILES.items():
        path = tmp_path / "tasks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(task_names, "find_spec", lambda name: found)
    for cached in (task_names._lm_eval, few_shot._find):
        cached.cache_clear()
    yield tmp_path / "tasks"
    for cached in (task_names._lm_eval, few_shot._find):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", {"plain": None}),
        ("inherits", {"inherits": 3}),
        ("overrides", {"overrides": 1}),
        ("later", {"later": 4}),
        ("zero", {"zero": 0}),
        ("two", {"inherits": 3}),
        ("by_include", {"overrides": 1, "later": 4}),
        ("hands_on", {"plain": 7, "inherits": 7, "zero": 7}),
        ("nested", {"plain": None, "inherits": 6, "zero": 7, "overrides": 2, "nested::on_the_spot": None}),
    ],
)
def test_files_are_read_as_lm_eval_does(definitions: Path, name: str, expected: dict[str, int | None]) -> None:
    assert own_counts(name) == expected


@pytest.mark.parametrize(
    "text", ["task: plain\ninclude: plain.yaml\n", "task: plain\n a: b: c", "include: nowhere\ntask: plain"]
)
def test_a_broken_definition_is_named(definitions: Path, text: str) -> None:
    (definitions / "a" / "plain.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"(plain\.yaml|nowhere): "):
        own_counts("plain")
