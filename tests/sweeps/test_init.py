"""`mlkv init`: what it writes can be planned, or says what to fill in; what cannot be used is refused, and nothing is
written then."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mlkv.evaluate.definitions import Function
from mlkv.layout import KVLayout, mha
from mlkv.patterns import budgets
from sweeps.planning import own_tasks
from sweeps.planning.layout_config import LayoutConfig
from sweeps.planning.new_config import FILES, _filled, _shares
from sweeps.planning.own_tasks import accuracy_of
from sweeps.planning.yaml_files import _Loader, read
from tests.support.bases import GQA, write_zeros
from tests.support.shell import exit_status

WORDS = "the quick brown fox jumps over the lazy dog and seven wizards vex jackals near lakes "
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: sums.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}} ="
doc_to_choice: ["1", "2"]
doc_to_target: "{{{{answer}}}}"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, text and a folder of tasks, in the working directory. lm-eval does not try the tasks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_tasks.OwnTasks, "try_out", lambda *_: None)
    for name in ("model", "texts", "t"):
        Path(name).mkdir()
    write_zeros(Path("model"), GQA)
    from mlkv.corpus.tokenizer import train

    train([WORDS], 280).save_pretrained("model")
    Path("texts/a.jsonl").write_text("".join(json.dumps({"text": f"{WORDS * 9}{i}"}) + "\n" for i in range(60)))
    for name in ("sums", "more"):
        Path(f"t/{name}.yaml").write_text(TASK.format(name=name))
    Path("t/sums.jsonl").write_text("\n".join(json.dumps({"question": "1 + 0", "answer": 0}) for _ in range(4)))
    Path("t/both.yaml").write_text("group: both\ntask: [sums, more]\naggregate_metric_list: [{metric: acc}]\n")
    return tmp_path


def planned(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    capsys.readouterr()
    assert exit_status("plan", "--config-dir", "mine", "experiment=mine", *words) == status
    return "".join(capsys.readouterr())


def test_what_is_given_is_planned_in_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("init", "mine", "--model", "model", "--text", "texts", "--tasks", "t/sums.yaml") == 0
    printed = capsys.readouterr().out
    assert all(f"mine/{name}\n" in printed for name in FILES)
    assert "mlkv plan --config-dir mine experiment=mine    # 6 variants" in printed
    variants = json.loads(planned(capsys, "--json"))["variants"]
    [own] = {row["kv_bytes_per_token"] for row in variants if row["baseline"]}
    assert sorted(own / row["kv_bytes_per_token"] for row in variants if not row["baseline"]) == [2, 2, 4, 4]


def test_a_folder_of_tasks_is_its_groups_and_what_is_in_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("t/alone.yaml").write_text(TASK.format(name="alone"))
    assert exit_status("init", "mine", "--model", "model", "--text", "texts/*.jsonl", "--tasks", "t") == 0
    assert "tasks: alone, both, bits_per_byte" in planned(capsys)
    scored = OmegaConf.to_container(read(Path("mine/evaluate/mine.yaml")))
    assert isinstance(scored, dict)
    assert scored["accuracy"] == [["alone", "acc"], ["both", "acc"]]


def test_what_is_left_open_is_refused_with_its_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("init", "mine") == 0
    assert "mine/model/mine.yaml: fill in path\n" in capsys.readouterr().out
    assert planned(capsys, status=2) == (
        "mlkv: corpus.files: must be set (edit mine/corpus/mine.yaml); evaluate.tasks: must be set "
        "(edit mine/evaluate/mine.yaml); model.path: must be set (edit mine/model/mine.yaml)\n"
    )
    Path("mine/model/torn.yaml").write_text("path: [")
    path = Path("mine/evaluate/mine.yaml")
    path.write_text(path.read_text().replace("tasks: ???", "tasks: bits_per_byte"))
    assert planned(capsys, "corpus.files=[texts]", status=2).startswith("mlkv: model.path: must be set (edit mine/")
    assert "MLKV" in planned(capsys, "corpus.files=[texts]", "model.path=model")


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_overwritten(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path := Path("mine") / name).parent.mkdir(parents=True)
    path.write_text("mine")
    assert exit_status("init", "mine", "--text", "texts") == 2
    assert capsys.readouterr().err.startswith(f"mlkv: mine/{name}: exists already")
    assert [each for each in Path("mine").rglob("*") if each.is_file()] == [path]
    assert path.read_text() == "mine"


def test_a_directory_with_other_files_keeps_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path := Path("mine/layout/ends.yaml")).parent.mkdir(parents=True)
    path.write_text("pattern: keep_ends\n")
    assert exit_status("init", "mine", "--text", "texts") == 0
    found = {each.relative_to("mine").as_posix() for each in Path("mine").rglob("*") if each.is_file()}
    assert found == {*FILES, "layout/ends.yaml"}
    assert path.read_text() == "pattern: keep_ends\n"


BAD = {
    ("--model", "nowhere"): "model.path = nowhere: no checkpoint there",
    ("--model", "texts"): "model.path = texts: no checkpoint there",
    ("--model", "torn"): "torn: model.safetensors is not a whole safetensors file",
    ("--model", "one"): "cannot become smaller",
    ("--model", ""): "--model: must not be empty",
    ("--text", "nowhere"): "corpus.files = ",
    ("--text", "t"): "has no column text",
    ("--text", "empty.txt"): "empty.txt: no text in it",
    ("--text", "texts", "t/sums.yaml"): "sums.yaml",
    ("--tasks", "nowhere"): "--tasks = nowhere: no such file or folder",
    ("--tasks", "texts"): "--tasks = texts: no file in it defines a task",
    ("--tasks", "torn.yaml"): "torn.yaml: line ",
    ("--tasks", "none.yaml"): "none.yaml: has no dataset_path",
    ("--tasks", "empty.txt"): "empty.txt: is no task definition",
}


@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_what_cannot_be_used_is_refused_in_one_line(
    words: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, layers in (("torn", 6), ("one", 1)):
        Path(name).mkdir()
        write_zeros(Path(name), {**GQA, "num_hidden_layers": layers, "num_key_value_heads": 4 if layers > 1 else 1})
    os.truncate("torn/model.safetensors", 5000)
    Path("empty.txt").write_text("")
    Path("torn.yaml").write_text("task: [sums")
    Path("none.yaml").write_text("task: none\n")
    before = set(here.rglob("*"))
    assert exit_status("init", "mine", *words) == 2
    error = capsys.readouterr().err
    assert (error[:6], error.count("\n")) == ("mlkv: ", 1)
    assert BAD[words] in error
    assert set(here.rglob("*")) == before


@pytest.mark.parametrize("folder", ["texts/a.jsonl", "texts/a.jsonl/mine", "./texts/a.jsonl/my/own"])
def test_a_file_is_no_directory(folder: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("init", folder) == 2
    assert capsys.readouterr().err == "mlkv: texts/a.jsonl: is a file; init writes a directory there\n"


def test_a_file_in_the_place_of_a_group_is_refused_first(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/uptrain").write_text("")
    assert exit_status("init", "mine") == 2
    assert capsys.readouterr().err == "mlkv: mine/uptrain: is a file; init writes a directory there\n"
    assert [path.name for path in Path("mine").iterdir()] == ["uptrain"]


@pytest.mark.parametrize("folder", [".", "..", "new/and/below", "a b", "$HOME {x}"])
def test_any_directory_can_be_written_from_anywhere(folder: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place := here / "in" / "side").mkdir(parents=True)
    monkeypatch.chdir(place)
    assert exit_status("init", folder) == 0
    assert all((place / folder / name).is_file() for name in FILES)
    assert place.samefile("."), "the shell's own directory is not another one now"


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1))
def test_any_path_is_written_so_that_it_is_read_back(path: str) -> None:
    for text in (path, f"{path}${{x}}", f"\\${{{path}"):
        file = _filled("\nfiles: ???\n", files=[text])
        assert OmegaConf.create(yaml.load(file, _Loader)).files[0] == text


@settings(max_examples=60)
@given(layers=st.integers(1, 40), heads=st.integers(1, 16), groups=st.integers(1, 4))
def test_shares_are_half_and_a_quarter_where_there_are_such_layouts(layers: int, heads: int, groups: int) -> None:
    base = KVLayout(tuple(range(layers)), (heads,) * layers, heads * groups)
    if base.budget == 1:
        return
    shares, possible = _shares(base), budgets("even", base)
    for part, share in zip((2, 4), (shares[0], shares[-1]), strict=True):
        assert LayoutConfig(cache=share).layouts(base)
        assert share < 1
        wanted = Fraction(base.budget) / part
        nearest = min(abs(budget - wanted) for budget in possible if budget < base.budget)
        assert abs(share * base.budget - wanted) == nearest
    assert _shares(mha(8, 8)) == [Fraction(1, 2), Fraction(1, 4)]


@pytest.mark.parametrize(
    ("definition", "metric"),
    [
        ({"output_type": "multiple_choice"}, "acc"),
        ({}, "exact_match"),
        ({"output_type": "loglikelihood_rolling"}, None),
        ({"metric_list": [{"metric": "perplexity", "higher_is_better": False}, {"metric": "acc"}]}, "acc"),
        ({"metric_list": [{"metric": "exact_match"}], "filter_list": [{"name": "strict"}]}, "exact_match,strict"),
        ({"metric_list": [{"metric": Function("mine.f")}]}, None),
        ({"metric_list": "acc"}, None),
        ({"group": "g", "task": ["a"]}, None),
        ({"group": "g", "task": ["a"], "aggregate_metric_list": [{"metric": "acc"}]}, "acc"),
    ],
)
def test_the_score_of_a_definition(definition: dict[str, object], metric: str | None) -> None:
    assert accuracy_of(definition) == metric
