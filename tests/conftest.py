"""One real SLURM for all tests that want one, brought up when the first of them runs; how hypothesis tries things."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from slurm.local_cluster.cluster import LocalCluster

# Its deadline of 200 ms an example judges the machine, which may be busy, not the code.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

CACHE = "XDG_CACHE_HOME"


def pytest_configure(config: pytest.Config) -> None:
    """What plans of tests find out stays out of the user's cache; the caches of other programs are the user's own."""
    if hasattr(config, "workerinput"):  # of pytest-xdist, with the environment of the process that started it
        return
    users = Path(os.environ.get(CACHE) or Path.home() / ".cache")
    folder = Path(tempfile.mkdtemp(prefix="mlkv-test-cache-"))
    for each in users.iterdir() if users.is_dir() else ():
        if each.name != "mlkv":
            (folder / each.name).symlink_to(each)
    os.environ[CACHE] = str(folder)
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the longest tests first: processes that share files out by `--dist loadfile` end at about one time."""
    minutes: Counter[Path] = Counter()
    for item in items:
        if mark := item.get_closest_marker("long"):
            minutes[item.path] = max(minutes[item.path], mark.kwargs.get("minutes", 0))
    items.sort(key=lambda item: -minutes[item.path])


SBIN = "/usr/sbin:/usr/local/sbin"


def need(program: str) -> None:
    """Skip where SLURM is not installed, unless MLKV_REQUIRE_SLURM=1 says that it has to be."""
    if shutil.which(program, path=f"{os.environ['PATH']}:{SBIN}") is None:
        if os.environ.get("MLKV_REQUIRE_SLURM") == "1":
            pytest.fail(f"MLKV_REQUIRE_SLURM=1, but {program} is not installed")
        pytest.skip(f"{program} is not installed (python -m slurm.local_cluster install)")


@pytest.fixture(scope="session")
def installed() -> None:
    need("slurmctld")


@pytest.fixture(scope="session")
def plain_cluster(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Without accounting, and with arrays of at most 64 tasks."""
    cluster = LocalCluster(tmp_path_factory.mktemp("slurm"))
    try:
        # KillWait: time to save a checkpoint, on a busy machine too.
        cluster.up(options={"MaxArraySize": "64", "MinJobAge": "300", "KillWait": "20"})
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def accounted_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """With slurmdbd and MariaDB, and forgetting ended jobs as soon as SLURM can."""
    need("slurmdbd")
    need("mariadbd")
    cluster = LocalCluster(tmp_path_factory.mktemp("accounted"))
    try:
        cluster.up(accounting=True, options={"MinJobAge": "2"})
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def cluster(plain_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    monkeypatch.setenv("SLURM_CONF", str(plain_cluster.slurm_conf))
    return plain_cluster


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "with a space" / "submissions"
