"""manifest.json: what the corpus step wrote about its directory, and what later steps read there."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from ..context import StepFailed
from ..files import Json

NAME = "manifest.json"
Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")


@dataclass(frozen=True)
class SplitCounts:
    """One split. `tokens` leaves padding out; `bytes` are those of its text in UTF-8; `sha256` is its file's."""

    rows: int
    tokens: int
    documents: int
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The facts of a corpus. `dtype` is numpy's name of the type on disk; `tasks` has the number of items of each."""

    source: str
    sequence_length: int
    packing: str
    seed: int
    held_out: float
    dtype: str
    vocab_size: int
    end_of_text: int
    train: SplitCounts
    heldout: SplitCounts
    tasks: dict[str, int]
    tasks_sha256: dict[str, str]
    tokenizer_sha256: str

    def counts(self, split: Split) -> SplitCounts:
        return self.train if split == "train" else self.heldout

    def as_json(self) -> Json:
        """With a digest of all of it: two corpora of one digest are the same."""
        values = asdict(self)
        return values | {"digest": hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()}


def read_manifest(corpus: Path) -> Manifest:
    """Raises StepFailed where `corpus` is no corpus directory, or its manifest lacks a field or has a wrong type."""
    path = corpus / NAME
    if not path.is_file():
        raise StepFailed(f"corpus = {corpus}: no {NAME} there")
    try:
        return TypeAdapter(Manifest).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()
        raise StepFailed(f"corpus = {corpus}: {NAME}: {reason}") from error
