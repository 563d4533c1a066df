"""A corpus made of token ids alone: for tests that need no text, and no tokenizer trained on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlkv.corpus.blocks import padding, token_dtype
from mlkv.corpus.manifest import Manifest, SplitCounts


def write_blocks(folder: Path, rows: int, length: int, vocab_size: int, *, padded: bool = False, seed: int = 0) -> Path:
    """`rows` random rows of the training split; with `padded`, all but every third row end early."""
    dtype = token_dtype(vocab_size)
    generator = np.random.default_rng(seed)
    ids: NDArray[Any] = generator.integers(0, vocab_size, (rows, length)).astype(dtype)
    if padded:
        ends = np.where(np.arange(rows) % 3, generator.integers(2, length, rows), length)
        ids[np.arange(length) >= ends[:, None]] = padding(dtype)
    counts = SplitCounts(rows, int((ids != padding(dtype)).sum()), rows, "", 0)
    manifest = Manifest("text_files", length, "stream", 0, 0.1, dtype.str, vocab_size, 0, counts, counts, {}, {}, "")
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / "manifest.json").write_text(json.dumps(manifest.as_json()))
    for split in ("train", "heldout"):
        (folder / f"{split}.bin").write_bytes(ids.tobytes())
    return folder
