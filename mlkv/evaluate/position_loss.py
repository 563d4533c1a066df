"""Loss of held-out text by the place of a token in its window, up to the rows of the corpus and beyond them.

A window is BEYOND times as long as a row of the corpus, the longest text that training with this corpus shows. What
lies behind the first row's length is extrapolated: a model with rotary positions computes it, and nothing has taught
it. Learned positions end with the model's context, and so do its windows.

Legend: `N` windows, `T` tokens of a window.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..context import StepFailed
from .batch_size import BatchSize
from .bits import Windows, token_nats
from .entry import NATS, Samples, score_row
from .held_out_pass import HeldOutPass
from .outcomes import Outcomes, digest
from .tasks import POSITION_LOSS, Scores, Scoring

FIRST = 16
"""The last place of the first group; each group ends twice as far."""
BEYOND = 4
"""Windows are so many rows of the corpus long."""
WITHIN, BEHIND = "position", "beyond"
"""A group of places is called by its last one: `position_64` has those from 33 to 64. `beyond_512` is no longer in a
row of the corpus."""


def score(scoring: Scoring) -> Scores:
    """Nats per token in each group of places, and over all within a row. Raises StepFailed as Samples.of does, and for
    text that is shorter than one row."""
    samples = Samples.of(scoring, POSITION_LOSS, longer_than=FIRST)
    length = _window_length(samples)
    if length < samples.longest:
        raise StepFailed(f"task = {POSITION_LOSS}: the held-out text has {length} tokens (asked: {samples.longest})")
    ids_NT = samples.windows(length)
    counted_NT = ids_NT[:, 1:] != samples.end
    windows = Windows(ids_NT, counted_NT, np.zeros(counted_NT.shape, np.int64))
    reading, nats_NT = HeldOutPass(scoring.model, ids_NT), np.zeros(counted_NT.shape)
    for batch, nats_BT in token_nats(reading, windows, _rows_of(scoring.batch_size, samples, length), scoring.progress):
        nats_NT[batch] = nats_BT.cpu().numpy()
    units_N = np.array([digest(row.tobytes()) for row in ids_NT], np.int64)
    found = {
        name: Outcomes(units_N, nats_NT[:, part].sum(-1), counted_NT[:, part].sum(-1).astype(float))
        for name, part in groups(samples.longest, length).items()
    }
    return _scores(found)


def _window_length(samples: Samples) -> int:
    longest = BEYOND * samples.longest
    if samples.scoring.model.shape.positions == "learned":
        longest = min(longest, samples.scoring.model.shape.context)
    return min(longest, len(samples.stream))


def _rows_of(size: BatchSize, samples: Samples, length: int) -> BatchSize:
    """As many tokens in a pass as a batch of rows of the corpus has."""
    return size if size.rows is None else replace(size, rows=max(1, size.rows * samples.longest // length))


def groups(row: int, window: int) -> dict[str, slice]:
    """By name, the predicted tokens of a window `[T − 1]` in each group of places. The first token of a window is at
    place 1 and not predicted."""
    within = [end for end in (FIRST << n for n in range(row.bit_length())) if end < row]
    behind = [end for end in (row << n for n in range(1, window.bit_length())) if end < window]
    named = [(WITHIN, end) for end in [*within, row]] + [(BEHIND, end) for end in [*behind, window] if window > row]
    starts = [0, *(end - 1 for _, end in named)]
    return {f"{name}_{end}": slice(start, end - 1) for start, (name, end) in zip(starts, named, strict=False)}


def _scores(found: dict[str, Outcomes]) -> Scores:
    """A group without a token that counts, behind a text that is cut into small documents, has no score."""
    counted = {name: each for name, each in found.items() if each.weights.sum()}
    within = [each for name, each in counted.items() if name.startswith(WITHIN)]
    units, parts, weights = (getattr(within[0], name) for name in ("units", "parts", "weights"))
    for each in within[1:]:
        parts, weights = parts + each.parts, weights + each.weights
    whole = Outcomes(units, parts, weights)
    rows = [score_row(NATS, whole), *(score_row(NATS, each, name) for name, each in counted.items())]
    return Scores(rows, {NATS: whole} | {f"{name}/{NATS}": each for name, each in counted.items()})
