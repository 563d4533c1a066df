"""The corpus step: text → tokenizer → packed token blocks, held-out text and task items.

A corpus directory holds tokenizer/, train.bin and heldout.bin (see blocks.py), heldout_bytes.bin (for each held-out
token, the bytes of text it stands for), tasks/<task>.jsonl and manifest.json. Held-out text is always packed as one
stream that begins with the end-of-text token, so that every one of its tokens can be predicted.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..context import Context, Interrupted, MetricRow, Outcome, StepFailed
from ..recipes import CorpusRecipe
from . import tokenizer as tokenizers
from .blocks import PACKERS, BlockWriter, Packer, StreamPacker, Tokens, token_dtype
from .documents import Document, documents, identifying_files, place_of
from .formats import Skipped
from .found_files import content_digest, file_digest
from .items import Item, make_items
from .manifest import NAME, SPLITS, Manifest
from .recall import RecallRows
from .recall_items import RecallItem, make_recall_items
from .tokenizer import Encoder

TOKENIZER_TEXT = 200_000_000
"""Characters that a tokenizer is trained on at most: more would hardly change it, and memory grows with new words."""
TASK_TEXT = 8_000_000
"""Characters of held-out text that task items are made from at most."""
REPORT_SECONDS = 1.0
BATCH_TEXT = 2_000_000
"""Characters tokenised at a time."""


def run(
    recipe: CorpusRecipe, out: Path, ctx: Context, *, tokenizer: Path | None = None, text: str | None = None
) -> Outcome:
    """Make a corpus directory in `out`. `tokenizer` is a folder with one, needed unless the recipe trains its own;
    `text` the digest of the files that were planned, where they are on this machine.

    Memory holds one batch of documents, never the corpus. Raises StepFailed, naming the field, where the source cannot
    be read, is too small, or has changed.
    """
    try:
        _check_unchanged(recipe, text)
        return _run(recipe, out, Progress(ctx, recipe.take), tokenizer)
    except ValueError as error:
        raise StepFailed(str(error)) from error


def _check_unchanged(recipe: CorpusRecipe, planned: str | None) -> None:
    files = identifying_files(recipe) if planned else []
    if files and content_digest(files, file_digest) != planned:
        raise StepFailed(f"{place_of(recipe)}: its files have changed since the plan; run the sweep's line again")


def _run(recipe: CorpusRecipe, out: Path, progress: Progress, folder: Path | None) -> Outcome:
    tokenizer = _tokenizer(recipe, progress, folder)
    tokenizer.save_pretrained(out / "tokenizer")
    encoder = tokenizers.Encoder(tokenizer)
    skipped = Skipped()
    train, held_out = _write_blocks(recipe, out, progress, encoder, skipped)
    length, seed = recipe.sequence_length, recipe.seed
    held = make_items(held_out.texts, encoder, sequence_length=length, items=recipe.task_items, seed=seed)
    drawn = make_recall_items(encoder, sequence_length=length, items=recipe.recall_items, seed=seed)
    _write_tasks(out / "tasks", held, recipe.task_items)
    _write_tasks(out / "tasks", drawn, recipe.recall_items)
    tasks: dict[str, Sequence[Item | RecallItem]] = {**held, **drawn}
    manifest = Manifest(
        source=recipe.source,
        sequence_length=recipe.sequence_length,
        packing=recipe.packing,
        seed=recipe.seed,
        held_out=recipe.held_out,
        dtype=token_dtype(encoder.vocab_size).str,
        vocab_size=encoder.vocab_size,
        end_of_text=encoder.end,
        train=train.counts(),
        heldout=held_out.counts(),
        tasks={task: len(items) for task, items in tasks.items()},
        tasks_sha256={task: _sha256(out / "tasks" / f"{task}.jsonl") for task in tasks},
        tokenizer_sha256=_sha256(out / "tokenizer" / "tokenizer.json"),
    )
    (out / NAME).write_text(json.dumps(manifest.as_json(), indent=2) + "\n", "utf-8")
    facts = manifest.as_json() | ({"recall_rows": train.recall_rows} if train.recall_rows else {})
    if note := skipped.note():
        print(note, file=sys.stderr)
        facts |= {"skipped_rows": skipped.count, "first_skipped": skipped.first}
    return Outcome(_metrics(manifest), facts)


def _metrics(manifest: Manifest) -> list[MetricRow]:
    rows = []
    for split in SPLITS:
        counts = manifest.counts(split)
        rows.append(MetricRow(f"{split}_documents", float(counts.documents)))
        rows.append(MetricRow(f"{split}_tokens", float(counts.tokens)))
        rows.append(MetricRow(f"{split}_bytes", float(counts.bytes)))
    return rows


@dataclass
class Progress:
    """Reports documents read, every REPORT_SECONDS at most, and raises Interrupted when the step should stop."""

    ctx: Context
    expected: int | None
    stage: str = "tokenizer"
    read: int = 0
    _reported: float = 0.0

    def count(self, stage: str, stream: Iterable[Document]) -> Iterator[Document]:
        self.stage, self.read = stage, 0
        for document in stream:
            yield document
            self.read += 1
            if time.monotonic() - self._reported > REPORT_SECONDS:
                self._report()
        self.expected = self.read

    def _report(self) -> None:
        if self.ctx.should_stop():
            raise Interrupted(f"stopped after {self.read} documents; a corpus is made in one go")
        steps = {"steps": self.expected} if self.expected else {}
        self.ctx.log({"stage": self.stage, "step": self.read, **steps})
        self._reported = time.monotonic()


def _tokenizer(recipe: CorpusRecipe, progress: Progress, folder: Path | None) -> Any:
    if recipe.tokenizer in (None, "train"):
        return train_tokenizer(recipe, progress.count("tokenizer", documents(recipe)))
    if folder is None:
        raise StepFailed("tokenizer = model: the corpus has no model to take it from; choose train")
    return tokenizers.load(folder)


def train_tokenizer(recipe: CorpusRecipe, stream: Iterable[Document]) -> Any:
    """A tokenizer trained on the corpus's own documents that are not held out."""
    texts = (document.text for document in stream if not document.held_out)
    return tokenizers.train(_up_to(texts, TOKENIZER_TEXT), recipe.vocab_size)


def _up_to(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            return


def _write_blocks(
    recipe: CorpusRecipe, out: Path, progress: Progress, encoder: Encoder, skipped: Skipped
) -> tuple[TrainWriter, HeldOutWriter]:
    """Write both splits. Returns the closed writers, which hold the counts and the texts for task items."""
    length = recipe.sequence_length
    recall = RecallRows(length, recipe.seed, encoder, recipe.recall)
    with (
        TrainWriter(out, PACKERS[recipe.packing](length), length, encoder, recall) as train,
        HeldOutWriter(out, length, encoder) as held_out,
    ):
        for batch in _batches(progress.count("tokens", documents(recipe, skipped))):
            train.add_texts([d.text for d in batch if not d.held_out])
            held_out.add_texts([d.text for d in batch if d.held_out])
    check_tokens(recipe, "train", train.tokens)
    check_tokens(recipe, "heldout", held_out.tokens)
    return train, held_out


def check_tokens(recipe: CorpusRecipe, split: str, tokens: int) -> None:
    """Raises StepFailed for a split of less than one row."""
    if tokens < recipe.sequence_length:
        raise StepFailed(
            f"{split} text has {tokens} tokens, less than one sequence_length ({recipe.sequence_length}): "
            f"give more text, or change held_out = {recipe.held_out}"
        )


def _batches(stream: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in stream:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_TEXT:
            yield batch
            batch, characters = [], 0
    yield batch


class TrainWriter(BlockWriter):
    """Training documents, each followed by the end-of-text token, and generated rows between those of the text."""

    def __init__(self, out: Path, packer: Packer, length: int, encoder: Encoder, recall: RecallRows) -> None:
        super().__init__(out / "train.bin", packer, length, token_dtype(encoder.vocab_size))
        self.encoder, self.recall, self.recall_rows = encoder, recall, 0

    def add_texts(self, texts: list[str]) -> None:
        self.bytes += sum(len(text.encode()) for text in texts)
        for ids_T in self.encoder.ids(texts):
            self.add(np.append(ids_T, self.encoder.end))

    def _write(self, row_T: Tokens) -> None:
        super()._write(row_T)
        for generated_T in self.recall.due(self.rows - self.recall_rows, self.recall_rows):
            super()._write(generated_T)
            self.recall_rows += 1


class HeldOutWriter(BlockWriter):
    """Held-out documents in one stream, each after an end-of-text token, and a file with the bytes of each token.

    texts: the first documents, of about TASK_TEXT characters at most, for task items.
    """

    def __init__(self, out: Path, length: int, encoder: Encoder) -> None:
        super().__init__(out / "heldout.bin", StreamPacker(length), length, token_dtype(encoder.vocab_size))
        self.token_bytes = BlockWriter(out / "heldout_bytes.bin", StreamPacker(length), length, np.dtype("<u2"))
        self.encoder = encoder
        self.texts: list[str] = []
        self._characters = 0

    def add_texts(self, texts: list[str]) -> None:
        for text in texts:
            encoded = self.encoder.encode(text)
            self.add(np.concatenate([[self.encoder.end], encoded.ids]))
            self.token_bytes.add(np.concatenate([[0], encoded.token_bytes]))
            self.bytes += int(encoded.token_bytes.sum())
            if self._characters < TASK_TEXT:
                self.texts.append(text)
                self._characters += len(text)

    def __exit__(self, *failure: object) -> None:
        super().__exit__(*failure)
        self.token_bytes.__exit__(*failure)


def _write_tasks(folder: Path, tasks: Mapping[str, Sequence[Item] | Sequence[RecallItem]], wanted: int) -> None:
    folder.mkdir(exist_ok=True)
    for task, items in tasks.items():
        if wanted and not items:
            raise StepFailed(f"held-out text is too short for an item of {task}: give more text, or task_items = 0")
        lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items]
        (folder / f"{task}.jsonl").write_text("".join(lines), "utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
