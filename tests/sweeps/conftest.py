"""What the tests of sweeps share: a small experiment of real steps, and a planner."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from sweeps.planning.compose import Composer
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.resolve import Resolver
from sweeps.sharing.packing import pack
from sweeps.store.store import Store
from sweeps.tracking.target import VARIABLE
from tests.support.faults import SMALL, UPTRAIN
from tests.support.packs import Packed, fill
from tests.support.shell import TEST_CONF, Shell
from tests.support.tracked import use
from tests.support.wandb_server import WandbServer


@pytest.fixture(scope="session")
def text_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 small documents, always the same."""
    folder = tmp_path_factory.mktemp("text")
    words = [
        "fox",
        "jumps",
        "over",
        "lazy",
        "dog",
        "while",
        "seven",
        "wizards",
        "vex",
        "jackals",
        "near",
        "lakes",
    ]
    for i in range(24):
        picked = [words[(i * 7 + j * j + j // 5) % len(words)] for j in range(1200)]
        (folder / f"{i:02}.txt").write_text(" ".join(picked))
    return folder


@pytest.fixture
def tiny(text_files: Path) -> list[str]:
    """Arguments of the tests' own experiment."""
    return ["experiment=tiny", f"corpus.files=[{text_files}/*.txt]"]


@pytest.fixture(scope="session")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str]], Plan]:
    """From a command line to its plan, with the tests' own conf beside the project's."""
    store = Store(tmp_path_factory.mktemp("planned"))
    composer = Composer(TEST_CONF)
    return lambda arguments: make_plan(composer, Resolver(store), list(arguments))


@pytest.fixture(scope="session")
def ada(tmp_path_factory: pytest.TempPathFactory, text_files: Path, planner: Callable[[Sequence[str]], Plan]) -> Packed:
    folder = tmp_path_factory.mktemp("ada")
    line = ["experiment=tiny", f"corpus.files=[{text_files}/*.txt]", "layout=mqa"]
    store, plan = Store.open(folder / "store"), planner(line)
    fill(store, plan, line)
    store.write_note("tiny", "a first look")
    packed = Packed(folder, store, line, plan)
    for weights in ("none", "last", "all"):
        pack(store, store.sweep("tiny"), packed.file(weights), by="Ada", weights=weights)
    return packed


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, text_files: Path) -> Shell:
    """The uptraining of the fault tests, run on this machine."""
    shell = Shell(tmp_path_factory.mktemp("undisturbed"))
    shell("sweep", "experiment=tiny", f"corpus.files=[{text_files}/*.txt]", *SMALL, *UPTRAIN, "cluster.slots=1")
    return shell


@pytest.fixture
def disturbed(undisturbed: Shell, tmp_path: Path) -> Shell:
    """A store of one's own in which all of that is done."""
    shutil.copytree(undisturbed.folder, tmp_path, dirs_exist_ok=True)
    return Shell(tmp_path)


@pytest.fixture
def mlkv(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server on this machine, which clients started from here find; what a test's workers mirror, it says."""
    monkeypatch.setenv(VARIABLE, "")
    with WandbServer() as server:
        use(server, monkeypatch)
        yield server
