"""Commands before every kind of output: no traceback, and no work lost, because of where they print to."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from sweeps import cli
from sweeps.cli.options import Command, PlanOptions
from sweeps.cli.streams import READER_GONE
from tests.support.commands import COMMANDS, OLD_STORE, SLOW, nothing_computes
from tests.support.outputs import OUTPUTS, encoded, errors_to
from tests.support.shell import Shell, exit_status

PRINTING = {"status", "status of one", "why", "logs", "table", "table of an import", "plan", "ls", "du", "show", "diff"}
"""Commands that do nothing but print."""

STATUS = {"status of one": 1, "verify": 1, "verify all": 1, "retry": 1, "run": 3}
"""Exit statuses that are not 0, on the old store, where a step has failed."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    with nothing_computes(tmp_path):
        yield tmp_path / "store"


def run(command: str, output: str, store: Path) -> tuple[int, str]:
    """The exit status of a command on a fresh store, and what it printed on standard error."""
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(OLD_STORE / "store", store)
    with errors_to() as errors, OUTPUTS[output]():
        return exit_status(*COMMANDS[command], "--store", str(store)), errors()


def fault_of(command: str, output: str, store: Path) -> str | None:
    expected = STATUS.get(command, 0)
    status, errors = run(command, output, store)
    allowed = {expected}
    if command in PRINTING:
        allowed |= {READER_GONE} if output in ("reader gone", "head") else set()
        allowed |= {1} if output in ("full disk", "closed terminal") else set()
        if output == "full disk" and "No space left" not in errors:
            return f"no word: {errors}"
    lines = errors.count("\n") - (command == "run")
    return f"{status}: {errors}" if status not in allowed or lines > 1 or "Traceback" in errors else None


CASES = [*product(COMMANDS, OUTPUTS)]
QUICK = [case for case in CASES if case[0] not in SLOW]


def test_no_output_is_met_with_a_traceback(store: Path) -> None:
    cases = random.Random(1).sample(QUICK, 6)
    assert not {case: fault for case in cases if (fault := fault_of(*case, store))}


@pytest.mark.long
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_meets_any_output_with_a_traceback(command: str, output: str, store: Path) -> None:
    assert fault_of(command, output, store) is None


def test_what_only_prints_ends_quietly_without_a_reader(store: Path) -> None:
    assert run("status of one", "reader gone", store) == (READER_GONE, "")
    status, errors = run("status", "full disk", store)
    assert (status, errors) == (1, "mlkv: standard output: ENOSPC: No space left on device\n")


def test_work_goes_on_without_a_reader(store: Path) -> None:
    assert run("gather", "reader gone", store)[0] == 0
    assert (store.parent / "cells.csv").is_file()
    assert run("prune --yes", "full disk", store)[0] == 0


def test_a_letter_that_the_encoding_lacks_is_replaced(store: Path) -> None:
    shutil.copytree(OLD_STORE / "store", store)
    with encoded("ascii") as text:
        assert exit_status("table", "old", "--format", "md", "--store", str(store)) == 0
        assert "?" in text()


def test_closed_streams_are_opened_before_a_file_takes_their_place(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    script = (
        "import os, sys; from sweeps.cli.streams import standard_streams\n"
        'with standard_streams(): print("lost"); print("lost", file=sys.stderr); file = open("file", "w")\n'
        "assert file.fileno() > 2\n"
    )
    line = f"{sys.executable} -c '{script}' <&- >&- 2>&-"
    assert subprocess.run(line, shell=True, cwd=tmp_path, env=shell.environment(), check=False).returncode == 0
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_that_is_closed_ends_a_command_in_one_line(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And what it was at is closed, as on Ctrl-C."""
    closed = []

    def sweep(options: PlanOptions) -> int:
        try:
            os.kill(os.getpid(), number)
            return 0
        finally:
            closed.append(options)

    monkeypatch.setattr(cli, "COMMANDS", [Command("sweep", sweep, PlanOptions, "is ended")])
    before = signal.signal(number, signal.SIG_DFL)  # a worker that ran in this process has left its own
    assert (exit_status("sweep"), len(closed)) == (128 + number, 1)
    assert capsys.readouterr().err == f"mlkv: ended by {number.name}; the same command continues from here\n"
    assert signal.getsignal(number) is signal.SIG_DFL
    signal.signal(number, signal.SIG_IGN)  # as nohup leaves it
    try:
        assert exit_status("sweep") == 0
    finally:
        signal.signal(number, before)


def test_a_report_that_cannot_be_drawn_is_one_line_after_a_sweep(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(OLD_STORE / "store", store)
    monkeypatch.setattr("analysis.page.report.write_page", lambda *_: 1 / 0)
    assert exit_status("sweep", "--config-dir", str(OLD_STORE / "conf"), "experiment=old", "--store", str(store)) == 1
    printed = capsys.readouterr()
    assert printed.err == (
        "mlkv: the report cannot be written (ZeroDivisionError: division by zero); the results are in the store; "
        "`mlkv report old` draws it again\n"
    )
