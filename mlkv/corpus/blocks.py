"""Token blocks on disk: packing documents into rows of one length, and reading the rows back memory-mapped.

Legend: `N` rows, `T` tokens of a row. A file is `N·T` little-endian uint16 (uint32 from 65,535 token ids up), row after
row, and nothing else; the largest value of the type is padding, never a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ..context import StepFailed
from .manifest import Split, SplitCounts, read_manifest

Tokens = NDArray[np.integer[Any]]

_ROWS_AT_A_TIME = 4096
SORTED_BLOCK = 2000
"""Documents that `whole_documents` sorts by length at a time, as the MLKV authors did."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2") if vocab_size < 2**16 else np.dtype("<u4")


def padding(dtype: np.dtype[Any]) -> int:
    """The value that means "no token" in a row."""
    return int(np.iinfo(dtype).max)


class Packer(Protocol):
    """Turns documents into rows of at most `length` tokens: `add` and `end` yield the rows that became full."""

    def add(self, document: Tokens) -> Iterator[Tokens]: ...

    def end(self) -> Iterator[Tokens]: ...


@dataclass
class StreamPacker:
    """Documents end to end, cut every `length` tokens; the tokens that remain at the end are a shorter last row."""

    length: int
    _parts: list[Tokens] = field(default_factory=list)
    _waiting: int = 0
    """Tokens in `_parts`."""

    def add(self, document: Tokens) -> Iterator[Tokens]:
        self._parts.append(document)
        self._waiting += len(document)
        if self._waiting >= self.length:
            stream = np.concatenate(self._parts)
            whole = self._waiting - self._waiting % self.length
            yield from stream[:whole].reshape(-1, self.length)
            self._parts, self._waiting = [stream[whole:]], self._waiting - whole

    def end(self) -> Iterator[Tokens]:
        if self._waiting:
            yield np.concatenate(self._parts)


@dataclass
class DocumentPacker:
    """Whole documents, none split over two rows: each is cut to `length`, sorted by length within blocks of
    SORTED_BLOCK and put into the open row while it fits (the packing of arXiv 2406.09297's code)."""

    length: int
    _block: list[Tokens] = field(default_factory=list)

    def add(self, document: Tokens) -> Iterator[Tokens]:
        self._block.append(document[: self.length])
        if len(self._block) == SORTED_BLOCK:
            yield from self.end()

    def end(self) -> Iterator[Tokens]:
        row: list[Tokens] = []
        tokens = 0
        for document in sorted(self._block, key=len):
            if tokens + len(document) > self.length:
                yield np.concatenate(row)
                row, tokens = [], 0
            row.append(document)
            tokens += len(document)
        if row:
            yield np.concatenate(row)
        self._block = []


PACKERS = {"stream": StreamPacker, "whole_documents": DocumentPacker}


class BlockWriter:
    """Packs documents into rows of `length` tokens in `path`, pads short rows, and counts rows, tokens and documents.

    bytes: of the documents' text; the caller that adds the documents counts them.
    """

    def __init__(self, path: Path, packer: Packer, length: int, dtype: np.dtype[Any]) -> None:
        self.packer, self.length, self.dtype = packer, length, dtype
        self.rows = self.tokens = self.documents = self.bytes = 0
        self._file = path.open("wb")
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def add(self, document: Tokens) -> None:
        self.documents += 1
        for row_T in self.packer.add(document):
            self._write(row_T)

    def __exit__(self, *failure: object) -> None:
        if failure[0] is None:
            for row_T in self.packer.end():
                self._write(row_T)
        self._file.close()

    def _write(self, row_T: Tokens) -> None:
        padded_T = np.full(self.length, padding(self.dtype), self.dtype)
        padded_T[: len(row_T)] = row_T
        data = padded_T.tobytes()
        self._file.write(data)
        self._digest.update(data)
        self.rows += 1
        self.tokens += len(row_T)

    def counts(self) -> SplitCounts:
        return SplitCounts(self.rows, self.tokens, self.documents, self._digest.hexdigest(), self.bytes)


@dataclass(frozen=True)
class Blocks:
    """One split of a corpus: `rows` `[N, T]`, memory-mapped, and the tokens in them, padding left out. end_of_text: the
    token between documents; None where rows do not tell."""

    rows: NDArray[Any]
    tokens: int
    end_of_text: int | None = None

    @property
    def padding(self) -> int:
        return padding(self.rows.dtype)


def check_ids(blocks: Blocks, vocab_size: int, known: int) -> None:
    """Raises StepFailed where a row has a token that a model of `known` embeddings does not know. A tokenizer may have
    more ids than its model, as long as the text uses none of them."""
    for start in range(0, len(blocks.rows) if vocab_size > known else 0, _ROWS_AT_A_TIME):
        rows_NT = np.asarray(blocks.rows[start : start + _ROWS_AT_A_TIME])
        unknown = rows_NT[(rows_NT != blocks.padding) & (rows_NT >= known)]
        if len(unknown):
            raise StepFailed(
                f"corpus token = {unknown[0]}: the model takes {known} at most (its vocab_size; the tokenizer of the "
                f"corpus has {vocab_size})"
            )


def open_blocks(corpus: Path, split: Split) -> Blocks:
    """The rows of one split of a corpus directory. Raises StepFailed where the manifest is damaged, or the
    file is not as it says."""
    manifest = read_manifest(corpus)
    path, counts, length = corpus / f"{split}.bin", manifest.counts(split), manifest.sequence_length
    dtype = np.dtype(manifest.dtype)
    if not path.is_file() or path.stat().st_size != counts.rows * length * dtype.itemsize:
        raise StepFailed(f"corpus = {corpus}: {path.name} is not {counts.rows} rows of {length} tokens")
    return Blocks(np.memmap(path, dtype, "r").reshape(-1, length), counts.tokens, manifest.end_of_text)
