"""Any words after any command, before any output: one line or what was asked for, and no traceback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeps.cli import COMMANDS
from sweeps.cli.streams import READER_GONE
from tests.support.commands import OLD_STORE, nothing_computes
from tests.support.outputs import OUTPUTS, errors_to
from tests.support.shell import exit_status

NAMES = ["old", "stopped", "measured", "nested/one", "theirs", "published/mlkv", "nope"]
STEPS = ["uptrain-426fc9a7f690d7d8", "corpus", "u", "MHA-4", "MQA-2 bits_per_byte", "M*", "["]
ODD = [
    "",
    " ",
    "-",
    "--",
    "=",
    "a=",
    "=a",
    "a=b=c",
    "\x00",
    "a\nb",
    "\udcff",
    "../..",
    "/",
    "~",
    "~x",
    "é",
    "*",
    "x" * 5000,
]
VALUES = ["losses", "pareto", "md", "tex", "csv", "source=store", "source=api", "map.x=config.y", "group=a", "1e999"]
OVERRIDES = ["layout=mqa", "layout=", "name=a/b", "uptrain.lr=[", "experiment=old", "~layout", "+a.b=1", "x=${y}"]
FLAGS = [
    "--store",
    "--config-dir",
    "--verify",
    "--yes",
    "--format",
    "-o",
    "--out",
    "--name",
    "--published",
    "--accuracy",
]
FLAGS += [
    "--accuracy",
    "--follow",
    "-f",
    "--curves",
    "--dir",
    "--project",
    "--cache",
    "--entity",
    "--help",
    "--bogus",
    "--store=~/x",
]
WORDS = st.sampled_from(NAMES + STEPS + ODD + VALUES + OVERRIDES + FLAGS) | st.text(max_size=4)
VERBS = st.sampled_from([command.name for command in COMMANDS if command.name != "dashboard"])  # which runs W&B's


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    with nothing_computes(tmp_path):
        yield tmp_path / "store"


def check(store: Path, verb: str, words: list[str], output: str) -> None:
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(OLD_STORE / "store", store)
    with errors_to() as errors, OUTPUTS[output](), pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLKV_STORE", str(store))
        patched.setenv("HOME", str(store.parent))
        status = exit_status(verb, *words)
        printed = errors()
    assert status in (0, 1, 2, 3, READER_GONE), printed
    assert "Traceback" not in printed
    if status == 2:
        assert printed.startswith("mlkv: ")
        assert printed.count("\n") == 1, printed


shared = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=12, suppress_health_check=shared)
@given(VERBS, st.lists(WORDS, max_size=4), st.sampled_from(sorted(OUTPUTS)))
def test_no_words_lead_to_a_traceback(store: Path, verb: str, words: list[str], output: str) -> None:
    check(store, verb, words, output)


@pytest.mark.long(minutes=2)
@settings(max_examples=300, suppress_health_check=shared)
@given(VERBS, st.lists(WORDS, max_size=5), st.sampled_from(sorted(OUTPUTS)))
def test_no_words_at_all_lead_to_a_traceback(store: Path, verb: str, words: list[str], output: str) -> None:
    check(store, verb, words, output)
