"""Small real things that several tests need: a corpus of a few standard library modules, and a decoder for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlkv.context import Context, Row
from mlkv.corpus import step as corpus
from mlkv.recipes import CorpusRecipe
from mlkv.shape import DecoderShape
from tests.support.processes import PATIENCE

if TYPE_CHECKING:
    from mlkv.model import Block, Decoder

ROOT = Path(__file__).parents[2]
SHAPE = DecoderShape(vocab_size=512, width=32, layers=2, heads=2, head_dim=16, mlp_width=64, context=96)


def context(work: Path, rows: list[Row] | None = None, should_stop: Callable[[], bool] = lambda: False) -> Context:
    return Context(work, (lambda row: None) if rows is None else rows.append, should_stop)


def blocks_of(decoder: Decoder) -> list[Block]:
    """A decoder's blocks as what they are; to torch, what a ModuleList holds is any module."""
    return cast("list[Block]", list(decoder.blocks))


def text_files(folder: Path) -> Path:
    """Some 80 modules of the standard library, copied to `folder`."""
    library = Path(sysconfig.get_path("stdlib"))
    for package in ("json", "logging", "http", "email", "asyncio"):
        shutil.copytree(library / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def cut_into_snippets(folder: Path) -> None:
    """Replace every module under `folder` by files of 150 characters: documents shorter than a row."""
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text("utf-8")
        path.unlink()
        for i in range(0, min(len(text), 6000), 150):
            path.with_name(f"{path.stem}-{i}.py").write_text(text[i : i + 150], "utf-8")


def corpus_recipe(folder: Path, **changes: Any) -> CorpusRecipe:
    recipe = CorpusRecipe(
        source="text_files",
        files=(f"{folder}/**/*.py",),
        vocab_size=512,
        sequence_length=96,
        held_out=0.3,
        task_items=200,
    )
    return replace(recipe, **changes)


def make_corpus(folder: Path, *, snippets: bool = False, **changes: Any) -> Path:
    """A corpus directory under `folder`, of the modules that `text_files` copies, whole or as snippets."""
    out, text = folder / "corpus", text_files(folder / "text")
    out.mkdir()
    if snippets:
        cut_into_snippets(text)
    corpus.run(corpus_recipe(text, **changes), out, context(folder / "work"))
    return out


def start_python(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """`code` in a fresh interpreter that can import the project and the tests."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_python(code: str, *arguments: object, **environment: str) -> str:
    """What `code` prints; fails with it if it does not exit 0."""
    process = start_python(code, *arguments, **environment)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output
