"""What the evaluation's tests score: random weights with an MLKV layout, on a small corpus."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlkv.hf import MLKVForCausalLM
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
