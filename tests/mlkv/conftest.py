"""What evaluations score (random weights with an MLKV layout, on a small corpus), and what makes measurements quick."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlkv.hf import MLKVForCausalLM
from mlkv.measure import processor
from mlkv.patterns import make
from tests.support.tiny import SHAPE, make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """Random weights with an MLKV layout."""
    folder = tmp_path_factory.mktemp("checkpoint")
    MLKVForCausalLM.from_shape(SHAPE, make("even", 2, 2, 1, 1), seed=3).save_pretrained(folder)
    shutil.copytree(corpus / "tokenizer", folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def imported_modules_are_no_garbage() -> Iterator[None]:
    """Each measured cell begins with a garbage collection, which need not look through all that was imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def little_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed of memory is measured on a few bytes."""
    monkeypatch.setattr(processor, "copied_bytes", lambda device: 2**16)
