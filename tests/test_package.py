"""The wheel: everything a checkout has to run with is inside, and it runs without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.installed import install

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, cwd=folder)
    [built] = folder.glob("*.whl")
    return built


def test_it_holds_what_is_not_python_too(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    packages = ("mlkv/", "sweeps/", "analysis/", "slurm/", "conf/", "hydra_plugins/")
    assert {name for name in tracked if name.startswith(packages)} <= names
    assert "conf/config.yaml" in names


def test_it_plans_the_quickstart_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    code = f"import sweeps.cli; assert sweeps.cli.__file__.startswith({str(tmp_path)!r}); sweeps.cli.main()"
    plan = [sys.executable, "-c", code, "plan", "experiment=quickstart"]
    run = subprocess.run(plan, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "MLKV-1" in run.stdout
    wheel_entry = zipfile.ZipFile(wheel).read("mlkv-0.1.0.dist-info/entry_points.txt").decode()
    assert "mlkv = mlkv.__main__:main" in wheel_entry


def test_the_installed_command_says_so_in_one_line(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(site := tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    line = [sys.executable, "-c", "from mlkv.__main__ import main; main()", "--version"]
    run = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    install(site, "sweeps", "0.2.0", {"sweeps/__init__.py": "import nothing_such\n"})
    run = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr.count("\n"), "pip uninstall sweeps" in run.stderr) == (2, 1, True)
