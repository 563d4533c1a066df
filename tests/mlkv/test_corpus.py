from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkv.context import Interrupted, Row, StepFailed
from mlkv.corpus import blocks, documents, tokenizer
from mlkv.corpus import step as corpus
from mlkv.corpus.blocks import DocumentPacker, StreamPacker, Tokens, open_blocks
from mlkv.corpus.items import CONTINUATION_TOKENS
from mlkv.corpus.manifest import NAME, read_manifest
from mlkv.evaluate.task_names import ITEM_TASKS, RECALL_TASKS, own_tasks
from mlkv.recipes import CorpusRecipe
from tests.support.tiny import context, corpus_recipe, make_corpus, run_python, text_files


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def encoder(made: Path) -> tokenizer.Encoder:
    return tokenizer.Encoder(tokenizer.load(made / "tokenizer"))


def held_out_stream(made: Path) -> Tokens:
    held_out = open_blocks(made, "heldout")
    return held_out.rows.reshape(-1)[: held_out.tokens]


# Documents


def test_stdlib_is_sources_without_tests_and_named_by_their_place() -> None:
    names = [name for name, path in documents.local_files(CorpusRecipe()) if path.is_file()]
    assert names == sorted(names)
    assert {"json/decoder.py", "argparse.py", documents.TOPICS} <= set(names)
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "encodings"}


def test_stdlib_lists_no_folder_that_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = ["a.py", "json/b.py", "json/config-x/c.py", "json/encodings/d.py", "e.txt", "z/y/x.py", "z.py"]
    left_out = ["test/f.py", "json/tests/g.py", "site-packages/h/i.py", "encodings/j.py", "config-3.11/k.py"]
    for name in (*named, *left_out):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    scandir = Mock(wraps=os.scandir)
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr("mlkv.corpus.documents.sysconfig.get_path", lambda name: str(tmp_path))
    found = documents.local_files(CorpusRecipe())
    assert found == [(name, tmp_path / name) for name in sorted(named) if name.endswith(".py")]
    listed = {os.path.relpath(call.args[0], tmp_path) for call in scandir.call_args_list}
    assert listed == {".", "json", "json/config-x", "json/encodings", "z", "z/y"}


def test_stdlib_gives_about_nine_megabytes_some_of_it_held_out() -> None:
    found = list(documents.documents(CorpusRecipe()))
    size = sum(len(d.text) for d in found)
    held_out = sum(len(d.text) for d in found if d.held_out)
    assert 7e6 < size < 12e6
    assert 0.01 < held_out / size < 0.12
    assert any(d.text.startswith('The "assert" statement') for d in found), "pydoc's topics are documents"


def test_names_do_not_depend_on_where_the_files_lie(tmp_path: Path) -> None:
    first = text_files(tmp_path / "here")
    second = shutil.copytree(first, tmp_path / "far" / "away")
    names = [[name for name, _ in documents.local_files(corpus_recipe(folder))] for folder in (first, second)]
    assert names[0] == names[1]
    assert "json/decoder.py" in names[0]


def test_a_glob_without_files_is_named(tmp_path: Path) -> None:
    recipe = CorpusRecipe(source="text_files", files=(f"{tmp_path}/*.txt",))
    with pytest.raises(ValueError, match=r"files = .*\*\.txt: matches no file"):
        documents.local_files(recipe)


def test_a_file_that_is_not_utf8_is_named_with_its_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine", "utf-8")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"b\.txt: not UTF-8 \(byte 3"):
        documents.local_files(CorpusRecipe(source="text_files", files=(f"{tmp_path}/*.txt",)))


def test_a_single_file_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alone", "utf-8")
    with pytest.raises(ValueError, match="one file only"):
        documents.local_files(CorpusRecipe(source="text_files", files=(f"{tmp_path}/*.txt",)))


def test_a_planner_lists_files_and_tasks_without_torch() -> None:
    run_python(
        """
import sys
from mlkv.corpus import documents
from mlkv.evaluate import task_names
from mlkv.recipes import CorpusRecipe
assert documents.local_files(CorpusRecipe()) and task_names.lm_eval_tasks()
assert not {"torch", "transformers", "datasets", "lm_eval"} & set(sys.modules)
"""
    )


def test_something_is_held_out_of_very_few_files(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name, "utf-8")
    recipe = CorpusRecipe(source="text_files", files=(f"{tmp_path}/*.txt",), held_out=0.001)
    assert sorted(d.held_out for d in documents.documents(recipe)) == [False, True]


@given(st.lists(st.text(min_size=1), min_size=200, max_size=200, unique=True), st.floats(0.2, 0.8))
@settings(max_examples=20)
def test_the_held_out_share_is_kept_and_grows_only(keys: list[str], share: float) -> None:
    held_out = {key for key in keys if documents.is_held_out(key, share)}
    assert abs(len(held_out) / len(keys) - share) < 0.2
    assert held_out <= {key for key in keys if documents.is_held_out(key, share + 0.1)}


# Packing

DOCUMENTS = st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=40).map(np.array), min_size=1, max_size=30)


def rows_of(packer: blocks.Packer, found: list[Tokens]) -> list[list[int]]:
    rows = [row for document in found for row in packer.add(document)]
    return [row.tolist() for row in [*rows, *packer.end()]]


@given(DOCUMENTS, st.integers(1, 50))
def test_stream_packing_loses_and_reorders_nothing(found: list[Tokens], length: int) -> None:
    rows = rows_of(StreamPacker(length), found)
    assert [token for row in rows for token in row] == np.concatenate(found).tolist()
    assert all(len(row) == length for row in rows[:-1])
    assert 0 < len(rows[-1]) <= length


@given(DOCUMENTS, st.integers(1, 50))
def test_whole_documents_are_cut_sorted_and_never_split(found: list[Tokens], length: int) -> None:
    rows = rows_of(DocumentPacker(length), found)
    expected = sorted((document[:length].tolist() for document in found), key=len)
    for row in rows:
        assert len(row) <= length
        while row:
            assert row[: len(expected[0])] == expected[0], "a row holds whole documents, shortest first"
            row = row[len(expected.pop(0)) :]
    assert not expected


def test_whole_documents_are_sorted_in_blocks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "SORTED_BLOCK", 2)
    found = [np.full(n, n) for n in (3, 1, 2, 1)]
    assert rows_of(DocumentPacker(4), found) == [[1, 3, 3, 3], [1, 2, 2]]


# Tokens


@given(text=st.text(max_size=60))
@settings(max_examples=200)
def test_token_bytes_add_up_to_the_text(encoder: tokenizer.Encoder, text: str) -> None:
    encoded = encoder.encode(text)
    assert encoded.token_bytes.sum() == len(text.encode())
    assert (encoded.token_bytes >= 0).all()
    assert encoded.ids.tolist() == encoder.ids([text])[0].tolist()


def test_a_spelled_out_special_token_is_text(encoder: tokenizer.Encoder) -> None:
    assert encoder.end not in encoder.encode(tokenizer.END_OF_TEXT).ids


def test_blocks_hold_the_documents_and_the_split_is_by_document(made: Path, encoder: tokenizer.Encoder) -> None:
    recipe = corpus_recipe(made.parent / "text")
    found = list(documents.documents(recipe))
    train = open_blocks(made, "train")
    stream = train.rows.reshape(-1)[: train.tokens]
    texts = [d.text for d in found if not d.held_out]
    expected = np.concatenate([np.append(ids, encoder.end) for ids in encoder.ids(texts)])
    assert np.array_equal(stream, expected)
    held_out = [d.text for d in found if d.held_out]
    expected = np.concatenate([np.append(encoder.end, ids) for ids in encoder.ids(held_out)])
    assert np.array_equal(held_out_stream(made), expected)
    assert held_out


def test_rows_are_padded_with_what_is_no_token(made: Path) -> None:
    train = open_blocks(made, "train")
    assert train.rows.dtype == np.uint16
    assert (train.rows != train.padding).sum() == train.tokens
    assert (train.rows.reshape(-1)[train.tokens :] == train.padding).all()


def test_the_manifest_counts_what_is_there(made: Path) -> None:
    manifest = read_manifest(made)
    recipe = corpus_recipe(made.parent / "text")
    sizes = [path.stat().st_size for _, path in documents.local_files(recipe)]
    assert manifest.train.bytes + manifest.heldout.bytes == sum(sizes)
    assert manifest.train.documents + manifest.heldout.documents == len(sizes)
    bytes_of_tokens = np.fromfile(made / "heldout_bytes.bin", "<u2")[: manifest.heldout.tokens]
    assert bytes_of_tokens.sum() == manifest.heldout.bytes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Invalid JSON"),
        ('{"source": "hf"}', "sequence_length Field required"),
        (None, "vocab_size Input should be a valid integer"),
    ],
)
def test_a_damaged_manifest_is_named(made: Path, tmp_path: Path, text: str | None, reason: str) -> None:
    whole = json.loads((made / NAME).read_text("utf-8"))
    (tmp_path / NAME).write_text(text or json.dumps({**whole, "vocab_size": "many"}), "utf-8")
    with pytest.raises(StepFailed, match=rf"^corpus = {tmp_path}: manifest.json: ?{reason}.*$"):
        read_manifest(tmp_path)


def test_a_directory_without_a_manifest_fails_the_step(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=rf"^corpus = {tmp_path}: no manifest.json there$"):
        open_blocks(tmp_path, "train")


def test_a_manifest_is_written_with_the_digest_of_its_facts(made: Path) -> None:
    text = (made / NAME).read_text("utf-8")
    assert json.dumps(read_manifest(made).as_json(), indent=2) + "\n" == text
    values = json.loads(text)
    assert values.pop("digest") == hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def test_a_cut_off_file_is_noticed(made: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(made, tmp_path / "broken")
    (broken / "train.bin").write_bytes(b"\0" * 96)
    with pytest.raises(StepFailed, match=r"train\.bin is not"):
        open_blocks(broken, "train")


def test_whole_documents_are_padded_rows(tmp_path: Path) -> None:
    made = make_corpus(tmp_path, packing="whole_documents", task_items=0, snippets=True)
    train = open_blocks(made, "train")
    assert (train.rows == train.padding).any(axis=1).mean() > 0.5
    assert train.tokens < train.rows.size


@pytest.mark.slow
def test_the_same_bytes_whatever_the_hash_seed_and_the_threads(made: Path, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tests.support.tiny import context, corpus_recipe
from mlkv.corpus import step as corpus
out = Path(sys.argv[2]); out.mkdir()
corpus.run(corpus_recipe(Path(sys.argv[1])), out, context(out))
"""
    for seed, threads in (("1", "1"), ("77", "2")):
        out = tmp_path / seed
        run_python(code, made.parent / "text", out, PYTHONHASHSEED=seed, RAYON_NUM_THREADS=threads)
        for path in made.rglob("*.*"):
            assert (out / path.relative_to(made)).read_bytes() == path.read_bytes(), path


def test_progress_is_reported_and_a_stop_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "REPORT_SECONDS", -1.0)
    recipe = corpus_recipe(text_files(tmp_path / "text"))
    rows: list[Row] = []
    (tmp_path / "out").mkdir()
    corpus.run(recipe, tmp_path / "out", context(tmp_path, rows))
    assert {row["stage"] for row in rows} == {"tokenizer", "tokens"}
    assert max(row["step"] for row in rows) <= rows[-1]["steps"]
    with pytest.raises(Interrupted):
        corpus.run(recipe, tmp_path / "out", context(tmp_path, should_stop=lambda: True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 200}, "vocab_size = 200: a byte-level tokenizer needs at least 257"),
        ({"tokenizer": "model"}, "tokenizer = model: the corpus has no model"),
        ({"sequence_length": 1_000_000}, "train text has .* tokens, less than one sequence_length"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StepFailed, match=message):
        make_corpus(tmp_path, **changes)


def test_a_models_tokenizer_is_used_as_it_is(made: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    recipe = corpus_recipe(made.parent / "text", tokenizer="model", vocab_size=300)
    corpus.run(recipe, tmp_path / "out", context(tmp_path), tokenizer=made / "tokenizer")
    assert read_manifest(tmp_path / "out").train == read_manifest(made).train
    with pytest.raises(StepFailed, match="tokenizer = "):
        corpus.run(recipe, tmp_path / "out", context(tmp_path), tokenizer=tmp_path)


# Hub datasets, by way of a local directory of one


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    for part in range(2):
        lines = [json.dumps({"text": f"document {part}-{i}: " + "some words " * (i % 7 + 3)}) for i in range(300)]
        (folder / f"part-{part}.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def hub(dataset: Path, **changes: Any) -> CorpusRecipe:
    return CorpusRecipe(source="hf", dataset=str(dataset), shuffle_buffer=100, **changes)


def test_take_is_a_seeded_shuffles_beginning(dataset: Path) -> None:
    first, again, other = (list(documents.hub_texts(hub(dataset, take=50, seed=s))) for s in (42, 42, 43))
    assert first == again != other
    assert len(set(first)) == 50
    assert first != list(documents.hub_texts(hub(dataset)))[:50]


def test_fraction_keeps_a_share_chosen_by_content(dataset: Path) -> None:
    chosen = [d.text for d in documents.documents(hub(dataset, fraction=0.3))]
    assert 0.2 < len(chosen) / 600 < 0.4
    assert set(chosen) < {d.text for d in documents.documents(hub(dataset, fraction=0.6))}


def test_a_missing_text_column_is_named_with_those_there_are(dataset: Path) -> None:
    with pytest.raises(
        ValueError, match=r"dataset = \S+: has no column body \(corpus\.text_column\); its columns: text"
    ):
        list(documents.documents(hub(dataset, text_column="body")))


@pytest.mark.parametrize("changes", [{"split": "nope"}, {"dataset": "/no/such/dataset"}])
def test_a_dataset_that_is_not_there_is_named(dataset: Path, changes: dict[str, Any]) -> None:
    recipe = replace(hub(dataset), **changes)
    with pytest.raises(ValueError, match=f"dataset = {recipe.dataset}: .+"):
        list(documents.documents(recipe))


def test_a_corpus_from_a_dataset(dataset: Path, tmp_path: Path) -> None:
    recipe = hub(dataset, take=400, vocab_size=300, sequence_length=64, held_out=0.2, task_items=0)
    result = corpus.run(recipe, tmp_path, context(tmp_path))
    facts = result.facts
    assert facts["train"]["documents"] + facts["heldout"]["documents"] == 400
    assert 0.1 < facts["heldout"]["documents"] / 400 < 0.3


def test_documents_are_tokenised_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "BATCH_TEXT", 10)
    taken = []

    def stream() -> Iterator[documents.Document]:
        for i in range(6):
            taken.append(i)
            yield documents.Document("12345", False)

    batches = corpus._batches(stream())
    assert len(next(batches)) == 2
    assert taken == [0, 1], "nothing is read ahead"


# Task items

Items = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def items(made: Path) -> Items:
    return {
        task: [json.loads(line) for line in (made / "tasks" / f"{task}.jsonl").read_text("utf-8").splitlines()]
        for task in ITEM_TASKS
    }


def test_every_item_task_has_its_definition_and_its_items(items: Items) -> None:
    assert set(own_tasks()) == {*ITEM_TASKS, *RECALL_TASKS}
    assert all(len(found) == 200 for found in items.values())


@pytest.mark.parametrize(("task", "ways"), [("heldout_choice4", 4), ("heldout_choice2", 2)])
def test_choices_differ_and_the_right_one_has_no_favourite_place(items: Items, task: str, ways: int) -> None:
    for item in items[task]:
        assert len(set(item["choices"])) == ways
    places = np.bincount([item["label"] for item in items[task]], minlength=ways)
    assert (abs(places - 200 / ways) < 4 * np.sqrt(200 / ways)).all()


@pytest.mark.parametrize("task", ["heldout_choice4", "heldout_choice2"])
def test_the_right_continuation_follows_its_context_in_a_held_out_document(
    items: Items, task: str, made: Path, encoder: tokenizer.Encoder
) -> None:
    text = encoder._tokenizer.decode(held_out_stream(made).tolist())
    for item in items[task]:
        assert item["context"] + item["choices"][item["label"]] in text


def test_a_context_and_any_continuation_are_cut_where_the_item_was(items: Items, encoder: tokenizer.Encoder) -> None:
    for item in items["heldout_choice4"]:
        (before,) = encoder.ids([item["context"]])
        for choice in item["choices"]:
            (both,) = encoder.ids([item["context"] + choice])
            assert both[: len(before)].tolist() == before.tolist()
            assert len(both) - len(before) == CONTINUATION_TOKENS


def test_a_cloze_word_was_said_before(items: Items) -> None:
    for item in items["heldout_cloze"]:
        assert item["target"].startswith(" ")
        assert item["target"].strip() in item["context"]


def test_too_little_text_for_items_is_said(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"tiny words here {i}\n", "utf-8")
    recipe = CorpusRecipe(
        source="text_files", files=(f"{tmp_path}/*.txt",), vocab_size=300, sequence_length=5, held_out=0.3
    )
    with pytest.raises(StepFailed, match="too short for an item of heldout_cloze"):
        corpus.run(recipe, tmp_path, context(tmp_path))
