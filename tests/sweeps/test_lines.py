"""Files that grow by lines: a writer that dies in the middle of one spoils that line and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm.submit import SlurmExecutor
from sweeps.dispatch import queue_status
from sweeps.steps.registry import axis_of
from sweeps.store.lines import append_rows, open_to_append, parse_rows, read_rows
from sweeps.store.schema import JobRow, LoggedRow
from sweeps.store.states import StepState
from sweeps.store.stepdir import State
from sweeps.store.store import Store

NOISE = [b"{", b'{"a": 1', b'"text"', b"5", b"null", b"[1]", b"\0\0\0", b"\xff\xfe", b"nonsense", b'{"a": 1}{"b": 2}']
values = st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5)  # a larger integer counts as damage
rows = st.lists(st.dictionaries(st.text(max_size=5), values, max_size=3), max_size=3)


torn_lines = st.binary(max_size=8).filter(lambda torn: b"\n" not in torn and b"}" not in torn)  # `{}` would be a row


@given(st.lists(st.tuples(rows, torn_lines), max_size=6))
def test_no_row_is_lost_to_a_torn_line(
    tmp_path_factory: pytest.TempPathFactory, writers: list[tuple[list[dict[str, Any]], bytes]]
) -> None:
    """Each writer adds its rows and then dies in the middle of another."""
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    for whole, torn in writers:
        append_rows(path, whole)
        with path.open("ab") as file:
            file.write(torn)
    append_rows(path, [{"last": 1}])
    found = read_rows(dict, path)
    wanted = [row for whole, _ in writers for row in whole] + [{"last": 1}]
    assert [row for row in found.rows if row in wanted] == wanted
    assert found.skipped + len(found.rows) - len(wanted) <= len(writers)


@pytest.mark.parametrize("noise", NOISE)
def test_what_is_no_row_is_skipped_and_counted(noise: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + noise + b'\n\n{"b": 2}\n')
    assert (read_rows(dict, path).rows, read_rows(dict, path).skipped) == ([{"a": 1}, {"b": 2}], 1)


def test_what_is_still_being_written_is_left_for_later(tmp_path: Path) -> None:
    assert parse_rows(dict, b'{"a": 1}\n{"b"').rows == [{"a": 1}]
    assert parse_rows(dict, b'{"a": 1}\n{"b"').skipped == 0
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b"')
    assert read_rows(dict, path, ended=True).skipped == 1
    assert read_rows(dict, tmp_path / "none.jsonl").rows == []
    with pytest.raises(IsADirectoryError):
        read_rows(dict, tmp_path)


def test_a_file_kept_open_begins_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"torn')
    with open_to_append(path) as file:
        file.write('{"b": 2}\n')
    assert read_rows(dict, path).rows == [{"a": 1}, {"b": 2}]
    with open_to_append(tmp_path / "new.jsonl") as file:
        file.write("{}\n")
    assert (tmp_path / "new.jsonl").read_text() == "{}\n"


def test_a_torn_note_on_jobs_spoils_neither_status_nor_cancel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path)
    store.note_jobs([JobRow(name="base.1", steps=["base-1"], sweep="a")])
    with (store.queue / "jobs.jsonl").open("a") as file:
        file.write('{"name": "uptrain.1", "ste')  # the disk was full, or the launcher killed
    assert store.unreadable_jobs() is None
    store.note_jobs([JobRow(name="measure.2", steps=["measure-1"], sweep="a")])
    assert store.unreadable_jobs() == f"{store.queue}/jobs.jsonl: 1 lines are no JSON and were skipped"
    wanted = ("base-1", "measure-1", "uptrain-1")
    assert queue_status.latest_jobs(wanted, store) == {
        "base-1": queue_status.NOT_SUBMITTED,
        "measure-1": queue_status.NOT_SUBMITTED,
    }
    states, _ = queue_status.with_queue({id: State(StepState.PENDING) for id in wanted}, store)
    assert [states[id].name for id in wanted] == ["LOST", "LOST", "PENDING"]
    ended: list[set[str]] = []
    monkeypatch.setattr(SlurmExecutor, "cancel", lambda self, ids: ended.append(ids))
    assert queue_status.cancel(wanted, store) == 0
    assert store.noted_jobs()[-1] == JobRow(cancelled=[])


def test_noise_among_metrics_kills_no_reader(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    claim = store.step("uptrain-0123456789abcdef").claim()
    assert claim
    attempt = claim.attempt
    lines = [json.dumps({"step": k, "steps": 9, "loss": 1.0}).encode() for k in (1, 2)]
    attempt.metrics_file.write_bytes(lines[0] + b"\n" + b"\n".join(NOISE) + b"\n" + lines[1] + b"\n")
    assert [row.step for row in attempt.metrics()] == [1, 2]
    assert attempt.skipped_rows() == len(NOISE)
    assert [values["train/loss"] for _, values in claim.step.history(axis_of(claim.step.kind))] == [1.0, 1.0]
    found, position = attempt.metrics_from(0)
    assert ([row.step for row in found], position) == ([1, 2], attempt.metrics_file.stat().st_size)
    state = claim.step.state()
    assert (state.name, state.progress) == ("RUNNING", LoggedRow(fields={"step": 2, "steps": 9, "loss": 1.0}))
    with attempt.metrics_file.open("ab") as file:
        file.write(b"\xff not JSON\n")
    assert claim.step.state().progress is None
    assert attempt.metrics_from(position) == ([], attempt.metrics_file.stat().st_size)
