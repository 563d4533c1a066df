"""The command line: as a user runs it, in a process and a folder of its own, or in the process of the test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sweeps.cli import main
from sweeps.store.store import Store

ROOT = Path(__file__).resolve().parents[2]
TEST_CONF = ROOT / "tests" / "conf"


def exit_status(*arguments: str) -> int:
    """That of `mlkv` in this process, which is faster by a start of Python and can be patched."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@dataclass(frozen=True)
class Shell:
    """`mlkv` in a folder of its own, as a subprocess."""

    folder: Path

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "MLKV_STORE": str(self.folder / "store"), "COLUMNS": "200"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "sweeps.cli", *arguments]
        if arguments[0] in ("sweep", "plan", "run", "search"):
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

    def __call__(self, *arguments: str, status: int = 0, timeout: float = 300) -> str:
        """What it printed, after checking its exit status."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == status, f"{arguments}: {process.returncode}\n{out}\n{err}"
        return out if status == 0 else out + err

    def program(self, *command: str) -> str:
        """What a program printed that finds `mlkv` on its path, after checking that it exits with 0."""
        (folder := self.folder / "bin").mkdir(exist_ok=True)
        (wrapper := folder / "mlkv").write_text(f'#!/bin/sh\nexec {sys.executable} -m mlkv "$@"\n')
        wrapper.chmod(0o755)
        environment = {**self.environment(), "PATH": f"{folder}:{os.environ['PATH']}"}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def page(self, text: str) -> list[str]:
        """What the blocks of a page print that are marked `bash` or `python`, run in their order."""
        blocks = re.findall(r"^```(bash|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        programs = {"bash": ["bash", "-euc"], "python": [sys.executable, "-c"]}
        return [self.program(*programs[language], block) for language, block in blocks]

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")
