"""A finished sweep's line once more: what it shows is what it showed, and nothing is computed or copied again."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from analysis.statistics import sources
from analysis.tables.saved import TABLE
from sweeps.cli.results import write_report_of
from sweeps.cli.wandb import mirror_sweep
from sweeps.store import typed_json
from sweeps.store.errors import DamagedFileError
from sweeps.store.store import Store
from sweeps.tracking import sync
from sweeps.tracking.sync import SyncResult
from tests.support.filler import Filler
from tests.support.records import record_of, save_sweep


def make_newer(*paths: Path) -> None:
    """Than a plan and records of the same second."""
    for path in paths:
        os.utime(path, (later := time.time() + 10, later))


def test_the_table_is_printed_again_without_being_computed_again(
    finished: Filler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = finished.store, tmp_path / "report"

    def printed() -> str:
        shown = io.StringIO()
        write_report_of(Console(file=shown, width=200), store, store.sweep(finished.name), out, again=False)
        return shown.getvalue()

    first = printed()
    make_newer(*out.iterdir())
    monkeypatch.setattr(sources, "load", lambda *_: 1 / 0)
    assert printed() == first
    os.utime(out / "index.html", (1, 1))
    with pytest.raises(ZeroDivisionError):
        printed()
    make_newer(out / "index.html")
    (out / TABLE).write_text("{")
    make_newer(out / TABLE)
    with pytest.raises(ZeroDivisionError):
        printed()
    (out / TABLE).unlink()
    with pytest.raises(ZeroDivisionError):
        printed()


def test_what_w_and_b_has_is_not_looked_at_again_until_something_is_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, step = Store(tmp_path), "corpus-0123456789abcdef"
    claim = store.step(step).claim()
    assert claim
    claim.step.publish(claim, record_of(claim, {"finished": "2025-01-01T00:00:00Z"}))
    claim.release()
    save_sweep(store, "s", {"steps": {step: {"kind": "corpus"}}, "tracking": {"mode": "offline"}})
    outcomes = [SyncResult(step, "", "failed"), SyncResult(step, "", "written")]
    printed = io.StringIO()

    def mirrored(*_: object) -> Iterator[SyncResult]:
        yield outcomes.pop(0)

    def mirror() -> str:
        mirror_sweep(Console(file=printed, width=200), store, store.sweep("s"))
        return printed.getvalue().splitlines()[-1]

    monkeypatch.setattr(sync, "sync_sweep", mirrored)
    lines = [mirror(), mirror()]
    mark = store.tracking("s").mark("whole")
    make_newer(mark)
    assert [*lines, mirror()] == [
        "W&B (offline): 1 failed; `mlkv sync s` uploads the rest",
        "W&B (offline): 1 written",
        "W&B (offline): 1 already there",
    ]
    outcomes.append(SyncResult(step, "", "written"))
    os.utime(mark, (1, 1))
    assert mirror() == "W&B (offline): 1 written"


def test_a_file_that_changed_is_read_again_and_one_that_did_not_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Store(tmp_path).step("corpus-0123456789abcdef").claim()
    assert claim
    step = claim.step
    step.publish(claim, record_of(claim, {"host": "one"}))
    path = step.path / "done.json"
    fresh = step.record()
    assert fresh is not None
    assert step.record() is not fresh, "within two seconds it could change unseen"
    monkeypatch.setattr(typed_json, "_RACY_SECONDS", -1.0)
    known = step.record()
    assert step.record() is known
    assert known == fresh
    path.write_text(path.read_text().replace('"one"', '"another"'))
    found = step.record()
    assert found is not None
    assert found.host == "another"
    path.write_text("{")
    with pytest.raises(DamagedFileError):
        step.record()
    path.unlink()
    assert step.record() is None
