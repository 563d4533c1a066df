"""The source of a corpus's text: documents, one at a time, each marked as training or held out.

Nothing here needs torch, so a planner can list and check local files before anything runs.
"""

from __future__ import annotations

import hashlib
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import glob
from os.path import commonpath
from pathlib import Path
from typing import Any

from ..recipes import CorpusRecipe

TOPICS = "pydoc_data/topics.py"
_SKIPPED_PARTS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"}
_SKIPPED_PACKAGES = {"encodings", "idlelib", "lib2to3", "turtledemo"}
"""Generated tables, applications and a second parser: not the prose and code that a small model should learn."""


@dataclass(frozen=True)
class Document:
    text: str
    held_out: bool


def documents(recipe: CorpusRecipe) -> Iterator[Document]:
    """The corpus's documents in an order that depends on `recipe` and the data alone.

    Raises ValueError as `local_files` does, and where a hub dataset lacks `text_column`.
    """
    return _hub_documents(recipe) if recipe.source == "hf" else _file_documents(recipe)


def local_files(recipe: CorpusRecipe) -> list[tuple[str, Path]]:
    """(name, path) of every file the corpus reads, sorted by name; none for `hf`.

    Names are relative to the files' common folder, so names and contents identify the corpus wherever it is. Every file
    of `text_files` is read once and checked. Raises ValueError that names the glob without a match, a file that is not
    UTF-8, or the only file of a corpus, of which nothing could be held out.
    """
    if recipe.source == "python_stdlib":
        return _stdlib_files()
    if recipe.source == "text_files":
        return _matched_files(recipe.files)
    return []


def is_held_out(key: str, share: float) -> bool:
    """Whether a document is in the held-out `share`: a hash of its name or content decides alone, so that a corpus that
    grows holds out the same documents as before."""
    return _position(key) < share


def _position(key: str) -> float:
    """A number in [0, 1), uniform over keys and the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


def _stdlib_files() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py"))
    files = [(name, root / name) for name in names if _is_stdlib_source(name)]
    if len(files) < 2:
        raise ValueError(f"source = python_stdlib: no Python source in {root}; choose text_files or hf")
    return files


def _is_stdlib_source(name: str) -> bool:
    folders = name.split("/")[:-1]
    if _SKIPPED_PARTS.intersection(folders):
        return False
    return not folders or (folders[0] not in _SKIPPED_PACKAGES and not folders[0].startswith("config-"))


def _matched_files(globs: Iterable[str]) -> list[tuple[str, Path]]:
    matched: set[Path] = set()
    for pattern in globs:
        paths = map(Path, glob(str(Path(pattern).expanduser()), recursive=True))
        files = [path.resolve() for path in paths if path.is_file()]
        if not files:
            raise ValueError(f"files = {pattern}: matches no file")
        matched.update(files)
    if len(matched) == 1:
        raise ValueError(f"files = {matched.pop()}: one file only; held-out text needs at least two")
    root = Path(commonpath(matched))
    for path in sorted(matched):
        _check_utf8(path)
    return sorted((path.relative_to(root).as_posix(), path) for path in matched)


def _check_utf8(path: Path) -> None:
    try:
        path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"files = {path}: not UTF-8 (byte {error.start}: {error.reason})") from error
    except OSError as error:
        raise ValueError(f"files = {path}: {error.strerror}") from error


def _file_documents(recipe: CorpusRecipe) -> Iterator[Document]:
    files = local_files(recipe)
    names = [name for name, _ in files]
    # Few files may all hash above the share. Then the one with the lowest hash is held out, as some text has to be.
    by_hash = any(is_held_out(name, recipe.held_out) for name in names)
    forced = None if by_hash else min(names, key=_position)
    for name, path in files:
        for key, text in _texts(name, path, recipe.source):
            yield Document(text, name == forced or is_held_out(key, recipe.held_out))


def _texts(name: str, path: Path, source: str) -> list[tuple[str, str]]:
    if source == "text_files":
        return [(name, path.read_text("utf-8"))]
    if name == TOPICS:
        from pydoc_data.topics import topics

        return [(f"{TOPICS}/{topic}", topics[topic]) for topic in sorted(topics)]
    with tokenize.open(path) as file:
        return [(name, file.read())]


def _hub_documents(recipe: CorpusRecipe) -> Iterator[Document]:
    for text in hub_texts(recipe):
        if recipe.fraction is None or _position("fraction:" + text) < recipe.fraction:
            yield Document(text, is_held_out(text, recipe.held_out))


def hub_texts(recipe: CorpusRecipe) -> Iterator[str]:
    """Texts of a hub dataset (or a local directory of one), streamed; with `take`, the first n of a seeded shuffle."""
    stream = _stream(recipe)
    if recipe.take is not None:
        stream = stream.shuffle(seed=recipe.seed, buffer_size=recipe.shuffle_buffer).take(recipe.take)
    for row in stream:
        if not isinstance(row.get(recipe.text_column), str):
            raise ValueError(f"text_column = {recipe.text_column}: no text; {recipe.dataset} has {', '.join(row)}")
        yield row[recipe.text_column]


def _stream(recipe: CorpusRecipe) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(recipe.dataset, recipe.subset, split=recipe.split, revision=recipe.revision, streaming=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"dataset = {recipe.dataset}: {str(error).splitlines()[0]}") from error
