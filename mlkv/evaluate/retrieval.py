"""What a retrieved passage is worth: held-out text with a related passage of the training text in front, with another
passage, and with none.

As in retrieval-augmented language modelling (arXiv 2302.00083), the first half of a held-out passage is the question
and the second half is what has to be predicted, so that nothing of the answer decides what is retrieved. The related
passage is the nearest by TF-IDF over tokens; the other one is what another question has retrieved, so that both are as
long and of one kind.

Legend: `N` held-out passages, `R` rows, `P` passages of training text, `T` tokens.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..context import StepFailed
from ..corpus.blocks import open_blocks
from .bits import Floats, Windows, nats
from .entry import NATS, Ids, Samples, score_row
from .held_out_pass import HeldOutPass
from .outcomes import Outcomes, digest
from .tasks import RETRIEVAL, Scores, Scoring

LONGEST, SHORTEST = 128, 16
"""Tokens of a passage."""
MOST_PASSAGES = 50_000
"""Of training text that are searched, in rows spread evenly over it."""
_AT_ONCE = 256
"""Questions whose cosines are in memory."""
ALONE, RELATED, UNRELATED = "alone", "related", "unrelated"
GAIN, RELATED_GAIN = "retrieval_gain", "related_gain"
"""What the related passage is worth more than none, and more than the other one."""


@dataclass(frozen=True)
class Passages:
    """`[N, T]` each, all of equal length: what is scored, and what stands in front of it."""

    held_out: Ids
    related: Ids
    unrelated: Ids


_last: tuple[Hashable, Passages] | None = None


def score(scoring: Scoring) -> Scores:
    """Nats per token of the second halves of passages, and the two gains. Raises StepFailed as Samples.of does, and
    where there are not two passages on either side."""
    samples = Samples.of(scoring, RETRIEVAL, longer_than=2 * SHORTEST)
    passages = _passages_of(samples)
    end_N1 = np.full((len(passages.held_out), 1), samples.end)
    texts = {
        ALONE: [passages.held_out],
        RELATED: [passages.related, passages.held_out],
        UNRELATED: [passages.unrelated, passages.held_out],
    }
    found = {
        name: _outcomes(scoring, np.hstack([end_N1, *parts]), passages, samples.end) for name, parts in texts.items()
    }
    gains = {GAIN: _gain(found[ALONE], found[RELATED]), RELATED_GAIN: _gain(found[UNRELATED], found[RELATED])}
    rows = [score_row(name, each) for name, each in gains.items()]
    rows += [score_row(NATS, each, name) for name, each in found.items()]
    return Scores(rows, gains | {f"{name}/{NATS}": each for name, each in found.items()})


def _outcomes(scoring: Scoring, ids_NT: Ids, passages: Passages, end: int) -> Outcomes:
    """Of the last half of each row's held-out passage."""
    predicted = passages.held_out.shape[1] - passages.held_out.shape[1] // 2
    counted_NT = ids_NT[:, 1:] != end
    counted_NT[:, :-predicted] = False
    windows = Windows(ids_NT, counted_NT, np.zeros(counted_NT.shape, np.int64))
    nats_N: Floats = nats(HeldOutPass(scoring.model, ids_NT), windows, scoring.batch_size, scoring.progress)
    # The same unit whatever is in front: what is compared is the same passage.
    units_N = np.array([digest(np.ascontiguousarray(row).tobytes()) for row in passages.held_out], np.int64)
    return Outcomes(units_N, nats_N, counted_NT.sum(-1).astype(float))


def _gain(without: Outcomes, related: Outcomes) -> Outcomes:
    return Outcomes(without.units, without.parts - related.parts, without.weights)


def _passages_of(samples: Samples) -> Passages:
    """The last ones are kept: all checkpoints of a sweep are scored on the same."""
    global _last
    corpus = samples.scoring.corpus
    assert corpus is not None
    key = corpus.resolve(), (corpus / "manifest.json").stat().st_mtime_ns, samples.longest, samples.count
    if _last is None or _last[0] != key:
        _last = key, retrieved(corpus, min(LONGEST, (samples.longest - 1) // 2), samples)
    return _last[1]


def retrieved(corpus: Path, length: int, samples: Samples) -> Passages:
    """Passages of `length` tokens. Raises StepFailed where there are not two on either side."""
    held_out_NT, trained_PT = samples.windows(length), training_passages(corpus, length, samples.vocab_size)
    if len(trained_PT) < 2 or len(held_out_NT) < 2:
        raise StepFailed(
            f"task = {RETRIEVAL}: needs two passages of {length} tokens of held-out text and of training text"
        )
    near_N = nearest(held_out_NT[:, : length // 2], trained_PT, samples.vocab_size, samples.end)
    return Passages(held_out_NT, trained_PT[near_N], trained_PT[others(near_N, len(trained_PT))])


def training_passages(corpus: Path, length: int, known: int) -> Ids:
    """`[P, T]`: passages that do not overlap, of tokens below `known` alone: what is none of these is padding, or no
    token of the model's."""
    blocks = open_blocks(corpus, "train")
    in_row = blocks.rows.shape[1] // length
    rows = min(len(blocks.rows), -(-MOST_PASSAGES // in_row))
    chosen_R = np.unique(np.linspace(0, len(blocks.rows) - 1, rows).round().astype(int))
    passages_PT = np.asarray(blocks.rows[chosen_R])[:, : in_row * length].reshape(-1, length)
    return passages_PT[(passages_PT < known).all(-1)].astype(np.int64)


def nearest(questions_NT: Ids, passages_PT: Ids, vocab_size: int, end: int) -> NDArray[np.int64]:
    """`[N]`: the number of the passage with the largest cosine of TF-IDF weights; the first of equal ones."""
    from sklearn.feature_extraction.text import TfidfTransformer

    weigh = TfidfTransformer(sublinear_tf=True)
    passages = weigh.fit_transform(_counts(passages_PT, vocab_size, end))
    questions = weigh.transform(_counts(questions_NT, vocab_size, end))
    parts = [questions[start : start + _AT_ONCE] for start in range(0, questions.shape[0], _AT_ONCE)]
    return np.concatenate([(part @ passages.T).toarray().argmax(-1) for part in parts]).astype(np.int64)


def _counts(ids_NT: Ids, vocab_size: int, end: int) -> Any:
    """`[N, V]`, sparse: how often each token is in each text, the end-of-text token left out."""
    from scipy.sparse import csr_matrix

    texts = np.repeat(np.arange(len(ids_NT)), ids_NT.shape[1])
    is_text = ids_NT.reshape(-1) != end
    places = (texts[is_text], ids_NT.reshape(-1)[is_text])
    return csr_matrix((np.ones(is_text.sum()), places), (len(ids_NT), vocab_size))


def others(near_N: NDArray[np.int64], passages: int) -> NDArray[np.int64]:
    """`[N]`: for each question what one far from it in the text has retrieved; where that is the same passage, the next
    one of the training text."""
    far_N = np.roll(near_N, len(near_N) // 2)
    return np.where(far_N == near_N, (near_N + 1) % passages, far_N)
