"""What a plan finds out about a corpus's text: what cannot become a corpus is refused before anything runs.

Text on this machine is read, up to a budget; what remains is read when the corpus is made, and the plan says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mlkv.context import StepFailed
from mlkv.corpus.documents import check_beginnings, documents, identifying_files, place_of, row_files
from mlkv.corpus.formats import Skipped
from mlkv.corpus.items import passage_tokens
from mlkv.recipes import CorpusRecipe
from sweeps.store.errors import UserError

BUDGET = 16_000_000
"""Bytes of text that a plan reads: a fraction of a second."""
_NEAR = 8
"""A side of fewer bytes than so many rows have tokens is cut into tokens, to count them."""
_SMALL = 4_000_000
"""Bytes of text that a tokenizer is trained on while planning: about a second."""


@dataclass
class _Side:
    documents: int = 0
    bytes: int = 0
    longest: int = 0

    def add(self, text: str) -> None:
        size = len(text.encode("utf-8", "surrogatepass"))
        self.documents, self.bytes, self.longest = self.documents + 1, self.bytes + size, max(self.longest, size)


@dataclass
class _Scan:
    """`complete`: the budget sufficed for all of it."""

    train: _Side = field(default_factory=_Side)
    held_out: _Side = field(default_factory=_Side)
    skipped: Skipped = field(default_factory=Skipped)
    complete: bool = True

    @property
    def bytes(self) -> int:
        return self.train.bytes + self.held_out.bytes


def check_text(recipe: CorpusRecipe, tokenizer: Path | None) -> str:
    """What the plan says about the text. `tokenizer`: the folder of a tokenizer that is given, where it is here.
    Raises UserError for text that cannot become a corpus."""
    try:
        if recipe.source == "python_stdlib":
            return ""
        if not identifying_files(recipe):
            return "not checked before the corpus is made: its text column and its size"
        scan = _scan(recipe)
        _check_size(recipe, scan, tokenizer)
        return _note(recipe, scan)
    except ValueError as error:
        raise UserError(f"corpus.{error}") from None
    except StepFailed as error:
        raise UserError(f"corpus: {error}") from None


def _scan(recipe: CorpusRecipe) -> _Scan:
    scan = _Scan()
    for document in documents(recipe, scan.skipped):
        (scan.held_out if document.held_out else scan.train).add(document.text)
        if scan.bytes > BUDGET:
            scan.complete = False
            check_beginnings(recipe)
            break
    return scan


def _check_size(recipe: CorpusRecipe, scan: _Scan, tokenizer: Path | None) -> None:
    if not scan.train.documents and not scan.held_out.documents:
        raise ValueError("; ".join(filter(None, [f"{place_of(recipe)}: no text in it", scan.skipped.note()])))
    if not scan.complete:
        return
    for split, side in (("train", scan.train), ("heldout", scan.held_out)):
        if side.bytes < _NEAR * recipe.sequence_length and (tokenizer or scan.bytes < _SMALL):
            _check_tokens(recipe, split, tokenizer)
    if recipe.task_items and scan.held_out.longest < sum(passage_tokens(recipe.sequence_length)):
        raise ValueError(
            f"task_items = {recipe.task_items}: no held-out document is long enough for an item; give longer "
            "documents, or set corpus.task_items=0"
        )


def _check_tokens(recipe: CorpusRecipe, split: str, folder: Path | None) -> None:
    """As the corpus step counts them."""
    from mlkv.corpus.step import check_tokens, train_tokenizer
    from mlkv.corpus.tokenizer import Encoder, load

    if recipe.tokenizer != "train" and folder is None:
        return
    encoder = Encoder(load(folder) if folder else train_tokenizer(recipe, documents(recipe)))
    lengths = [
        len(ids) + 1
        for document in documents(recipe)
        if document.held_out == (split == "heldout")
        for ids in encoder.ids([document.text])
    ]
    if split == "train" and recipe.packing == "whole_documents":
        lengths = [min(length, recipe.sequence_length) for length in lengths]
    check_tokens(recipe, split, sum(lengths))


def _note(recipe: CorpusRecipe, scan: _Scan) -> str:
    count = scan.train.documents + scan.held_out.documents
    read = f"{count:,} documents" if scan.complete else f"only the first {BUDGET // 10**6} MB of its text were checked"
    found = row_files(recipe)
    other = ""
    if found and found.other:
        suffixes = sorted({path.suffix or path.name for path in found.other})
        other = f"{len(found.other):,} files of other formats are not read ({', '.join(suffixes)})"
    return "; ".join(filter(None, [read, scan.skipped.note(), other]))
