"""Records of arrays: written whole or not at all, by many at once, on disks that fail."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from slurm import queue, records
from tests.support.failing_files import failing


def test_a_record_is_the_old_or_the_new_one_whatever_fails(tmp_path: Path) -> None:
    old = records.new_record("uptrain", {"a": 0}, None)
    new = records.ArrayRecord(old.name, old.tasks, old.created, array_id="17")
    with failing(tmp_path / "counted") as counted:
        records.write(tmp_path / "counted", old)
    for late in (False, True):
        for at in range(len(counted.calls)):
            folder = tmp_path / f"{at}-{late}"
            records.write(folder, old)
            with failing(folder, at=at, error=errno.EIO, late=late), suppress(OSError):
                records.write(folder, new)
            assert records.read(folder) in ([old], [new])


def test_many_write_a_record_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From hosts on which they have one process id."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    record = records.new_record("uptrain", {"a": 0}, None)
    failed: list[OSError] = []

    def write() -> None:
        try:
            for _ in range(20):
                records.write(tmp_path, record)
        except OSError as error:
            failed.append(error)

    threads = [Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert records.read(tmp_path) == [record]
    assert [path.name for path in (tmp_path / record.name).iterdir()] == [records.RECORD]


def test_who_may_only_read_finds_a_lost_id_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.write(tmp_path, records.new_record("uptrain", {"a": 0}, None))
    monkeypatch.setattr(queue, "array_id_of", lambda name: "17")
    with failing(tmp_path, at=1, error=errno.EACCES, only=("mkdir", "open")):
        assert [record.array_id for record in records.recover(tmp_path)] == ["17"]
