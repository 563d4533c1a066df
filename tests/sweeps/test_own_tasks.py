"""Tasks of lm-eval by files of one's own: found, pinned with all that they need, frozen, and refused in one line."""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path

import pytest

from mlkv.families.save import to_family
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import mha
from mlkv.registry import ExtensionError
from mlkv.shape import DecoderShape
from sweeps.planning import own_tasks
from sweeps.planning.compose import Composer
from sweeps.planning.freeze import freeze
from sweeps.planning.own_tasks import OwnTasks
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.resolve import Resolver
from sweeps.steps.evaluate import TASK_FILES
from sweeps.steps.extensions import pinned_task
from sweeps.store.errors import UserError
from sweeps.store.files import read_cache
from sweeps.store.store import Store
from sweeps.store.user_cache import user_cache
from sweeps.worker.supervisor import DONE, Worker
from tests.support.workers_here import workers_here

YAML = """task: sums
include: _shared
dataset_kwargs: {data_files: {test: sums.jsonl}}
doc_to_text: !function wording.question
doc_to_target: "{{answer}}"
"""
SHARED = """dataset_path: json
test_split: test
output_type: generate_until
generation_kwargs: {until: ["."]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
CODE = "def question(doc):\n    return f\"{doc['question']} = \"\n"
LINE = ["layout=mqa", "measure=none", "uptrain=none", "sweep.baselines=[]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A definition that includes a file, a function and data."""
    folder = tmp_path / "mine" / "tasks"
    folder.mkdir(parents=True)
    (folder / "sums.yaml").write_text(YAML)
    (folder / "_shared").write_text(SHARED)
    (folder / "wording.py").write_text(CODE)
    rows = [{"question": f"{i} + {i}", "answer": str(2 * i)} for i in range(6)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def nothing_is_tried(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Trying a task imports lm-eval, which takes seconds: only the tests that are about it do."""
    if "tried" not in request.keywords:
        monkeypatch.setattr(OwnTasks, "try_out", lambda *_: None)


@cache
def composer_of(config_dir: Path | None) -> Composer:
    return Composer(config_dir)


@cache
def resolver() -> Resolver:
    return Resolver(Store(Path("nowhere")))


def plan_of(*line: str, config_dir: Path | None = None) -> Plan:
    composer = composer_of(config_dir)
    composer.own_tasks = OwnTasks(config_dir)  # files are read once by each
    return make_plan(composer, resolver(), [*LINE, *line])


def step_ids(plan: Plan) -> list[str]:
    return [step.id for step in plan.variants[0].evaluate.values()]


def refused(*line: str, config_dir: Path | None = None) -> str:
    with pytest.raises(UserError) as error:
        plan_of(*line, config_dir=config_dir)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_it_is_found_by_path_in_a_config_dir_and_below_a_folder(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    by_path = plan_of("evaluate.tasks=[./sums.yaml]")
    ids = step_ids(by_path)
    assert list(by_path.variants[0].evaluate) == ["sums"]
    assert step_ids(plan_of("evaluate.tasks=sums.yaml")) == ids
    assert step_ids(plan_of("evaluate.tasks=[sums]", config_dir=folder.parent)) == ids
    assert step_ids(plan_of("evaluate.tasks=[sums]", f"evaluate.include_path={folder}")) == ids
    scored = plan_of("evaluate.tasks=[sums.yaml]", "evaluate.accuracy=[[sums,exact_match]]")
    assert scored.config.evaluate.accuracy == (("sums", "exact_match"),)


def test_one_task_needs_no_list_and_scores_of_others_go(tmp_path: Path) -> None:
    plan = plan_of("evaluate.tasks=arc_easy")
    assert plan.config.evaluate.tasks == ("arc_easy",)
    assert plan.config.evaluate.accuracy == ()
    assert plan.config.evaluate.axis is None
    assert "heldout_choice4 is scored" in refused(
        "evaluate.tasks=arc_easy", "evaluate.accuracy=[[heldout_choice4,acc]]"
    )


def digest_of(folder: Path) -> str:
    files = OwnTasks().files("sums", str(folder))
    assert files
    return files.digest


@pytest.mark.parametrize("name", ["sums.yaml", "_shared", "wording.py", "helper.py", "sums.jsonl"])
def test_every_file_that_it_needs_is_its_identity(tmp_path: Path, folder: Path, name: str) -> None:
    (folder / "helper.py").write_text("sign = '='\n")
    (folder / "wording.py").write_text(f"from helper import sign\n{CODE}")
    before = digest_of(folder)
    (folder / "other.yaml").write_text("task: other\n")
    assert digest_of(folder) == before, "a file that it does not need"
    with (folder / name).open("a") as file:
        file.write("\n")
    changed = digest_of(folder)
    assert changed != before
    assert digest_of(folder.rename(tmp_path / "moved")) == changed


def test_data_outside_its_folder_travel_too(tmp_path: Path, folder: Path) -> None:
    (folder / "sums.jsonl").rename(tmp_path / "far.jsonl")
    (folder / "sums.yaml").write_text(YAML.replace("sums.jsonl", "../../far.jsonl"))
    store = Store.open(tmp_path / "store")
    plan = plan_of(f"evaluate.tasks=[{folder}/sums.yaml]")
    freeze(plan, store, [])
    [digest] = plan.task_files
    assert [path.name for path in store.task_files(digest).rglob("*.jsonl")] == ["far.jsonl"]


def test_a_group_and_its_members_are_one_task(tmp_path: Path, folder: Path) -> None:
    (folder / "both.yaml").write_text("group: both\ntask: [sums, more]\n")
    (folder / "more.yaml").write_text("include: sums.yaml\ntask: more\nnum_fewshot: 2\n")
    line = f"evaluate.tasks=[{folder}/both.yaml]"
    [step] = plan_of(line).variants[0].evaluate.values()
    assert step.slice["few_shot"] == {"sums": 0, "more": 2}
    (folder / "more.yaml").write_text("include: sums.yaml\ntask: more\nnum_fewshot: 3\n")
    assert step_ids(plan_of(line)) != [step.id]
    (folder / "both.yaml").write_text("group: both\ntask: [sums, mora]\n")
    assert "both.yaml: task mora is defined neither beside it nor by lm-eval; did you mean more?" in refused(line)


BAD = {
    "torn": ("task: sums\n  a: [", r"sums.yaml: line \d: "),
    "no task": ("dataset_path: json\n", r"sums\.yaml: defines no task"),
    "a list": ("- sums\n", r"sums\.yaml: is no task definition"),
    "no text": (
        YAML.replace("doc_to_text", "doc_to_txt"),
        r"sums\.yaml: has no doc_to_text, which output_type generate",
    ),
    "no include": (YAML.replace("_shared", "_shred"), r"_shred: No such file"),
    "itself": (YAML.replace("_shared", "sums.yaml"), r"sums\.yaml: includes itself"),
    "no function": (YAML.replace("wording.question", "wording.qestion"), r"wording\.py defines no qestion"),
    "no data": (YAML.replace("sums.jsonl", "nope.jsonl"), r"sums\.yaml: its data nope\.jsonl is neither beside it nor"),
    "no metric": (
        YAML + "metric_list: [{metric: exact_mach}]\n",
        r"metric = exact_mach: lm-eval has none of that name; did you mean exact_match\?",
    ),
    "no mean": (
        YAML + "metric_list: [{metric: exact_match, aggregation: meen}]\n",
        r"aggregation = meen: lm-eval has none of that name; did you mean mean\?",
    ),
    "no type": (YAML + "output_type: generate\n", r"output_type = generate: must be one of loglikelihood, "),
    "no choice": (YAML + "output_type: multiple_choice\n", r"has no doc_to_choice, which output_type multiple_choice"),
    "taken": (YAML.replace("task: sums", "task: bits_per_byte"), r"a task bits_per_byte exists already; rename yours"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_definition_that_cannot_work_is_named(folder: Path, fault: str) -> None:
    content, message = BAD[fault]
    (folder / "sums.yaml").write_text(content)
    reason = fault_of(folder / "sums.yaml")
    assert re.search(message, reason), reason
    assert str(folder) in reason
    assert "\n" not in reason


def fault_of(path: Path) -> str:
    own = OwnTasks()
    try:
        name = own.named({"evaluate": {"tasks": [str(path)]}}, [])["evaluate"]["tasks"][0]
        own.files(name, None)
    except UserError as error:
        return str(error)
    return ""


def test_a_torn_function_file_is_named(folder: Path) -> None:
    (folder / "wording.py").write_text("def question(doc:\n")
    assert fault_of(folder / "sums.yaml").startswith(f"evaluate.tasks: {folder}/wording.py: line 1: ")


def test_a_task_that_is_nowhere_is_answered_with_what_may_hide_it(tmp_path: Path, folder: Path) -> None:
    assert refused("evaluate.tasks=[./nope.yaml]") == "evaluate.tasks = ./nope.yaml: no such file"
    assert "no such directory" in refused("evaluate.include_path=/nope", "evaluate.tasks=[sums]")
    (folder / "sums.yaml").write_text("task: sums\n a: [")
    assert f"; {folder}/sums.yaml: line " in refused("evaluate.tasks=[sums]", config_dir=folder.parent)


def test_a_folder_of_all_kinds_of_files_is_not_searched(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_tasks, "MOST_FILES", 40)
    for number in range(41 - len(list(folder.iterdir()))):
        (folder / f"{number}.txt").touch()
    message = refused(f"evaluate.include_path={tmp_path}", "evaluate.tasks=[sums]")
    assert message.startswith(
        f"evaluate.tasks: {tmp_path} (evaluate.include_path, or tasks/ of --config-dir) holds more"
    )
    (folder / "0.txt").unlink()
    assert step_ids(plan_of(f"evaluate.include_path={tmp_path}", "evaluate.tasks=[sums]"))


# Answers and room


@pytest.mark.tried
def test_lm_eval_tries_a_task_whose_data_are_here_once(folder: Path) -> None:
    tried = user_cache("tried.json")
    tried.unlink(missing_ok=True)
    plan_of(f"evaluate.tasks=[{folder}/sums.yaml]")
    first = read_cache(tried)
    plan_of(f"evaluate.tasks=[{folder}/sums.yaml]")
    assert list(first.values()) == ["sums"]
    assert read_cache(tried) == first
    (folder / "wording.py").write_text("def question(doc):\n    return doc['qestion']\n")
    for _ in range(2):
        assert f"{folder}/sums.yaml: KeyError: 'qestion'" in refused(f"evaluate.tasks=[{folder}/sums.yaml]")
    assert read_cache(tried) == first


@pytest.mark.tried
def test_more_examples_than_there_are_is_refused(tmp_path: Path, folder: Path) -> None:
    line = [f"evaluate.tasks=[{folder}/sums.yaml]", "evaluate.few_shot=7"]
    assert "few_shot = 7: task sums has only 6 examples" in refused(*line)
    assert "evaluate.few_shot = 256: task arc_easy: the model's context has 256 tokens in all" in refused(
        "evaluate.tasks=arc_easy", "evaluate.few_shot=256"
    )


def test_answers_get_half_the_context_under_an_id_that_says_so(tmp_path: Path) -> None:
    """Where earlier code gave them more of it; where it failed, or gave as much, ids stay."""

    def pins(context: int) -> set[str]:
        [step] = plan_of("evaluate.tasks=gsm8k", f"model.decoder.context={context}").variants[0].evaluate.values()
        return set(step.pinned)

    assert pins(256) == pins(512) == {"lm_eval"}
    assert pins(300) == {"lm_eval", "answers"}


def test_a_checkpoint_is_scored_on_it_from_the_copy(tmp_path: Path, folder: Path) -> None:
    """Evaluate a checkpoint that one has, on a task of one's own: no corpus, no training."""
    base = tmp_path / "base"
    shape = DecoderShape(512, width=16, layers=2, heads=2, head_dim=8, mlp_width=32, context=64)
    to_family(MLKVForCausalLM.from_shape(shape, mha(2, 2), seed=0), "gpt_neox").save_pretrained(base)
    from mlkv.corpus.tokenizer import train

    train(["1 + 1 = 2, and 2 + 2 = 4. "] * 9, 300).save_pretrained(base)
    store = Store.open(tmp_path / "store")
    line = checkpoint_line(base, folder)
    plan = make_plan(Composer(), Resolver(store), line)
    assert [step.kind for step in plan.steps.values()] == ["base", "evaluate"]
    freeze(plan, store, line)
    (folder / "wording.py").write_text("broken")
    with workers_here():
        assert Worker(store).run(list(plan.steps)) == DONE
    [evaluated] = [id for id, step in plan.steps.items() if step.kind == "evaluate"]
    record = store.step(evaluated).record()
    assert record
    assert record.facts["max_gen_toks"] == 32
    assert [row.metric for row in record.metrics] == ["exact_match"]
    copy = store.task_files(plan.steps[evaluated].pinned[TASK_FILES])
    assert pinned_task(store, plan.steps[evaluated].pinned) == copy
    (copy / "wording.py").write_text("edited")
    with pytest.raises(ExtensionError, match=rf"^{copy}: was edited; delete that folder and run the sweep's line"):
        pinned_task(store, plan.steps[evaluated].pinned)


def checkpoint_line(base: Path, folder: Path) -> list[str]:
    return [
        "model=pythia-160m-deduped",
        f"model.path={base}",
        f"evaluate.tasks=[{folder}/sums.yaml]",
        "uptrain=none",
        "measure=none",
        "sweep.baselines=[untouched]",
        "sweep.filter='False'",
        "corpus.sequence_length=64",
    ]


def test_a_folder_that_vanishes_while_it_is_looked_through_defines_no_task(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "gone").mkdir()
    scan = os.scandir

    def vanished(path: str) -> object:
        if str(path).endswith("gone"):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", vanished)
    assert "sums" in OwnTasks().definitions("sums", str(folder.parent))
