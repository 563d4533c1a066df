"""docs/your-model.md, run as it is written: from nothing to an export that transformers loads."""

from __future__ import annotations

import csv

import pytest

from tests.support.shell import ROOT, Shell

PAGE = (ROOT / "docs" / "your-model.md").read_text("utf-8")


@pytest.mark.long(minutes=2)
def test_the_page_runs_as_written(mlkv: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    printed = mlkv.page(PAGE)
    here = mlkv.folder
    [table] = (here / "tables").glob("*configuration*.csv")
    with table.open() as file:
        cache = {row["variant"]: int(row["KV bytes/token"]) for row in csv.DictReader(file)}
    own = cache["untouched (base)"]
    assert {label: own / size for label, size in cache.items() if "(" not in label} == {"MLKV-2": 2, "MLKV-1": 4}
    assert (here / "figures" / "pareto_loss.png").stat().st_size > 10_000
    assert (here / "reports" / "mine" / "index.html").is_file()
    assert (here / "half-cache" / "README.md").is_file()
    assert any(text.startswith("the quick brown") for text in printed), "what the loaded export writes"
    [plans] = [text for text in printed if "rates: " in text]
    assert "untouched" in plans
    assert "sums ↑" in printed[2], "the table that the sweep prints has the task"
