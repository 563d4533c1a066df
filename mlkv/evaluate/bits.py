"""Bits per byte of the corpus's held-out text, over windows of its one packed stream.

Bits per byte, not loss per token: tokenizers cut a text into different numbers of tokens, but its bytes are the same.
The end-of-text tokens stand for no byte of text, so they neither count nor add bits.

Legend: `N` windows, `B` windows of a batch, `T` tokens of a window, `D` width, `V` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..context import MetricRow, StepFailed
from ..corpus.blocks import check_ids, open_blocks
from ..corpus.manifest import read_manifest
from ..signature import Chance
from .batch_size import BatchSize
from .held_out_pass import HeldOutPass, pass_of
from .outcomes import Outcomes, digest
from .tasks import BITS_PER_BYTE, Scores, Scoring
from .unigram import UNIGRAM, unigram

Floats = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class Windows:
    """Windows that overlap by one token, so that every held-out token but the stream's first is predicted once.

    ids: `[N, T]`, padded with the end-of-text token, whose prediction never counts.
    counted, bytes: `[N, T − 1]`, of the predicted tokens.
    """

    ids: NDArray[np.int64]
    counted: NDArray[np.bool_]
    bytes: NDArray[np.int64]


def cut_windows(corpus: Path, limit: int | None) -> Windows:
    """All windows, or `limit` of them spread evenly over the held-out text."""
    blocks, end = open_blocks(corpus, "heldout"), read_manifest(corpus).end_of_text
    length = blocks.rows.shape[1]
    ids = blocks.rows.reshape(-1)[: blocks.tokens]
    token_bytes = np.memmap(corpus / "heldout_bytes.bin", "<u2", "r")[: blocks.tokens]
    starts = np.arange(0, blocks.tokens - 1, length - 1)
    if limit is not None and limit < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, limit).round().astype(int)]
    places_NT = starts[:, None] + np.arange(length)
    inside_NT = places_NT < blocks.tokens
    places_NT = np.where(inside_NT, places_NT, 0)
    ids_NT = np.where(inside_NT, ids[places_NT], end).astype(np.int64)
    counted_NT = ids_NT[:, 1:] != end
    return Windows(ids_NT, counted_NT, np.where(counted_NT, token_bytes[places_NT[:, 1:]], 0).astype(np.int64))


def nats(reading: HeldOutPass, windows: Windows, batch_size: BatchSize, progress: Callable[[int, int], None]) -> Floats:
    """Nats `[N]` that the model needs for each window's counted tokens."""
    total_N = np.zeros(len(windows.ids))
    for batch, nats_BT in token_nats(reading, windows, batch_size, progress):
        # Summed in float64: a window has hundreds of terms, and scores of two checkpoints are compared to four digits.
        total_N[batch] = nats_BT.double().sum(-1).cpu().numpy()
    return total_N


@torch.inference_mode()
def token_nats(
    reading: HeldOutPass, windows: Windows, batch_size: BatchSize, progress: Callable[[int, int], None]
) -> Iterator[tuple[slice, Tensor]]:
    """Nats `[B, T − 1]` that the model needs for each counted token of a batch of windows; 0 for the others."""
    at_once = reading.windows_at_once()
    for batch, hidden_BTD in batches(windows, batch_size, reading.hidden):
        ids_BT = torch.from_numpy(windows.ids[batch]).to(hidden_BTD.device)
        losses_BT = [
            _losses(reading.model, hidden, ids)
            for hidden, ids in zip(hidden_BTD.split(at_once), ids_BT.split(at_once), strict=True)
        ]
        counted_BT = torch.from_numpy(windows.counted[batch]).to(hidden_BTD.device)
        yield batch, torch.cat(losses_BT).where(counted_BT, 0.0)
        progress(batch.stop, len(windows.ids))


def _losses(model: Any, hidden_BTD: Tensor, ids_BT: Tensor) -> Tensor:
    """Nats `[B, T − 1]` of each token but the first; in float32 whatever the model computes in."""
    logits, targets_BT = model.model.logits(hidden_BTD[:, :-1].flatten(0, 1)).float(), ids_BT[:, 1:]
    return functional.cross_entropy(logits, targets_BT.flatten(), reduction="none").view_as(targets_BT)


def batches(windows: Windows, size: BatchSize, read: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
    """What `read` gives for each batch of windows, in order."""
    first, (count, length) = 0, windows.ids.shape
    while first < count:
        batch = slice(first, min(first + size.at(length), count))
        found = size.attempt(length, partial(read, batch))
        if found is not None:
            yield batch, found
            first = batch.stop


def ratio(parts: Floats, wholes: Floats) -> tuple[float, float | None]:
    """Σ parts / Σ wholes and its standard error over windows (delta method; None for a single window)."""
    value = float(parts.sum() / wholes.sum())
    n = len(parts)
    if n < 2:
        return value, None
    spread = float(((parts - value * wholes) ** 2).sum())
    return value, math.sqrt(spread / (n * (n - 1))) / float(wholes.mean())


def outcomes(windows: Windows, nats_N: Floats) -> dict[str, Outcomes]:
    """Every window's share of bits per byte and of nats per token."""
    units_N = np.array([digest(row.tobytes()) for row in windows.ids], np.int64)
    return {
        "bits_per_byte": Outcomes(units_N, nats_N / math.log(2), windows.bytes.sum(-1).astype(float)),
        "nats_per_token": Outcomes(units_N, nats_N, windows.counted.sum(-1).astype(float)),
    }


def metrics(by_metric: dict[str, Outcomes]) -> list[MetricRow]:
    rows = []
    for name, outcome in by_metric.items():
        value, stderr = ratio(outcome.parts, outcome.weights)
        rows.append(MetricRow(name, value, stderr, len(outcome.parts)))
    return rows


def score(scoring: Scoring) -> Scores:
    """Raises StepFailed without a corpus, and for one whose tokens the model does not know."""
    if scoring.corpus is None:
        raise StepFailed(f"task = {BITS_PER_BYTE}: needs a corpus with held-out text")
    vocab_size = read_manifest(scoring.corpus).vocab_size
    check_ids(open_blocks(scoring.corpus, "heldout"), vocab_size, scoring.model.shape.vocab_size)
    windows = cut_windows(scoring.corpus, scoring.recipe.limit)
    reading = pass_of("checkpoint", scoring, scoring.model, windows.ids)
    nats_N = nats(reading, windows, scoring.batch_size, scoring.progress)
    by_metric = outcomes(windows, nats_N)
    return Scores(metrics(by_metric), by_metric, chance_of(scoring.corpus, windows, nats_N))


def chance_of(corpus: Path, windows: Windows, nats_N: Floats) -> dict[str, Chance]:
    """The unigram model's scores on windows that a checkpoint needs `nats_N` for; nothing where the training text is
    not here."""
    cost_V = unigram(corpus)
    if cost_V is None:
        return {}
    unigram_N = np.where(windows.counted, cost_V[windows.ids[:, 1:]], 0.0).sum(-1)
    own, its = outcomes(windows, nats_N), outcomes(windows, unigram_N)
    return {
        name: Chance(
            value=each.value,
            stderr=ratio(own[name].parts - each.parts, each.weights)[1] or 0.0,
            by=UNIGRAM,
            lower_is_better=True,
        )
        for name, each in its.items()
        if each.weights.sum()  # generated tokens stand for no bytes
    }
