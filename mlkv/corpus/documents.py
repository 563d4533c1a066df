"""The source of a corpus's text: documents, one at a time, each marked as training or held out.

Nothing here needs torch, so a planner can list and check local files before anything runs.
"""

from __future__ import annotations

import hashlib
import math
import os
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import glob
from itertools import islice
from os.path import commonpath, expanduser
from pathlib import Path
from random import Random
from typing import Any

from ..recipes import CorpusRecipe
from .formats import BY_ROW, Reading, Skipped, format_suffix, is_saved_dataset, texts, texts_of_rows
from .found_files import Found, find, refuse_plain_text, refuse_rows

TOPICS = "pydoc_data/topics.py"
_SKIPPED_PARTS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"}
_SKIPPED_PACKAGES = {"encodings", "idlelib", "lib2to3", "turtledemo"}
"""Generated tables, applications and a second parser: not the prose and code that a small model should learn."""


_EMPTY = hashlib.sha256(b"").hexdigest()
FEW = 1000
"""Of so many documents at most, some are made sure to be on either side of the split."""


@dataclass(frozen=True)
class Document:
    text: str
    held_out: bool


def documents(recipe: CorpusRecipe, skipped: Skipped | None = None) -> Iterator[Document]:
    """The corpus's documents in an order that depends on `recipe` and the data alone. `skipped` counts the rows that
    gave none.

    Raises ValueError as `local_files` does, where rows lack `text_column`, and where a file is damaged.
    """
    skipped = Skipped() if skipped is None else skipped
    if row_files(recipe) is not None:
        return _documents_of_rows(recipe, skipped)
    return _hub_documents(recipe, skipped) if recipe.source == "hf" else _file_documents(recipe)


def row_files(recipe: CorpusRecipe) -> Found | None:
    """The files whose rows and texts are documents; None where the source is another. Raises ValueError where there are
    none."""
    if recipe.source == "files":
        return find(recipe.files)
    place = local_dataset(recipe)
    if place and (place.is_file() or is_saved_dataset(place)):
        return find([str(place)], "dataset")
    return None


def place_of(recipe: CorpusRecipe) -> str:
    """The field that says where the text is, and its value."""
    if recipe.source == "hf":
        return f"dataset = {recipe.dataset}"
    return f"files = {', '.join(recipe.files)}" if recipe.files else f"source = {recipe.source}"


def check_beginnings(recipe: CorpusRecipe) -> None:
    """Raises ValueError where the first row with text of a file of rows, or what is before it, cannot be read."""
    found = row_files(recipe)
    for _, path in found.files if found else ():
        if path.is_dir() or format_suffix(path) in BY_ROW:
            next(_named_texts(recipe, path, Reading(recipe.text_column, recipe.split), Skipped()), None)


def local_dataset(recipe: CorpusRecipe) -> Path | None:
    """Where on this machine the dataset of source `hf` lies; None where its name is one of the hub."""
    place = Path(expanduser(recipe.dataset or ""))
    return place if recipe.source == "hf" and place.exists() else None


def local_files(recipe: CorpusRecipe) -> list[tuple[str, Path]]:
    """(name, path) of every file the corpus reads, sorted by name; none for what the datasets library reads.

    Names are relative to the files' common folder, so names and contents identify the corpus wherever it is. Every file
    of `text_files` is read once and checked. Raises ValueError that names the glob without a match, a file that is not
    UTF-8, or the only file of a corpus, of which nothing could be held out.
    """
    if recipe.source == "python_stdlib":
        return _stdlib_files()
    if recipe.source == "text_files":
        return _matched_files(recipe.files)
    found = row_files(recipe)
    return found.every_file if found else []


def identifying_files(recipe: CorpusRecipe) -> list[tuple[str, Path]]:
    """(name, path) of the files on this machine whose names and contents are the text's identity; none where that is a
    commit of the hub. Raises ValueError as `local_files` does."""
    folder = local_dataset(recipe)
    if folder and row_files(recipe) is None:
        return [(path.name, path) for path in sorted(folder.rglob("*")) if path.is_file()]
    return local_files(recipe)


def is_held_out(key: str, share: float) -> bool:
    """Whether a document is in the held-out `share`: a hash of its name or content decides alone, so that a corpus that
    grows holds out the same documents as before."""
    return _position(key) < share


def _position(key: str) -> float:
    """A number in [0, 1), uniform over keys and the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


def _stdlib_files() -> list[tuple[str, Path]]:
    """Folders that are left out are not even listed: installed packages hold ten times as many files as the library."""
    root = sysconfig.get_path("stdlib")
    names: list[str] = []
    for folder, folders, files in os.walk(root):
        place = "" if folder == root else Path(folder).relative_to(root).as_posix() + "/"
        folders[:] = [name for name in folders if _has_stdlib_sources(name, at_top=not place)]
        names += [place + name for name in files if name.endswith(".py")]
    if len(names) < 2:
        raise ValueError(f"source = python_stdlib: no Python source in {root}; choose text_files or hf")
    return [(name, Path(root, name)) for name in sorted(names)]


def _has_stdlib_sources(folder: str, at_top: bool) -> bool:
    if folder in _SKIPPED_PARTS:
        return False
    return not at_top or (folder not in _SKIPPED_PACKAGES and not folder.startswith("config-"))


def _matched_files(globs: Iterable[str]) -> list[tuple[str, Path]]:
    matched: set[Path] = set()
    for pattern in globs:
        if Path(expanduser(pattern)).is_dir():
            raise ValueError(f"files = {pattern}: is a folder; corpus=files reads what lies in it")
        paths = map(Path, glob(str(Path(expanduser(pattern))), recursive=True))
        found = [path for path in paths if path.is_file()]
        if not found:
            raise ValueError(f"files = {pattern}: matches no file")
        refuse_rows(found)
        matched.update(path.resolve() for path in found)
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
    """Split by their names, but equal texts go by the name of the first, or a model would be scored on what it was
    trained on."""
    files = local_files(recipe)
    firsts: dict[bytes, tuple[str, str]] = {}
    for name, path in files:
        for key, text in _texts(name, path, recipe.source):
            firsts.setdefault(_digest(text), (name, key))
    forced = _forced_name([name for name, _ in firsts.values()], recipe.held_out)
    for name, path in files:
        for key, text in _texts(name, path, recipe.source):
            first, its_key = firsts[_digest(text)] if text else (name, key)
            yield Document(text, first == forced or is_held_out(its_key, recipe.held_out))


def _forced_name(names: list[str], share: float) -> str | None:
    """Few names may all hash above the share. Then that with the lowest hash is held out, as some text has to be."""
    return None if any(is_held_out(name, share) for name in names) else min(names, key=_position)


def splits_duplicates(digests: dict[str, str], share: float) -> bool:
    """Whether files of the same content (name → digest) would lie on both sides if names alone decided."""
    forced = _forced_name(list(digests), share)
    sides: dict[str, set[bool]] = {}
    for name, digest in digests.items():
        sides.setdefault(digest, set()).add(name == forced or is_held_out(name, share))
    return any(len(both) > 1 for digest, both in sides.items() if digest != _EMPTY)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _documents_of_rows(recipe: CorpusRecipe, skipped: Skipped) -> Iterator[Document]:
    """Split by content, so that equal documents are on one side."""
    limit = _held_out_limit(recipe)
    for text in _chosen(recipe, skipped):
        yield Document(text, _position(text) < limit)


def _held_out_limit(recipe: CorpusRecipe) -> float:
    """The position below which documents are held out: the share, moved where one side of few documents were empty."""
    found = [_position(text) for text in islice(_chosen(recipe, Skipped()), FEW + 1)]
    positions = set(found)
    if not positions or len(found) > FEW:
        return recipe.held_out
    if len(positions) == 1:
        raise ValueError(f"{place_of(recipe)}: one document only; held-out text needs at least two that differ")
    return min(max(recipe.held_out, math.nextafter(min(positions), 1)), max(positions))


def _chosen(recipe: CorpusRecipe, skipped: Skipped) -> Iterator[str]:
    """The texts of files, in the files' order; with `take`, the first of a seeded shuffle."""
    found = row_files(recipe)
    assert found
    reading = Reading(recipe.text_column, recipe.split)
    stream = (text for _, path in found.files for text in _named_texts(recipe, path, reading, skipped))
    if recipe.take is not None:
        return islice(_shuffled(stream, recipe.seed, recipe.shuffle_buffer), recipe.take)
    return (text for text in stream if _is_in_fraction(text, recipe))


def _named_texts(recipe: CorpusRecipe, path: Path, reading: Reading, skipped: Skipped) -> Iterator[str]:
    try:
        yield from texts(path, reading, skipped)
    except ValueError as error:
        raise ValueError(f"{'dataset' if recipe.source == 'hf' else 'files'} = {error}") from error


def _shuffled(stream: Iterator[str], seed: int, size: int) -> Iterator[str]:
    """Through a buffer of `size`: each text that comes takes the place of a random one, which goes."""
    random = Random(seed)
    buffer = list(islice(stream, size))
    for text in stream:
        i = random.randrange(size)
        yield buffer[i]
        buffer[i] = text
    random.shuffle(buffer)
    yield from buffer


def _is_in_fraction(text: str, recipe: CorpusRecipe) -> bool:
    return recipe.fraction is None or _position("fraction:" + text) < recipe.fraction


def _texts(name: str, path: Path, source: str) -> list[tuple[str, str]]:
    if source == "text_files":
        return [(name, path.read_text("utf-8"))]
    if name == TOPICS:
        from pydoc_data.topics import topics

        return [(f"{TOPICS}/{topic}", topics[topic]) for topic in sorted(topics)]
    with tokenize.open(path) as file:
        return [(name, file.read())]


def _hub_documents(recipe: CorpusRecipe, skipped: Skipped) -> Iterator[Document]:
    for text in hub_texts(recipe, skipped):
        if _is_in_fraction(text, recipe):
            yield Document(text, is_held_out(text, recipe.held_out))


def hub_texts(recipe: CorpusRecipe, skipped: Skipped | None = None) -> Iterator[str]:
    """Texts of a hub dataset (or a local directory of one), streamed; with `take`, the first n of a seeded shuffle.
    Rows without text are skipped, and count among the n; an empty text is a document."""
    rows = ((f"row {number}", row) for number, row in enumerate(_hub_rows(recipe), 1))
    skipped = Skipped() if skipped is None else skipped
    try:
        yield from texts_of_rows(rows, str(recipe.dataset), recipe.text_column, skipped, keep_empty=True)
    except ValueError as error:
        raise ValueError(f"dataset = {error}") from error


def _hub_rows(recipe: CorpusRecipe) -> Iterator[Any]:
    from datasets import load_dataset

    name = recipe.dataset or ""
    place = local_dataset(recipe)
    if place:
        refuse_plain_text(place)
        name = str(place)
    number = 0
    try:
        stream = load_dataset(name, recipe.subset, split=recipe.split, revision=recipe.revision, streaming=True)
        if recipe.take is not None:
            stream = stream.shuffle(seed=recipe.seed, buffer_size=recipe.shuffle_buffer).take(recipe.take)
        for number, row in enumerate(stream, 1):  # noqa: B007
            yield row
    except Exception as error:  # of the hub, the HTTP library, decompression and each format's parser
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        after = f" (after row {number})" if number else ""
        raise ValueError(f"{recipe.dataset}: {reason}{after}") from error
