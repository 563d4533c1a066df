"""What a plan finds out about a corpus's text before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sweeps.planning.plan import Plan
from sweeps.store.errors import UserError

Planner = Callable[[Sequence[str]], Plan]
WORDS = "the quick brown fox jumps over the lazy dog and seven wizards vex jackals near lakes "
LINE = ["corpus=files", "layout=mqa", "evaluate=none", "measure=none", "corpus.vocab_size=300"]


def rows_in(path: Path, count: int = 40, column: str = "text", length: int = 12) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({column: f"{WORDS * length}{i}"}) + "\n" for i in range(count)))
    return path


def note(plan: Plan) -> str:
    [found] = {variant.corpus_note for variant in plan.variants}
    return found


def refused(planner: Planner, *line: str) -> str:
    with pytest.raises(UserError) as error:
        planner([*LINE, *line])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_plan_says_what_it_read(planner: Planner, tmp_path: Path) -> None:
    path = rows_in(tmp_path / "a.jsonl")
    with path.open("a") as file:
        file.write('{"text": null}\n')
    (tmp_path / "b.pdf").touch()
    found = note(planner([*LINE, f"corpus.files=[{tmp_path}]"]))
    skipped = f"1 row without text was skipped (first: {path}: line 41: no text)"
    assert found == f"40 documents; {skipped}; 1 files of other formats are not read (.pdf)"


def test_the_contents_are_the_identity(planner: Planner, tmp_path: Path) -> None:
    first, second = rows_in(tmp_path / "one" / "a.jsonl"), rows_in(tmp_path / "two" / "a.jsonl")
    line = [*LINE, "corpus.text_column=text"]
    ids = planner([*line, f"corpus.files=[{first}]"]).steps.keys()
    assert planner([*line, f"corpus.files=[{second.parent}]"]).steps.keys() == ids
    rows_in(second, 41)
    assert planner([*line, f"corpus.files=[{second}]"]).steps.keys() != ids


def test_a_local_dataset_may_be_a_file(planner: Planner, tmp_path: Path) -> None:
    path = rows_in(tmp_path / "a.jsonl")
    line = ["corpus.source=hf", "layout=mqa", "evaluate=none", "measure=none", "corpus.vocab_size=300"]
    assert note(planner([*line, f"corpus.dataset={path}"])) == "40 documents"
    for missing in ("nope.jsonl", "./nope", "/no/such/folder"):
        with pytest.raises(UserError, match=r"^corpus\.dataset = .*: no such file or directory$"):
            planner([*line, f"corpus.dataset={missing}"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["corpus.text_column=body"], "a.jsonl: has no column body (corpus.text_column); its columns: text"),
        (["corpus.sequence_length=4096", "model.decoder.context=4096"], "corpus: train text has"),
        (["corpus.files=[/no/such/file]"], "corpus.files = /no/such/file: matches no file"),
        (["corpus.vocab_size=256"], "corpus.vocab_size = 256: a byte-level tokenizer needs at least 257"),
    ],
)
def test_what_cannot_become_a_corpus_is_refused(
    planner: Planner, tmp_path: Path, line: list[str], message: str
) -> None:
    path = rows_in(tmp_path / "a.jsonl", length=2)
    assert message in refused(planner, f"corpus.files=[{path}]", "corpus.task_items=0", *line)


def test_documents_too_short_for_items_are_refused_with_the_way_out(planner: Planner, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"short {i}"}) + "\n" for i in range(9000)))
    reason = refused(planner, f"corpus.files=[{path}]")
    assert reason.startswith("corpus.task_items = 600: no held-out document is long enough for an item")
    assert note(planner([*LINE, f"corpus.files=[{path}]", "corpus.task_items=0"])) == "9,000 documents"


def test_tasks_of_items_need_items(planner: Planner, tmp_path: Path) -> None:
    path = rows_in(tmp_path / "a.jsonl")
    line = [f"corpus.files=[{path}]", "corpus.task_items=0", "evaluate=held_out"]
    assert refused(planner, *line) == (
        "evaluate.tasks: heldout_choice4 is made of the corpus's items, and corpus.task_items = 0 makes none"
    )


def test_empty_and_damaged_files_are_refused(planner: Planner, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("")
    assert refused(planner, f"corpus.files=[{path}]") == f"corpus.files = {path}: no text in it"
    path.write_text('{"text": null}\n')
    assert "no text in it; 1 row without text was skipped" in refused(planner, f"corpus.files=[{path}]")
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}')
    assert refused(planner, f"corpus.files=[{path}]").startswith(f"corpus.files = {path}: line 2: not UTF-8")


def test_of_large_text_the_beginnings_are_read(
    planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.planning.texts.BUDGET", 20_000)
    path = rows_in(tmp_path / "a.jsonl")
    assert note(planner([*LINE, f"corpus.files=[{path}]"])).startswith("only the first ")
    rows_in(tmp_path / "b.jsonl", column="body")
    assert "b.jsonl: has no column text" in refused(planner, f"corpus.files=[{tmp_path}]")


def test_a_field_that_the_source_does_not_read_is_not_ignored(planner: Planner, tmp_path: Path) -> None:
    path = rows_in(tmp_path / "a.jsonl")
    for field, value in (("files", f"[{path}]"), ("dataset", str(path)), ("take", "3")):
        message = refused(planner, "corpus=python_stdlib", f"corpus.{field}={value}")
        assert message.startswith(f"corpus.{field} = ")
        assert "source python_stdlib does not read it" in message


def test_equal_files_that_names_would_part_have_a_new_id(planner: Planner, tmp_path: Path) -> None:
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(WORDS * 30 + str(i))
    line = [*LINE[1:], "corpus=text_files", f"corpus.files=[{tmp_path}/*.txt]", "corpus.task_items=0"]

    def pins() -> dict[str, str]:
        [corpus] = {variant.corpus.id: variant.corpus for variant in planner(line).variants if variant.corpus}.values()
        return corpus.pinned

    assert pins().keys() == {"text"}
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(WORDS * 30 + str(i % 7))
    assert pins().keys() == {"text", "split"}
