"""The files that a corpus reads: from globs and paths to names and places, in an order that the names alone decide."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob
from os.path import commonpath, expanduser
from pathlib import Path

from .compressed import SUFFIXES
from .formats import READ, WHOLE, format_suffix, is_readable, is_saved_dataset

_SOMETIMES_TEXT = (".json", ".csv", ".tsv")


@dataclass(frozen=True)
class Found:
    """files: (name, path) of every file or saved dataset, sorted by name. other: files in folders whose suffix is none
    that is read."""

    files: list[tuple[str, Path]]
    other: list[Path] = field(default_factory=list)

    @property
    def every_file(self) -> list[tuple[str, Path]]:
        """The same, with the files of saved datasets one by one: what identifies the text."""
        return [each for name, path in self.files for each in _files_of(name, path)]


def _files_of(name: str, path: Path) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        yield name, path
        return
    for inner in sorted(path.rglob("*")):
        if inner.is_file():
            yield f"{name}/{inner.relative_to(path).as_posix()}", inner


def content_digest(named: Iterable[tuple[str, Path]], digest_of: Callable[[Path], str]) -> str:
    """SHA-256 (hex) of names and contents; `digest_of` gives that of one file."""
    whole = hashlib.sha256()
    for name, path in named:
        whole.update(f"{name} {digest_of(path)}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(patterns: Iterable[str], noun: str = "files") -> Found:
    """Files by path, by glob, and below folders. Hidden ones are left out.

    Names are relative to the folder that all have in common, so names and contents identify the text wherever it is.
    Raises ValueError that names the pattern which matches nothing that can be read.
    """
    matched: dict[Path, None] = {}
    other: dict[Path, None] = {}
    for pattern in patterns:
        try:
            readable, rest = _matches(pattern)
        except OSError as error:
            raise ValueError(f"{noun} = {pattern}: {error.filename}: {error.strerror}") from error
        if not readable and not rest:
            raise ValueError(f"{noun} = {pattern}: matches no file")
        if not readable:
            raise ValueError(
                f"{noun} = {pattern}: {rest[0].name} is of no format that is read ({READ}, also compressed); "
                "corpus=text_files takes any UTF-8 file as one document"
            )
        matched |= dict.fromkeys(readable)
        other |= dict.fromkeys(rest)
    root = Path(commonpath([path.parent for path in matched])) if matched else Path()
    return Found(sorted((path.relative_to(root).as_posix(), path) for path in matched), list(other))


def _matches(pattern: str) -> tuple[list[Path], list[Path]]:
    """What is read, and what is of no format that is read."""
    given = Path(expanduser(pattern))
    paths = [given] if given.exists() else map(Path, sorted(glob(str(given), recursive=True)))
    files = [file for path in paths for file in _below(Path(os.path.abspath(path)), frozenset())]
    readable = [path for path in files if path.is_dir() or is_readable(path)]
    return readable, [path for path in files if path not in set(readable)]


def _below(path: Path, above: frozenset[Path]) -> Iterator[Path]:
    """A file itself, a saved dataset itself, or what lies below a folder."""
    if not path.is_dir():
        if path.is_file():
            yield path
        return
    real = path.resolve()
    if is_saved_dataset(path):
        yield path
    elif real not in above:  # else a link leads back up
        for inner in sorted(path.iterdir()):
            if not inner.name.startswith("."):
                yield from _below(inner, above | {real})


def refuse_rows(paths: Sequence[Path]) -> None:
    """Raises ValueError for files of rows, whose syntax would be trained on as if it were text. A file of JSON or of
    separated values may lie among others as one of their texts; where all are such, they are rows."""
    rows = [path for path in paths if is_readable(path) and path.suffix.lower() not in WHOLE]
    sure = [path for path in rows if format_suffix(path) not in _SOMETIMES_TEXT or path.suffix.lower() in SUFFIXES]
    if sure or len(rows) == len(paths):
        raise ValueError(
            f"files = {(sure or rows)[0]}: a file of this format would be trained on with its syntax; "
            "corpus=files reads the texts in it"
        )


def refuse_plain_text(folder: Path) -> None:
    """Raises ValueError for a folder of text files, of which the datasets library makes a document of each line."""
    try:
        found = find([str(folder)], "dataset").files
    except ValueError:  # of formats that are the library's own
        return
    if all(format_suffix(path) in WHOLE for _, path in found):
        raise ValueError(
            f"{folder}: a dataset of text files has a document for each line; corpus=files 'corpus.files=[{folder}]' "
            "has one for each file"
        )
