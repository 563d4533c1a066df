"""Does a model look back? What context is worth to it, whether it copies, and the test of a base that has both.

A base that uses a few tokens of context shows nothing about range, retrieval or similarity: a layout that loses the far
context scores on it as any other. The targets of all contexts are the same tokens, so that only the context differs.

Legend: `N` windows or sequences, `T` tokens, `K` targets of a window, `C` tokens of context, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch.nn import functional

from ..context import MetricRow, StepFailed
from ..corpus.blocks import check_ids, open_blocks
from ..corpus.manifest import read_manifest
from .bits import Floats, ratio
from .entry_rule import COPIED_AT, LONG, SHORT, passes
from .outcomes import Outcomes, digest
from .tasks import CONTEXT_GAIN, COPYING, ENTRY_TEST, Scores, Scoring
from .unigram import of_random_tokens

Ids = NDArray[np.int64]

TARGETS = 16
"""Predicted tokens of a window, its last ones: so many fewer than LONG, at most, are before the first of them."""
SAMPLES = 200
"""Windows of held-out text, and sequences of each distance, where the recipe has no limit."""
NEAREST, FARTHEST = 8, 4096
"""Contexts and distances, in powers of two."""
_SEED = 15
"""Of the random sequences: part of the test, so that all models copy the same."""
NATS = "nats_per_token"


def context_gain(scoring: Scoring) -> Scores:
    """Nats per token by tokens of context, up to a whole row, and what the row is worth more than SHORT."""
    samples = Samples.of(scoring, CONTEXT_GAIN)
    length = samples.longest
    found = _by_context(samples, length, [c for c in _powers(length - TARGETS) if c < length])
    return _scores({CONTEXT_GAIN: _gain(found[SHORT], found[length])}, "context", found)


def copying(scoring: Scoring) -> Scores:
    """Nats per copied token by the distance to its original, and over all of them."""
    samples = Samples.of(scoring, COPYING)
    found = {distance: _copied(samples, distance) for distance in _powers(samples.longest * 3 // 4)}
    scores = _scores({NATS: _joined([*found.values()])}, "distance", found)
    return replace(scores, chance=dict.fromkeys(scores.outcomes, of_random_tokens(samples.vocab_size - 1)))


def entry_test(scoring: Scoring) -> Scores:
    """Copying at COPIED_AT, the gain of LONG tokens of context over SHORT, and whether the model passes (1 or 0)."""
    samples = Samples.of(scoring, ENTRY_TEST)
    length = min(LONG, samples.longest)
    by_context = _by_context(samples, length, [SHORT])
    found = {COPYING: _copied(samples, COPIED_AT), CONTEXT_GAIN: _gain(by_context[SHORT], by_context[length])}
    scores = _scores(found, "context", {})
    scores.metrics.append(MetricRow(ENTRY_TEST, float(passes(found[COPYING].value, found[CONTEXT_GAIN].value))))
    return replace(scores, chance={COPYING: of_random_tokens(samples.vocab_size - 1)})


@dataclass
class Samples:
    """What windows and sequences are drawn from, and the model that predicts them. end: the end-of-text token. longest:
    tokens that both the model and a row of the corpus take."""

    scoring: Scoring
    stream: Ids
    vocab_size: int
    end: int
    longest: int
    count: int

    @classmethod
    def of(cls, scoring: Scoring, task: str, longer_than: int = COPIED_AT + TARGETS) -> Samples:
        """Raises StepFailed without a corpus, for rows that are too short, and for a corpus whose tokens the model does
        not know."""
        if scoring.corpus is None:
            raise StepFailed(f"task = {task}: needs a corpus with held-out text")
        manifest, blocks = read_manifest(scoring.corpus), open_blocks(scoring.corpus, "heldout")
        shape = scoring.model.shape
        check_ids(blocks, manifest.vocab_size, shape.vocab_size)
        longest = min(manifest.sequence_length, shape.context)
        if longest <= longer_than:
            raise StepFailed(f"task = {task}: needs rows of more than {longer_than} tokens; here {longest}")
        stream = blocks.rows.reshape(-1)[: blocks.tokens].astype(np.int64)
        known = min(manifest.vocab_size, shape.vocab_size)
        return cls(scoring, stream, known, manifest.end_of_text, longest, scoring.recipe.limit or SAMPLES)

    def windows(self, length: int) -> Ids:
        """`[N, T]`: windows of `length` tokens, spread evenly over the held-out text."""
        starts = np.unique(np.linspace(0, len(self.stream) - length, self.count).round().astype(int))
        return self.stream[starts[:, None] + np.arange(length)]

    def repeated(self, distance: int) -> Ids:
        """`[N, T]`: the end-of-text token, then random tokens twice, as far as the second time fits."""
        random = np.random.Generator(np.random.PCG64([_SEED, distance]))
        tokens = np.delete(np.arange(self.vocab_size), self.end)
        once = random.choice(tokens, (self.count, distance))
        return np.hstack([np.full((self.count, 1), self.end), once, once])[:, : self.longest]

    def nats(self, ids_NT: Ids, last: int) -> Floats:
        """`[N, last]`: what the model needs for the last tokens of each row."""
        size, losses = self.scoring.batch_size, list[Floats]()
        done, count = 0, len(ids_NT)
        while done < count:
            rows = max(1, size.at(self.longest) * self.longest // ids_NT.shape[1])
            found = size.attempt(self.longest, partial(self._pass, ids_NT[done : done + rows], last))
            if found is not None:
                losses.append(found)
                done = min(done + rows, count)
                self.scoring.progress(done, count)
        return np.concatenate(losses)

    @torch.inference_mode()
    def _pass(self, ids_NT: Ids, last: int) -> Floats:
        ids_BT = torch.from_numpy(np.ascontiguousarray(ids_NT)).to(self.scoring.model.device)
        logits_BTV = self.scoring.model(ids_BT[:, :-1], logits_to_keep=last).logits.float()
        return functional.cross_entropy(logits_BTV.mT, ids_BT[:, -last:], reduction="none").double().cpu().numpy()


def _powers(most: int) -> list[int]:
    return [n for n in (NEAREST << i for i in range(FARTHEST.bit_length())) if n <= min(most, FARTHEST)]


def _by_context(samples: Samples, length: int, contexts: Sequence[int]) -> dict[int, Outcomes]:
    """Nats of the last TARGETS tokens of each window of `length` tokens, with so many tokens before each of them; with
    `length`, all that the window has."""
    ids_NT = samples.windows(length)
    outcomes = partial(_outcomes, ids_NT, ids_NT[:, -TARGETS:] != samples.end)
    found = {}
    for context in contexts:
        # Each target with its own context, as one more row.
        rows_NKC = sliding_window_view(ids_NT[:, -TARGETS - context :], context + 1, axis=1)
        found[context] = outcomes(samples.nats(rows_NKC.reshape(-1, context + 1), 1).reshape(-1, TARGETS))
    return {**found, length: outcomes(samples.nats(ids_NT, TARGETS))}


def _copied(samples: Samples, distance: int) -> Outcomes:
    """Nats of the second half, but for its first token: nothing says that it begins."""
    ids_NT = samples.repeated(distance)
    nats_NK = samples.nats(ids_NT, ids_NT.shape[1] - 2 - distance)
    return _outcomes(ids_NT, np.ones(nats_NK.shape, np.bool_), nats_NK)


def _outcomes(ids_NT: Ids, counted_NK: NDArray[np.bool_], nats_NK: Floats) -> Outcomes:
    units_N = np.array([digest(np.ascontiguousarray(row).tobytes()) for row in ids_NT], np.int64)
    return Outcomes(units_N, np.where(counted_NK, nats_NK, 0.0).sum(-1), counted_NK.sum(-1).astype(float))


def _gain(short: Outcomes, whole: Outcomes) -> Outcomes:
    return Outcomes(short.units, short.parts - whole.parts, short.weights)


def _joined(each: Sequence[Outcomes]) -> Outcomes:
    return Outcomes(*(np.concatenate([getattr(one, name) for one in each]) for name in ("units", "parts", "weights")))


def _scores(own: dict[str, Outcomes], prefix: str, members: Mapping[int, Outcomes]) -> Scores:
    """`members`: those of a metric NATS for each context or distance, a subtask `prefix`_N."""
    rows = [score_row(name, each) for name, each in own.items()]
    rows += [score_row(NATS, each, f"{prefix}_{number}") for number, each in members.items()]
    outcomes = own | {f"{prefix}_{number}/{NATS}": each for number, each in members.items()}
    return Scores(rows, outcomes)


def score_row(metric: str, found: Outcomes, subtask: str | None = None) -> MetricRow:
    value, stderr = ratio(found.parts, found.weights)
    return MetricRow(metric, value, stderr, len(found.parts), subtask)
