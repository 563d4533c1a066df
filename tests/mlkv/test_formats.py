"""Files of text by suffix: what becomes a document, and what is said of a file that cannot be read."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkv.context import StepFailed
from mlkv.corpus import step as corpus
from mlkv.corpus.documents import documents, local_files
from mlkv.corpus.formats import FORMATS, Skipped
from mlkv.recipes import CorpusRecipe
from tests.support.tiny import context

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.compress(data[:7]) + zstandard.compress(data[7:]),
}
TEXTS = ["first, with a comma", 'second "quoted"', "third\nof two lines", "Ünïcödé 🙂"]


def recipe_of(*patterns: object, **changes: Any) -> CorpusRecipe:
    return CorpusRecipe(**{"source": "files", "files": tuple(map(str, patterns)), "held_out": 0.5, **changes})


def texts_of(recipe: CorpusRecipe, skipped: Skipped | None = None) -> list[str]:
    return [document.text for document in documents(recipe, skipped)]


def json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def separated(rows: list[dict[str, str]], separator: str) -> bytes:
    import csv
    import io

    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


ROWS = [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)]
CONTENTS = {
    ".jsonl": json_lines(ROWS),
    ".ndjson": b"\xef\xbb\xbf" + json_lines(ROWS),
    ".json": json.dumps(ROWS, indent=1).encode(),
    ".csv": separated(ROWS, ","),
    ".tsv": separated(ROWS, "\t"),
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("suffix", CONTENTS)
def test_each_row_is_a_document(tmp_path: Path, suffix: str, compression: str) -> None:
    path = tmp_path / f"data{suffix}{compression}"
    path.write_bytes(COMPRESSIONS[compression](CONTENTS[suffix]))
    assert texts_of(recipe_of(path)) == TEXTS
    assert texts_of(recipe_of(path, source="hf", files=(), dataset=str(path))) == TEXTS


def test_rows_of_parquet_and_of_saved_datasets_are_documents(tmp_path: Path) -> None:
    import datasets

    dataset = datasets.Dataset.from_list(ROWS)
    dataset.to_parquet(tmp_path / "data.parquet")
    dataset.save_to_disk(tmp_path / "saved", num_shards=2)
    datasets.DatasetDict(train=dataset, test=dataset.select([0, 1])).save_to_disk(tmp_path / "parts")
    for name in ("data.parquet", "saved", "parts"):
        assert texts_of(recipe_of(tmp_path / name)) == TEXTS
        assert texts_of(recipe_of(files=(), source="hf", dataset=str(tmp_path / name))) == TEXTS
    assert texts_of(recipe_of(tmp_path / "parts", split="test")) == TEXTS[:2]
    with pytest.raises(ValueError, match=r"parts: has no split nope \(corpus\.split\); its splits: train, test"):
        texts_of(recipe_of(tmp_path / "parts", split="nope"))
    assert len(texts_of(recipe_of(tmp_path))) == 3 * len(TEXTS), "a folder holds them all"


def test_each_text_file_is_a_document_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b/two.md", "a.txt", "b/one.txt.gz", "b/.hidden.txt", "b/picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(COMPRESSIONS[Path(name).suffix if ".gz" in name else ""](f"{name}\nend".encode()))
    found = texts_of(recipe_of(tmp_path))
    assert found == ["a.txt\nend", "b/one.txt.gz\nend", "b/two.md\nend"]
    assert texts_of(recipe_of(f"{tmp_path}/b/*", tmp_path / "a.txt")) == found
    (tmp_path / "b" / "back").symlink_to(tmp_path)
    assert texts_of(recipe_of(tmp_path))[:2] == found[:2], "a link that leads back up is followed once"


def test_lines_of_json_by_another_suffix_and_one_object_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(json_lines(ROWS))
    (tmp_path / "b.json").write_bytes(json.dumps({"text": "alone"}).encode())
    assert texts_of(recipe_of(tmp_path)) == [*TEXTS, "alone"]


def test_rows_without_text_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": None}, {"text": ""}, {"id": 3}, {"text": 7}, {"text": "\ud800"}, {"text": "two"}]
    (tmp_path / "a.jsonl").write_bytes(json_lines(rows))
    skipped = Skipped()
    assert texts_of(recipe_of(tmp_path), skipped) == ["one", "two"]
    assert skipped.count == 5
    assert skipped.note() == f"5 rows without text were skipped (first: {tmp_path}/a.jsonl: line 2: no text)"
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"id": 1}, *rows]))
    assert texts_of(recipe_of(tmp_path)) == ["one", "two"], "whichever row is first"


def test_a_dataset_of_the_library_skips_them_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"text": "one"}, {"text": None}, {"text": ""}, {"text": "two"}]))
    skipped = Skipped()
    assert texts_of(recipe_of(files=(), source="hf", dataset=str(tmp_path)), skipped) == ["one", "", "two"]
    assert (skipped.count, skipped.first) == (1, f"{tmp_path}: row 2: no text")


def test_zstandard_is_there_for_the_library(tmp_path: Path) -> None:
    """SlimPajama's files are of this format."""
    (tmp_path / "part.jsonl.zst").write_bytes(zstandard.compress(json_lines(ROWS)))
    assert texts_of(recipe_of(files=(), source="hf", dataset=str(tmp_path))) == TEXTS


BAD: dict[str, tuple[bytes, str]] = {
    "bytes.jsonl": (b'{"text": "a"}\n{"text": "\xff"}\n', r"line 2: not UTF-8 \(byte 10: invalid start byte\)"),
    "bytes.txt": (b"one\ntwo \xe9\n", r"line 2: not UTF-8 \(byte 4"),
    "bytes.csv": (b"text\na\n\xff\n", r"line 3: not UTF-8"),
    "torn.jsonl": (b'{"text": "a"}\n{"text": "b', r"line 2: no JSON \(Unterminated string"),
    "torn.json": (b'[{"text": "a"},\n{"text": "b', r"line 2: no JSON \(Unterminated string"),
    "torn.csv": (b'text\na\n"b', r"line 3: unexpected end of data"),
    "torn.parquet": (b"PAR1xx", r"\(ArrowInvalid\)"),
    "torn.jsonl.gz": (gzip.compress(json_lines(ROWS * 99))[:-20], r"line \d+: Compressed file ended"),
    "torn.jsonl.bz2": (bz2.compress(json_lines(ROWS * 99))[:-20], r"line \d+: Compressed file ended"),
    "torn.jsonl.xz": (lzma.compress(json_lines(ROWS * 99))[:-20], r"line \d+: Compressed file ended"),
    "torn.jsonl.zst": (zstandard.compress(json_lines(ROWS * 99))[:-20], r"line \d+: the compressed file ends before"),
    "torn.txt.zst": (zstandard.compress(b"words " * 999)[:-2], r"the compressed file ends before .*\(EOFError\)"),
    "other.jsonl.zst": (b"no such format", r"line 1: .*"),
    "other.jsonl.gz": (b"no such format", r"line 1: Not a gzipped file"),
    "list.jsonl": (b'["text"]\n', r"line 1: is no JSON object with a column text"),
    "number.json": (b"7", r"item 1: is no JSON object with a column text"),
    "deep.jsonl": (b"[" * 100_000, r"line 1: no JSON"),
    "column.jsonl": (b'{"body": "a", "id": 1}\n', r"has no column text \(corpus\.text_column\); its columns: body, id"),
    "column.csv": (b"body,id\na,1\n", r"has no column text \(corpus\.text_column\); its columns: body, id"),
    "type.jsonl": (b'{"text": ["a"]}\n', r"its column text \(corpus\.text_column\) holds no text"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"^files = {path}: {'.*' if name.endswith('parquet') else ''}{message}"
    ) as error:
        texts_of(recipe_of(path))
    assert "\n" not in str(error.value)


def test_a_column_that_parquet_lacks_is_named(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list([{"body": "a"}]).to_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_list([{"body": "a"}]).save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "a.parquet", tmp_path / "saved"):
        with pytest.raises(ValueError, match=rf"^files = {path}: has no column text .*; its columns: body$"):
            texts_of(recipe_of(path))
    (tmp_path / "saved" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(ValueError, match=rf"^files = {tmp_path / 'saved'}: "):
        texts_of(recipe_of(tmp_path / "saved", text_column="body"))


def test_patterns_that_give_nothing_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").touch()
    (tmp_path / "empty").mkdir()
    for pattern, message in (
        ("nope/*", "matches no file"),
        ("empty", "matches no file"),
        ("a.pdf", r"a\.pdf is of no format that is read \(txt, md, jsonl"),
    ):
        with pytest.raises(ValueError, match=rf"^files = {tmp_path}/.*: {message}"):
            local_files(recipe_of(tmp_path / pattern))


# Which side of the split


def test_equal_documents_are_on_one_side(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text(f"text {i % 10}")
    for source in ("files", "text_files"):
        found = list(documents(recipe_of(f"{tmp_path}/*.txt", source=source)))
        sides = {(document.text, document.held_out) for document in found}
        assert len(found) == 40
        assert len(sides) == 10, source
        assert {held_out for _, held_out in sides} == {True, False}


@given(st.integers(2, 30), st.floats(0.001, 0.999))
@settings(max_examples=30)
def test_both_sides_have_something_of_few_documents(
    tmp_path_factory: pytest.TempPathFactory, count: int, share: float
) -> None:
    path = tmp_path_factory.mktemp("few") / "a.jsonl"
    path.write_bytes(json_lines([{"text": f"number {i}"} for i in range(count)]))
    assert {document.held_out for document in documents(recipe_of(path, held_out=share))} == {True, False}


def test_one_document_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"text": "the same"}] * 3))
    with pytest.raises(
        ValueError, match=r"^files = .*: one document only; held-out text needs at least two that differ"
    ):
        texts_of(recipe_of(tmp_path))


def test_take_and_fraction_choose_by_seed_and_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"text": f"number {i}"} for i in range(300)]))
    first, again, other = (texts_of(recipe_of(tmp_path, take=20, seed=s, shuffle_buffer=50)) for s in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 20
    half = set(texts_of(recipe_of(tmp_path, fraction=0.5)))
    assert 100 < len(half) < 200
    assert set(texts_of(recipe_of(tmp_path, fraction=0.2))) < half


# Text files


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt.gz", "a.parquet"])
def test_syntax_is_not_trained_on(tmp_path: Path, name: str) -> None:
    for i in range(2):
        (tmp_path / f"{i}{name}").write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"^files = .*: a file of this format .*; corpus=files reads the texts in it"):
        local_files(recipe_of(f"{tmp_path}/*", source="text_files"))


def test_a_settings_file_among_code_is_code(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / "main.py").write_text("print()")
    assert len(local_files(recipe_of(f"{tmp_path}/*", source="text_files"))) == 2


def test_a_folder_of_text_is_not_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    with pytest.raises(
        ValueError, match=rf"^dataset = {tmp_path}: .*; corpus=files 'corpus\.files=\[{tmp_path}\]' has"
    ):
        texts_of(recipe_of(files=(), source="hf", dataset=str(tmp_path)))


# The step


def test_the_step_records_what_it_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Any] = [{"text": f"some words and {i} more words " * 9} for i in range(30)]
    (tmp_path / "a.jsonl").write_bytes(json_lines([*rows, {"text": None}]))
    recipe = recipe_of(tmp_path / "a.jsonl", vocab_size=300, sequence_length=32, task_items=0)
    (tmp_path / "out").mkdir()
    facts = corpus.run(recipe, tmp_path / "out", context(tmp_path)).facts
    assert facts["skipped_rows"] == 1
    assert facts["first_skipped"].endswith("a.jsonl: line 31: no text")
    assert "1 row without text was skipped" in capsys.readouterr().err
    assert facts["train"]["documents"] + facts["heldout"]["documents"] == 30


def test_files_that_changed_since_the_plan_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    with pytest.raises(
        StepFailed, match=r"^files = .*: its files have changed since the plan; run the sweep's line again"
    ):
        corpus.run(recipe_of(tmp_path), tmp_path, context(tmp_path), text="0" * 64)


# Fuzz

SUFFIXES = st.sampled_from([a + b for a in FORMATS for b in COMPRESSIONS])
WHOLE_CONTENTS = st.sampled_from([*CONTENTS.values(), b"plain text", b"", b"\n\n"])


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A file of one of the formats, maybe cut off, maybe with other bytes somewhere, maybe compressed."""
    content = draw(st.one_of(WHOLE_CONTENTS, st.binary(max_size=60)))
    content = draw(st.sampled_from([*COMPRESSIONS.values()]))(content)
    content = content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content
    if draw(st.booleans()):
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.binary(max_size=3)) + content[at + 1 :]
    return content


def read_or_refuse(folder: Path, drawn: list[tuple[str, bytes]]) -> None:
    for i, (suffix, content) in enumerate(drawn):
        (folder / f"{i}{suffix}").write_bytes(content)
    for source in ("files", "hf"):
        recipe = recipe_of(folder, source=source, dataset=str(folder / f"0{drawn[0][0]}") if source == "hf" else None)
        if reason := refusal(recipe):
            assert reason.startswith(("files = ", "dataset = "))
            assert "\n" not in reason


def refusal(recipe: CorpusRecipe) -> str:
    try:
        assert all(document.text.strip() for document in documents(recipe))
    except ValueError as error:
        return str(error)
    return ""


@given(st.lists(st.tuples(SUFFIXES, files()), min_size=1, max_size=4))
@settings(max_examples=60)
def test_a_folder_gives_documents_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, bytes]]
) -> None:
    read_or_refuse(tmp_path_factory.mktemp("fuzz"), drawn)


@pytest.mark.long
@given(st.lists(st.tuples(SUFFIXES, files()), min_size=1, max_size=4))
@settings(max_examples=1000)
def test_any_folder_gives_documents_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, bytes]]
) -> None:
    read_or_refuse(tmp_path_factory.mktemp("fuzz"), drawn)
