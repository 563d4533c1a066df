"""One checkpoint's loss on three kinds of text: code, prose and generated recall, each a task of its own.

Code and prose are the standard library's (mlkv/corpus/domains.py), cut by the corpus's tokenizer into rows as long as
its own. Recall text is drawn as the corpus's rows are that train a model to look back, from numbers that no training
row has; only what a look back can predict counts.

Legend: `N` rows, `T` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..context import StepFailed
from ..corpus import tokenizer as tokenizers
from ..corpus.blocks import check_ids, open_blocks
from ..corpus.domains import LIBRARY, library_texts
from ..corpus.manifest import read_manifest
from ..corpus.recall import RecallRows
from ..corpus.tokenizer import Encoder
from .bits import Windows, chance_of, metrics, nats, outcomes
from .entry import NATS, SAMPLES, Ids
from .held_out_pass import HeldOutPass
from .tasks import DOMAIN_CODE, DOMAIN_PROSE, DOMAIN_RECALL, Scores, Scoring
from .unigram import of_random_tokens

FIRST_ROW = 2**40
"""Number of the first row of recall text: a corpus has no such row."""


def code(scoring: Scoring) -> Scores:
    return _of_library(scoring, DOMAIN_CODE)


def prose(scoring: Scoring) -> Scores:
    return _of_library(scoring, DOMAIN_PROSE)


def recall(scoring: Scoring) -> Scores:
    """Nats per token; rows of random tokens have no bytes."""
    encoder, length = _text_of(scoring, DOMAIN_RECALL)
    assert scoring.corpus is not None
    rows = RecallRows(length, read_manifest(scoring.corpus).seed, encoder, 0.0)
    ids_NT = np.stack([rows.row(FIRST_ROW + i) for i in range(scoring.recipe.limit or SAMPLES)])
    counted_NT = np.stack([repeated(row_T, encoder.end) for row_T in ids_NT])
    ids_NT, counted_NT = ids_NT[counted_NT.any(-1)], counted_NT[counted_NT.any(-1)]
    scores = _scores(scoring, Windows(ids_NT, counted_NT, np.zeros(counted_NT.shape, np.int64)), [NATS])
    return replace(scores, chance={NATS: of_random_tokens(encoder.vocab_size - 1)})


def repeated(row_T: Ids, end: int) -> NDArray[np.bool_]:
    """`[T − 1]`: whether a token followed the token before it the last time that one was there in its document."""
    followed: dict[int, int] = {}
    found = np.zeros(len(row_T) - 1, np.bool_)
    for place, (token, following) in enumerate(zip(row_T.tolist(), row_T.tolist()[1:], strict=False)):
        if token == end:
            followed.clear()
        found[place] = followed.get(token) == following != end
        followed[token] = following
    return found


def _of_library(scoring: Scoring, task: str) -> Scores:
    encoder, length = _text_of(scoring, task)
    assert scoring.corpus is not None
    manifest = read_manifest(scoring.corpus)
    share = manifest.held_out if manifest.source == LIBRARY.source else LIBRARY.held_out
    texts = library_texts(share)
    windows = cut(encoder, texts.code if task == DOMAIN_CODE else texts.prose, length)
    if not len(windows.ids):
        raise StepFailed(f"task = {task}: the standard library's held-out text is less than a row of {length} tokens")
    return _scores(scoring, _some(windows, scoring.recipe.limit or SAMPLES), ["bits_per_byte", NATS])


def _text_of(scoring: Scoring, task: str) -> tuple[Encoder, int]:
    """The tokenizer, and the tokens of a row. Raises StepFailed without a corpus, and for one whose tokens the model
    does not know."""
    if scoring.corpus is None:
        raise StepFailed(f"task = {task}: needs a corpus, for its tokenizer")
    manifest, shape = read_manifest(scoring.corpus), scoring.model.shape
    check_ids(open_blocks(scoring.corpus, "heldout"), manifest.vocab_size, shape.vocab_size)
    encoder = Encoder(tokenizers.load(scoring.corpus / "tokenizer"))
    return encoder, min(manifest.sequence_length, shape.context)


def cut(encoder: Encoder, texts: Sequence[str], length: int) -> Windows:
    """Rows of the texts in one stream, each text behind an end-of-text token, which does not count. A row that is not
    full is left out."""
    encoded = [encoder.encode(text) for text in texts]
    none = np.empty(0, np.int64)
    ids = np.concatenate([none, *(np.append(encoder.end, each.ids) for each in encoded)])
    stood_for = np.concatenate([none, *(np.append(0, each.token_bytes) for each in encoded)])
    rows = len(ids) // length
    ids_NT, bytes_NT = (each[: rows * length].reshape(rows, length) for each in (ids, stood_for))
    counted_NT = ids_NT[:, 1:] != encoder.end
    return Windows(ids_NT, counted_NT, np.where(counted_NT, bytes_NT[:, 1:], 0))


def _some(windows: Windows, count: int) -> Windows:
    chosen = np.unique(np.linspace(0, len(windows.ids) - 1, count).round().astype(int))
    return replace(windows, ids=windows.ids[chosen], counted=windows.counted[chosen], bytes=windows.bytes[chosen])


def _scores(scoring: Scoring, windows: Windows, names: Sequence[str]) -> Scores:
    reading = HeldOutPass(scoring.model, windows.ids)
    nats_N = nats(reading, windows, scoring.batch_size, scoring.progress)
    found, levels = outcomes(windows, nats_N), chance_of(scoring.corpus, windows, nats_N) if scoring.corpus else {}
    by_metric = {name: found[name] for name in names}
    return Scores(metrics(by_metric), by_metric, {name: levels[name] for name in names if name in levels})
