"""A store that can only be read: what only reads works, and what has to write ends in one line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.worker.job_context import SIGNALS
from tests.support.commands import fix_versions
from tests.support.failing_files import read_only
from tests.support.shell import ROOT, exit_status

FOLDER = Path(__file__).with_name("old_store")
LINE = ["--config-dir", str(FOLDER / "conf"), "experiment=old"]
READING = {
    "status": (["status"], 0),
    "status of one": (["status", "old"], 1),
    "why": (["why", "old", "MHA-4"], 0),
    "logs": (["logs", "uptrain-426fc9a7f690d7d8"], 0),
    "gather": (["gather", "old", "-o", "cells.csv", "--curves", "curves.csv"], 0),
    "table": (["table", "old"], 0),
    "plan": (["plan", *LINE], 0),
    "prune": (["prune"], 0),
    "verify": (["status", "old", "--verify"], 1),
}
WRITING = {
    "sweep": ["sweep", *LINE],
    "fetch": ["fetch", *LINE],
    "retry": ["retry", "old"],
    "cancel": ["cancel", "stopped"],
    "prune --yes": ["prune", "--yes"],
    "run": ["run", "uptrain-426fc9a7f690d7d8"],
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(FOLDER / "text", tmp_path / "text")
    shutil.copytree(FOLDER / "store", tmp_path / "store")
    fix_versions(monkeypatch)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield tmp_path / "store"
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("command", READING)
def test_what_only_reads_works(command: str, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = READING[command]
    with read_only(store) as refused:
        status = exit_status(*arguments, "--store", str(store))
    assert status == expected, capsys.readouterr()
    tried = [call for call in refused if "/.clock-" not in call]  # which asks the file server for the time
    assert tried == [] or command == "verify", tried


@pytest.mark.parametrize("command", WRITING)
def test_what_has_to_write_ends_in_a_line(command: str, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with read_only(store):
        status = exit_status(*WRITING[command], "--store", str(store))
    error = capsys.readouterr().err
    assert status in (1, 2, 4)
    assert error.count("\n") == 1, error
    assert "ead-only file system" in error


def test_a_plan_leaves_the_store_as_it_is(store: Path) -> None:
    """Digests of large files go to the user's cache."""

    def everything() -> dict[Path, tuple[int, int]]:
        return {path: ((s := path.stat()).st_mtime_ns, s.st_size) for path in [store, *store.rglob("*")]}

    before = everything()
    assert exit_status("plan", *LINE, "--store", str(store)) == 0
    assert everything() == before
    digests = (store.parent / "cache/mlkv/digests.json").read_text()
    assert str(store.parent / "text") in digests
    (store.parent / "cache/mlkv/digests.json").write_text("[torn")
    assert exit_status("plan", *LINE, "--store", str(store)) == 0
    assert (store.parent / "cache/mlkv/digests.json").read_text() == digests


@pytest.mark.long
@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="root without setpriv writes everywhere")
@pytest.mark.parametrize("command", [*READING, *WRITING])
def test_the_same_by_permissions(command: str, store: Path) -> None:
    """Root is given another owner's store, and none of its own rights over files."""
    arguments = READING[command][0] if command in READING else WRITING[command]
    as_other = []
    if os.getuid() == 0:
        rights = "-dac_override,-dac_read_search"
        as_other = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]
        for path in [store, *store.rglob("*")]:
            os.chown(path, 65534, 65534)
    else:
        for path in [store, *store.rglob("*")]:
            path.chmod(path.stat().st_mode & ~0o222)
    line = [*as_other, sys.executable, "-m", "sweeps.cli", *arguments, "--store", str(store)]
    ended = subprocess.run(
        line, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300, check=False
    )
    assert "Traceback" not in ended.stdout + ended.stderr
    assert ended.returncode in (0, 1, 2, 4)
    if command in WRITING:
        assert ended.stderr.count("\n") == 1, ended.stderr
