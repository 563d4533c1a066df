"""Commands of this code and of an earlier revision of it, as rivals."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.turns import ROOT


@contextmanager
def code_at(revision: str | None) -> Iterator[Path]:
    """A folder with the code of a git revision; without one, that of this checkout. Exits where git does not know it;
    git says so."""
    if revision is None:
        yield ROOT
        return
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, stdout=subprocess.PIPE)
    if archive.returncode:
        sys.exit(archive.returncode)
    with TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
        yield Path(folder)


def variables(code: Path) -> dict[str, str]:
    """With which a Python imports this code rather than what is installed."""
    return {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}


def mlkv(code: Path, folder: Path, *words: str) -> None:
    """A whole command of this code, in a folder that has its store. Raises CalledProcessError with what it printed."""
    variables = {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", "MLKV_STORE": str(folder / "store")}
    command = [sys.executable, "-m", "mlkv", *words]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        done.check_returncode()
