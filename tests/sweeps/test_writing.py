"""When `mlkv sweep` may leave the page of an earlier run as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sweeps.cli.current import is_current
from sweeps.store.store import Store
from tests.support.records import record_of, save_sweep

STEP = "corpus-0123456789abcdef"
CREATED, FINISHED = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
BEFORE, AT, AFTER = 1_767_270_000, 1_767_312_000, 1_767_312_001
"""Between plan and record; in the record's second; a second later."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("sweeps.store.store.utc_now", lambda: CREATED)
    store = Store.open(tmp_path / "store")
    save_sweep(store, "s", {"steps": {STEP: {}}})
    return store


def finish(store: Store) -> None:
    claim = store.step(STEP).claim()
    assert claim
    assert claim.step.publish(claim, record_of(claim, {"finished": FINISHED}))
    claim.release()


def page(folder: Path, written: int) -> Path:
    path = folder / "index.html"
    path.write_text("a page")
    os.utime(path, (written, written))
    return path


@pytest.mark.parametrize(("written", "current"), [(BEFORE, False), (AT, False), (AFTER, True)])
def test_a_page_is_current_once_it_is_newer_than_the_last_record(
    store: Store, tmp_path: Path, written: int, current: bool
) -> None:
    finish(store)
    assert is_current(page(tmp_path, written), store, store.sweep("s")) is current


def test_no_page_or_a_step_that_is_not_done_is_never_current(store: Store, tmp_path: Path) -> None:
    assert not is_current(page(tmp_path, AFTER), store, store.sweep("s"))
    finish(store)
    assert not is_current(tmp_path / "none.html", store, store.sweep("s"))


def test_a_page_older_than_the_plan_is_not_current(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(store)
    monkeypatch.setattr("sweeps.store.store.utc_now", lambda: "2026-02-01T00:00:00Z")
    save_sweep(store, "s", {"steps": {STEP: {}}, "axis": ["x", "y"]})
    assert not is_current(page(tmp_path, AFTER), store, store.sweep("s"))


@pytest.mark.parametrize("text", ["a word", ""], ids=["written", "deleted"])
def test_a_page_older_than_the_note_is_not_current(store: Store, tmp_path: Path, text: str) -> None:
    finish(store)
    store.write_note("s", text)
    assert not is_current(page(tmp_path, AFTER), store, store.sweep("s"))
    os.utime(store.sweep_path("s") / "note.txt", (AT, AT))
    assert is_current(page(tmp_path, AFTER), store, store.sweep("s"))
