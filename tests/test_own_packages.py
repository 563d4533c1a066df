"""Our packages are found first, whatever else has their names; where pip has put others in their place, one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlkv.own_packages import PACKAGES, overwritten
from tests.support.installed import install

ROOT = Path(__file__).resolve().parents[1]
OLD_STORE = ROOT / "tests" / "sweeps" / "old_store" / "store"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with packages of others under our names."""
    for name in ("sweeps", "analysis", "slurm", "conf"):
        (tmp_path / "foreign" / name).mkdir(parents=True)
        (tmp_path / "foreign" / name / "__init__.py").write_text("raise ImportError('that of somebody else')\n")
    return tmp_path / "foreign"


@pytest.mark.parametrize(
    "start", [["-m", "mlkv"], ["-m", "sweeps.cli"], ["-c", "from mlkv.__main__ import main; main()"]]
)
def test_foreign_packages_on_the_path_and_in_the_working_directory_are_passed_over(
    start: list[str], foreign: Path
) -> None:
    if "sweeps.cli" in start:
        shutil.rmtree(foreign / "sweeps")  # which Python itself would run
    environment = {**os.environ, "PYTHONPATH": f"{foreign}{os.pathsep}{ROOT}", "COLUMNS": "200"}
    environment.pop("PYTHONSAFEPATH", None)
    line = [sys.executable, *start, "status", "--store", str(OLD_STORE)]
    run = subprocess.run(line, cwd=foreign, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert "old: 16 done" in run.stdout


def test_python_finds_ours_too(foreign: Path) -> None:
    code = f"import mlkv; print(mlkv.load({str(OLD_STORE)!r}).imports, mlkv.load is vars(mlkv)['load'])"
    environment = {**os.environ, "PYTHONPATH": f"{foreign}{os.pathsep}{ROOT}"}
    environment.pop("PYTHONSAFEPATH", None)
    line = [sys.executable, "-c", code]
    run = subprocess.run(line, cwd=foreign, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr, run.stdout) == (0, "", "['theirs'] True\n")


def test_a_distribution_that_has_overwritten_ours_is_named(tmp_path: Path) -> None:
    assert overwritten(tmp_path) is None, "a checkout"
    install(tmp_path, "mlkv", "0.1.0", {f"{name}/__init__.py": f"# {name} of ours\n" for name in PACKAGES})
    install(tmp_path, "numbers", "2.0", {"numbers/__init__.py": ""})
    assert overwritten(tmp_path) is None
    shutil.copytree(tmp_path, before := tmp_path.with_name("before"))
    install(before, "sweeps", "0.2.0", {"sweeps/__init__.py": "# theirs\n", "sweeps/run.py": ""})
    assert overwritten(before) == (
        f"{before}/sweeps is owned by two distributions, mlkv 0.1.0 and sweeps 0.2.0; uninstall sweeps (`pip uninstall "
        "sweeps`), then install mlkv again (`pip install --force-reinstall --no-deps`)"
    )
    (before / "sweeps" / "__init__.py").write_text("# sweeps of ours\n")
    assert overwritten(before) is None, "ours was installed after it"
    (before / "sweeps" / "__init__.py").unlink()
    assert "sweeps 0.2.0" in str(overwritten(before)), "uninstalled in part"


def test_an_edited_file_of_ours_is_nobodys_fault(tmp_path: Path) -> None:
    install(tmp_path, "mlkv", "0.1.0", {f"{name}/__init__.py": "" for name in PACKAGES})
    (tmp_path / "sweeps" / "__init__.py").write_text("# edited\n")
    assert overwritten(tmp_path) is None
