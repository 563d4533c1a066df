"""The lines that compare: which words are names and which are kinds, what is selected, and what is refused."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from tests.support.commands import OLD_STORE
from tests.support.shell import exit_status


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(OLD_STORE / "store", tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(line: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    capsys.readouterr()
    assert exit_status(*line.split(), "--format", "csv") == 0
    return list(csv.DictReader(capsys.readouterr().out.splitlines()))


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert exit_status(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("mlkv: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("line", ["table old stopped losses", "table old losses stopped"])
def test_words_that_are_no_kinds_are_names(line: str, old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(line, capsys)
    assert {row["source"] for row in found} <= {"old", "stopped", "old + stopped"}
    assert len({row["source"] for row in found}) > 1
    assert "source" not in rows("table old losses", capsys)[0]


def test_a_sweep_that_is_called_like_a_kind_has_a_longer_name(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("mv", "stopped", "losses") == 0
    assert rows("table losses losses", capsys), "the first word is a name"
    assert exit_status("table", "old", "losses", "--format", "csv") == 0
    printed = capsys.readouterr()
    assert printed.err == "losses: is taken for a table; sweep/losses names the sweep\n"
    assert "source" not in printed.out
    assert {"losses"} < {row["source"] for row in rows("table old sweep/losses losses", capsys)}


def test_rows_are_selected(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = [row["variant"] for row in rows("table old configuration", capsys)]
    chosen = [row["variant"] for row in rows("table old configuration --variants MHA-* untouched", capsys)]
    assert chosen == [name for name in every if name.startswith(("MHA-", "untouched"))]
    assert exit_status("table", "old", "configuration", "--format", "csv", "--where", "budget < 4") == 0
    few = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert few
    assert all(int(row["KV heads"]) < 4 for row in few)
    assert exit_status("figure", "old", "layouts", "--where", "budget < 4") == 0
    assert (old / "reports" / "old" / "selected" / "figures" / "layouts.png").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["table", "old", "benchmark"], ["benchmark: not in ", "sweeps: ", "as a table: did you mean benchmarks?"]),
        (["figure", "old", "paretto"], ["as a figure: did you mean pareto?"]),
        (["table", "old", "old"], ["old: is named twice"]),
        (["report", "old", "import/old"], ["old: not in "]),
        (["table", "old", "--variants", "MHQ*"], ["variants = MHQ*: matches no variant of old", "MHA-4"]),
        (
            ["table", "old", "--where", "kv_layrs > 1"],
            ["--where = kv_layrs > 1: 'kv_layrs' is not defined", "kv_layers"],
        ),
        (["table", "old", "--variants", "MHA-*", "losses"], ["losses: is a table, and no variant; kinds go before"]),
        (["table", "old", "--where", "tokens_per_second > x"], ["'x' is not defined", "tokens_per_second"]),
        (["table", "old", "--where", "budget = 1"], ["--where = budget = 1: "]),
        (["table", "old", "--where", ""], ["--where = ''"]),
        (["table", "old", "--where", "budget > 999"], ["--where 'budget > 999': no variant of old is left"]),
        (["table", "old", "losses", "--json"], ["--json has all scores; leave out the kind losses"]),
        (["table", "old", "--published", "mlkv", "--json"], ["published/mlkv"]),
    ],
)
def test_what_cannot_be_compared_is_refused(
    words: list[str], expected: list[str], old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(words, capsys)
    assert [each for each in expected if each not in error] == []
