"""A day of two researchers: three sweeps, a colleague's pack, an imported result and a published set in one table."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import mlkv
from tests.support.lm_eval_files import content, write
from tests.support.shell import Shell

pytestmark = pytest.mark.long(minutes=2)

FEW = ["evaluate.tasks=[bits_per_byte,heldout_choice4]", "evaluate.accuracy=[[heldout_choice4,acc]]", "measure=none"]


def planned(shell: Shell, *line: str) -> Counter[str]:
    """State → steps, of what a line would run."""
    return Counter(step["state"] for step in json.loads(shell("plan", *line, "--json"))["steps"])


def rows(shell: Shell, *line: str) -> list[dict[str, Any]]:
    return json.loads(shell("table", *line, "--json"))["rows"]


def test_a_day(tmp_path: Path, tiny: list[str]) -> None:
    ann, ben = (Shell(tmp_path / name) for name in ("ann", "ben"))
    for shell in (ann, ben):
        shell.folder.mkdir()
    line = [*tiny, *FEW]

    # Ann runs a sweep in the morning, notes what it is for, and hands it to Ben with its checkpoints.
    ann("sweep", *line, "layout=mqa", "name=first")
    ann("note", "first", "one head in each layer")
    ann("pack", "first", str(tmp_path / "first.mlkv"), "--by", "Ann", "--weights", "all")

    # Ben runs nothing of hers again. He adds a layout, then a learning rate.
    ben("unpack", str(tmp_path / "first.mlkv"))
    assert planned(ben, *line, "layout=mqa", "name=first").keys() == {"DONE"}
    more = [*line, "layout=mlkv", "layout.kv_layers=1", "layout.kv_heads=1"]
    before = planned(ben, *more, "name=second")
    assert before["DONE"] > before["PENDING"] > 0
    ben("sweep", *more, "name=second")
    ben("sweep", *more, "sweep.baselines=[]", "uptrain.lr=3e-3", "name=third")
    assert ben("ls").count("\n") >= 3
    assert "uptrain.lr: 0.001 → 0.003" in ben("diff", "second", "third")

    # In the evening Ann has all of it, and what a paper and a third person measured, in one table.
    for name in ("second", "third"):
        ben("pack", name, str(tmp_path / f"{name}.mlkv"), "--by", "Ben")
    ann("unpack", str(tmp_path / "second.mlkv"), str(tmp_path / "third.mlkv"))
    write(tmp_path / "theirs", content({"arc_easy": 0.5}))
    ann("import-results", str(tmp_path / "theirs"))
    names = ["first", "second", "third", "theirs", "published/mlkv"]
    table = rows(ann, *names)
    assert {name for row in table for name in row["source"].split(" + ")} == set(names)
    one_head = {row["variant"] for row in rows(ann, *names, "--where", "kv_heads == 1")}
    assert {"MQA-2", "second/MLKV-1", "third/MLKV-1", "MLKV-6"} <= one_head < {row["variant"] for row in table}
    text = ann("table", *names, "--format", "md")
    assert "first: note: one head in each layer" in text
    assert "second: from Ben: " in text
    assert "from Ann" not in text

    # What two sweeps have in common is one row, whoever ran it; a program and Python read the same numbers.
    assert {row["source"] for row in table if row["baseline"] and row["kv_bytes_per_token"] == 256} >= {
        "first + second"
    }
    assert rows(ben, "second") == rows(ann, "second")
    cells = mlkv.load(ann.folder / "store").cells("second")
    found = cells[(cells["task"] == "bits_per_byte") & (cells["metric"] == "bits_per_byte")].set_index("variant")[
        "value"
    ]
    scores = {row["variant"]: row["value"] for row in rows(ann, "second") if row["label"] == "bits per byte"}
    assert scores == found.to_dict()

    ann("figure", *names[:3], "difference", "-o", "drawn")
    assert (ann.folder / "drawn" / "difference.png").read_bytes().startswith(b"\x89PNG")
    ann("report", *names[:3])
    assert "third" in (ann.folder / "reports" / "+".join(names[:3]) / "index.html").read_text()
    audited = json.loads(ann("audit", "second", "--sample", "2", "--json"))["steps"]
    assert [step["verdict"] for step in audited] == ["equal", "equal"]
