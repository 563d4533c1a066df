"""Stores of the quickstart: planned alone, finished, and mirrored to W&B."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.filler import FIGURES, Filler
from tests.support.mirrored import Mirrored, mirror
from tests.support.wandb_server import WandbServer


@pytest.fixture
def filler(tmp_path: Path) -> Filler:
    """Planned, nothing run yet."""
    return Filler(tmp_path / "store")


@pytest.fixture
def few(tmp_path: Path) -> Callable[[Iterable[str]], Filler]:
    """A sweep of these variants alone."""
    return lambda labels: Filler(tmp_path / "few", {label: FIGURES[label] for label in labels})


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Filler:
    """Everything finished; read only."""
    filler = Filler(tmp_path_factory.mktemp("finished") / "store")
    filler.everything()
    return filler


@pytest.fixture(scope="session")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirrored]:
    """Three variants in every state, in the store and in W&B; read only."""
    few = {label: FIGURES[label] for label in ("MHA-36", "MQA-6", "MLKV-3")}
    with WandbServer() as server:
        yield mirror(Filler(tmp_path_factory.mktemp("mirrored") / "store", few, converted=["bits_per_byte"]), server)
