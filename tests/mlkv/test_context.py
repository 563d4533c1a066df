"""Metric rows are written as records have always held them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlkv.context import MetricRow

OLD_STORE = Path(__file__).parents[1] / "sweeps" / "old_store" / "store"
RECORDS = sorted(OLD_STORE.glob("steps/*/*/done.json"))


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.parent.name)
def test_rows_of_earlier_records_are_written_as_they_were_read(record: Path) -> None:
    rows = json.loads(record.read_text(encoding="utf-8"))["metrics"]
    assert json.dumps([MetricRow.from_json(row).as_json() for row in rows]) == json.dumps(rows)


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        (MetricRow("tokens", 5.0), "metric value stderr n"),
        (MetricRow("acc", 0.5, 0.1, 9, subtask="arc_easy"), "metric value stderr n subtask"),
        (MetricRow("oom", 1.0, batch=8, context=256), "metric value stderr n batch context"),
    ],
)
def test_what_does_not_apply_to_a_row_is_left_out(row: MetricRow, keys: str) -> None:
    assert list(row.as_json()) == keys.split()
    assert MetricRow.from_json(row.as_json()) == row


def test_a_row_read_from_elsewhere_may_lack_keys_and_have_others() -> None:
    assert MetricRow.from_json({"metric": "loss", "kind": "base"}) == MetricRow("loss", None)
    with pytest.raises(KeyError, match="metric"):
        MetricRow.from_json({"value": 1.0})
