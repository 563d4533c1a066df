"""A checkpoint, a folder of text and a task of one's own: from one line to a table and a figure."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.support.bases import write_base
from tests.support.shell import Shell

WORDS = "the quick brown fox jumps over the lazy dog and seven wizards vex jackals near lakes "
TASK = """task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}} ="
doc_to_choice: ["1", "2"]
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture
def mine(mlkv: Shell) -> Shell:
    """A Llama of 8 query heads on 4 KV heads with its own tokenizer, two files of text, and a task with its data."""
    here = mlkv.folder
    write_base(here / "my-llama")
    (here / "texts").mkdir()
    for name, length in (("a", 9), ("b", 7)):
        rows = [json.dumps({"text": f"{WORDS * length}{i}"}) for i in range(60)]
        (here / "texts" / f"{name}.jsonl").write_text("\n".join(rows))
    (here / "sums.yaml").write_text(TASK)
    (here / "sums.jsonl").write_text(
        "\n".join(json.dumps({"question": f"{i % 2} + 1", "answer": i % 2}) for i in range(8))
    )
    return mlkv


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


@pytest.mark.long(minutes=2)
def test_half_and_a_quarter_of_the_cache_of_ones_own_model(mine: Shell) -> None:
    line = ["sweep", "name=mine", "model.path=my-llama", "layout.cache=1/2,1/4", "convert=svd", "uptrain.steps=4"]
    line += ["corpus=files", "corpus.files=[texts]", "corpus.sequence_length=64", "calibrate.tokens=512"]
    line += ["evaluate.tasks=[./sums.yaml,bits_per_byte]", "evaluate.accuracy=[[sums,acc]]", "measure=none"]
    printed = mine(*line, "tracking=off")
    assert "report: reports/mine/index.html" in printed

    mine("table", "mine", "--format", "csv", "-o", "tables")
    rows = rows_of(next((mine.folder / "tables").glob("*configuration*")))
    cache = {label: int(row["KV bytes/token"]) for label, row in rows.items()}
    own = cache.pop("untouched (base)")
    assert cache.pop("GQA-24 (baseline)") == own
    assert sorted(own / bytes for bytes in cache.values()) == [2, 2, 4, 4]

    mine("gather", "mine", "-o", "cells.csv")
    with (mine.folder / "cells.csv").open() as file:
        cells = [row for row in csv.DictReader(file) if row["metric"] in ("acc", "bits_per_byte")]
    assert {(row["variant"], row["metric"]) for row in cells} == {
        (label, metric) for label in ("untouched", "GQA-24", *cache) for metric in ("acc", "bits_per_byte")
    }
    assert all(row["value"] for row in cells)

    mine("figure", "mine", "pareto", "-o", "figures")
    assert (mine.folder / "figures" / "pareto.png").stat().st_size > 10_000
