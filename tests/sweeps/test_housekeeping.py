"""ls, du, note, mv and rm: what they say is what the files are, and steps are never touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from analysis.page.page import page
from analysis.page.report import render
from analysis.statistics.sources import load
from sweeps.store.housekeeping import usage
from sweeps.store.store import Store
from sweeps.tracking.runs import SweepRuns
from tests.support.commands import OLD_STORE
from tests.support.records import save_sweep
from tests.support.shell import exit_status

OWN, SHARED, STRAY = (f"base-{digit * 16}" for digit in "123")


@pytest.fixture
def old(tmp_path: Path) -> Store:
    """A store with four sweeps and an import."""
    shutil.copytree(OLD_STORE / "store", tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def sized(tmp_path: Path) -> Store:
    """Two sweeps that share a step, and a step of none, with 100, 1,000 and 10,000 bytes."""
    store = Store.open(tmp_path / "sized")
    save_sweep(store, "a", {"steps": {OWN: {}, SHARED: {}}})
    save_sweep(store, "b", {"steps": {SHARED: {}}})
    for id, size in ((OWN, 100), (SHARED, 1000), (STRAY, 10_000)):
        store.step(id).out.mkdir(parents=True)
        (store.step(id).out / "weights").write_bytes(b"w" * size)
    return store


def call(store: Store, *words: str) -> int:
    return exit_status(*words, "--store", str(store.root))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_sweep_and_import_is_listed(
    old: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call(old, "ls", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["entries"]}
    assert set(rows) == {"measured", "nested/one", "old", "stopped", "theirs"}
    assert rows["old"]["steps"] == "16 done, 1 failed, 2 blocked"
    assert rows["old"]["variants"] == len(old.sweep("old").variants)
    assert rows["theirs"]["steps"] is None
    assert call(old, "ls") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(rows)
    assert "imported results" in lines[-1]


def test_a_damaged_sweep_is_named_and_the_others_are_listed(old: Store, capsys: pytest.CaptureFixture[str]) -> None:
    (old.sweep("old").path / "plan.json").write_text("{")
    assert call(old, "ls", "--json") == 1
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["entries"]}
    assert rows["old"]["problem"].startswith("sweep old: ")
    assert (rows["nested/one"]["steps"], rows["nested/one"]["problem"]) == ("10 done", None)


def test_bytes_are_those_of_the_files(sized: Store, capsys: pytest.CaptureFixture[str]) -> None:
    used = usage(sized)
    a, b = used.sweeps
    plans = {name: sum(map(len, files(sized.root / "sweeps" / name).values())) for name in ("a", "b")}
    assert (a.own, a.shared) == (plans["a"] + 100, 1000)
    assert (b.own, b.shared) == (plans["b"], 1000)
    assert (used.steps, used.unneeded) == (11_100, 10_000)
    assert used.steps + used.other + sum(plans.values()) == sum(map(len, files(sized.root).values()))
    assert call(sized, "du", "--json") == 0
    assert json.loads(capsys.readouterr().out)["unneeded"] == 10_000


def test_a_note_is_shown_wherever_the_sweep_is(old: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(old, "note", "old", "too high", "a rate;\tsee log") == 0
    assert call(old, "note", "old") == 0
    assert capsys.readouterr().out == "too high a rate; see log\n"
    assert "note: too high a rate; see log" in load(old, "old").notes
    assert {run.summary["note"] for run in SweepRuns(old, old.sweep("old")).variants()} == {"too high a rate; see log"}
    assert call(old, "table", "old", "--format", "md") == 0
    assert "- note: too high a rate; see log\n" in capsys.readouterr().out
    text = render(page(old, load(old, "old"), old.root.parent / "page"), {})
    assert '<p class="notes">note: too high a rate; see log</p>' in text
    assert call(old, "note", "old", "--delete") == 0
    assert load(old, "old").notes == load(Store(OLD_STORE / "store"), "old").notes
    assert all("note" not in run.summary for run in SweepRuns(old, old.sweep("old")).variants())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("note", "nope"), "sweep nope: not in "),
        (("note", "theirs", "x"), "sweep theirs: not in "),
        (("note", "old", "x", "--delete"), "note: x: give either a text or --delete"),
        (("note", "old", "\x1b[31mred"), r"note: '\x1b[31mred': must be printable"),
        (("mv", "nope", "x"), "nope: no sweep and no import of "),
        (("mv", "old", "measured"), "name = measured: is taken by "),
        (("mv", "old", "theirs"), "name = theirs: is that of imported results"),
        (("mv", "theirs", "old"), "name = old: is a sweep's"),
        (("mv", "old", "../up"), "name = ../up: has '/'"),
        (("mv", "stopped", "x"), " runs or waits in the queue; `mlkv cancel stopped` first"),
        (("rm", "old", "olt", "--yes"), "olt: no sweep and no import of "),
        (("rm", "old", "stopped", "--yes"), " runs or waits in the queue; `mlkv cancel stopped` first"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_and_nothing_changes(
    old: Store, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    step = next(id for id in old.sweep("stopped").plan.steps if not old.step(id).record())
    held = old.step(step).claim()
    assert held
    before = files(old.root)
    assert call(old, *words) == 2
    assert message in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert files(old.root) == before
    held.release()


def test_another_name_moves_all_of_a_sweep_and_no_step(old: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(old, "note", "old", "text") == 0
    steps, plans = files(old.root / "steps"), files(old.root / "sweeps" / "old")
    assert call(old, "mv", "old", "new") == 0
    assert call(old, "mv", "theirs", "others") == 0
    assert files(old.root / "steps") == steps
    assert files(old.root / "sweeps" / "new") == plans
    assert (old.sweep_names(), old.import_names()) == (["measured", "new", "stopped"], ["others"])
    capsys.readouterr()
    assert call(old, "status", "new") == call(Store(OLD_STORE / "store"), "status", "old")
    assert call(old, "table", "others") == 0


def test_removal_wants_a_yes_and_leaves_steps_to_prune(old: Store, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(old.root)
    assert call(old, "rm", "old", "theirs") == 0
    assert "nothing was deleted; --yes deletes them" in capsys.readouterr().out
    assert files(old.root) == before
    steps, unneeded = files(old.root / "steps"), usage(old).unneeded
    assert call(old, "rm", "old", "theirs", "--yes") == 0
    assert (old.sweep_names(), old.import_names()) == (["measured", "stopped"], [])
    assert files(old.root / "steps") == steps
    assert usage(old).unneeded > unneeded
