"""The locks hold all that is needed, and the container recipes install them with every package of the wheel."""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CONTAINERS = ROOT / "slurm" / "containers"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(name: str) -> dict[str, str]:
    """Package → version, of a lock and of the lock that it includes."""
    found: dict[str, str] = {}
    for line in (ROOT / name).read_text().splitlines():
        if included := re.fullmatch(r"-r (\S+)", line):
            found |= pins(included[1])
        elif not line.startswith("#"):
            package, version = line.split("==")
            assert canonicalize_name(package) not in found, f"{package} is pinned twice"
            found[canonicalize_name(package)] = version
    return found


def lacking(requirements: list[str], pinned: dict[str, str]) -> list[str]:
    """The requirements, as far as they are of this platform, that no pin meets."""
    read = [Requirement(each) for each in requirements]
    here = [each for each in read if each.marker is None or each.marker.evaluate({"extra": ""})]
    return [
        str(each)
        for each in here
        if (name := canonicalize_name(each.name)) not in pinned or not each.specifier.contains(pinned[name], True)
    ]


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-cuda.lock"])
def test_a_lock_needs_nothing_that_it_does_not_pin_and_names_no_address(lock: str) -> None:
    assert "://" not in (ROOT / lock).read_text()
    pinned = pins(lock)
    project = PROJECT["project"]
    for extra in (project["dependencies"], *project["optional-dependencies"].values()):
        assert not lacking(extra, pinned)
    for package in pinned:
        try:
            needed = requires(package) or []
        except PackageNotFoundError:  # pinned for another platform
            continue
        assert not lacking(needed, pinned), package


def test_the_lock_for_cuda_adds_packages_and_changes_none() -> None:
    cpu, cuda = pins("requirements.lock"), pins("requirements-cuda.lock")
    assert cuda == cuda | cpu
    assert {"triton", "nvidia-cudnn-cu13"} <= cuda.keys() - cpu.keys()


def test_the_dockerfile_has_no_lint() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    run = subprocess.run([hadolint, CONTAINERS / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


def test_both_images_are_made_of_one_base_the_same_files_and_the_same_commands() -> None:
    docker, apptainer = (CONTAINERS / "Dockerfile").read_text(), (CONTAINERS / "mlkv.def").read_text()
    [docker_base], [apptainer_base] = (
        re.findall(r"^FROM (.*)", docker, re.M),
        re.findall(r"^From: (.*)", apptainer, re.M),
    )
    assert docker_base == apptainer_base
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", docker, re.M) for name in line.split()}
    assert copied == set(re.findall(r"^ +(\S+) /opt/mlkv/", apptainer, re.M))
    assert copied >= set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert all((ROOT / name).exists() for name in copied)
    installs = [
        line.replace('"$LOCK"', "{{ LOCK }}") for line in re.findall(r"python -m pip .*?(?= &&|$)", docker, re.M)
    ]
    assert installs == re.findall(r"python -m pip .*", apptainer)
