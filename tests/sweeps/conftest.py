"""What the tests of sweeps share: a small experiment of real steps, and the command line as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sweeps.compose import Composer
from sweeps.plan import Plan, make_plan
from sweeps.resolve import Resolver
from sweeps.store import Store

ROOT = Path(__file__).resolve().parents[2]
TEST_CONF = ROOT / "tests" / "conf"


@pytest.fixture(scope="session")
def text_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 small documents, always the same."""
    folder = tmp_path_factory.mktemp("text")
    words = "the quick brown fox jumps over a lazy dog while seven wizards vex bad jackals near quiet lakes".split()
    for i in range(24):
        picked = [words[(i * 7 + j * j + j // 5) % len(words)] for j in range(1200)]
        (folder / f"{i:02}.txt").write_text(" ".join(picked))
    return folder


@pytest.fixture
def tiny(text_files: Path) -> list[str]:
    """Arguments of the tests' own experiment."""
    return ["experiment=tiny", f"corpus.files=[{text_files}/*.txt]"]


@pytest.fixture
def planner(tmp_path: Path) -> Callable[[Sequence[str]], Plan]:
    """From a command line to its plan, with the tests' own conf beside the project's."""
    store = Store(tmp_path / "planned")
    composer = Composer(TEST_CONF)
    return lambda arguments: make_plan(composer, Resolver(store), list(arguments))


@dataclass(frozen=True)
class Shell:
    """`mlkv` in a folder of its own, as a subprocess."""

    folder: Path

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "MLKV_STORE": str(self.folder / "store"), "COLUMNS": "200"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "sweeps.cli", *arguments]
        if arguments[0] in ("sweep", "plan", "run"):
            command += ["--config-dir", str(TEST_CONF)]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """What it printed, after checking its exit status."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, f"{arguments}: {process.returncode}\n{out}\n{err}"
        return out if status == 0 else out + err

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")


@pytest.fixture
def mlkv(tmp_path: Path) -> Shell:
    return Shell(tmp_path)
