"""What a language model's score is by the frequencies of tokens alone: the unigram model of the training text.

Legend: `V` vocabulary.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..context import StepFailed
from ..corpus.blocks import open_blocks
from ..corpus.manifest import read_manifest
from ..signature import Chance

UNIGRAM = "the unigram model of the training text"
_MOST_TOKENS = 2**22
"""Of the training text that are counted, in rows spread evenly over it: more would change no printed digit."""


def unigram(corpus: Path) -> NDArray[np.float64] | None:
    """Nats `[V]` of each token by how often it is in the training text, with one added to every count. None where the
    text's tokens are not here, as after `mlkv unpack`."""
    try:
        changed = (corpus / "train.bin").stat().st_mtime_ns
        return _unigram(corpus, changed)
    except (OSError, StepFailed):
        return None


@lru_cache(maxsize=2)
def _unigram(corpus: Path, changed: int) -> NDArray[np.float64]:
    """Of a file that was changed at this time."""
    blocks, manifest = open_blocks(corpus, "train"), read_manifest(corpus)
    count, length = blocks.rows.shape
    chosen = np.unique(np.linspace(0, count - 1, max(1, min(count, _MOST_TOKENS // length))).round().astype(int))
    tokens = blocks.rows[chosen].reshape(-1)
    tokens = tokens[(tokens != blocks.padding) & (tokens != manifest.end_of_text)]
    times_V = np.bincount(tokens, minlength=manifest.vocab_size) + 1.0
    times_V[manifest.end_of_text] = 0.0  # never predicted here
    with np.errstate(divide="ignore"):
        return -np.log(times_V / times_V.sum())


def of_random_tokens(count: int) -> Chance:
    """Nats per token of tokens of which each is as likely as any other of `count`."""
    return Chance(math.log(count), 0.0, "knowing only which tokens there are", lower_is_better=True)
