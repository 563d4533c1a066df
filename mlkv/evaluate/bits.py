"""Bits per byte of the corpus's held-out text, over windows of its one packed stream.

Legend: `N` windows, `B` windows of a batch, `T` tokens of a window, `V` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..context import MetricRow
from ..corpus.blocks import open_blocks
from ..corpus.manifest import read_manifest
from .outcomes import Outcomes, digest

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Windows:
    """Windows that overlap by one token, so that every held-out token but the stream's first is predicted once.

    `ids_NT` is padded with the end-of-text token, whose prediction never counts: `counted_NT` and `bytes_NT` are
    about the `T − 1` predicted tokens.
    """

    ids: NDArray[np.int64]
    counted: NDArray[np.bool_]
    bytes: NDArray[np.int64]


def windows(corpus: Path, limit: int | None) -> Windows:
    """All windows, or `limit` of them spread evenly over the held-out text."""
    blocks, end = open_blocks(corpus, "heldout"), read_manifest(corpus).end_of_text
    length = blocks.rows.shape[1]
    ids = blocks.rows.reshape(-1)[: blocks.tokens]
    token_bytes = np.memmap(corpus / "heldout_bytes.bin", "<u2", "r")[: blocks.tokens]
    starts = np.arange(0, blocks.tokens - 1, length - 1)
    if limit is not None and limit < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, limit).round().astype(int)]
    places = starts[:, None] + np.arange(length)
    inside = places < blocks.tokens
    places = np.where(inside, places, 0)
    ids_NT = np.where(inside, ids[places], end).astype(np.int64)
    counted = ids_NT[:, 1:] != end
    return Windows(ids_NT, counted, np.where(counted, token_bytes[places[:, 1:]], 0).astype(np.int64))


@torch.inference_mode()
def nats(model: Any, found: Windows, batch_size: int, progress: Callable[[int, int], None]) -> Floats:
    """Nats `[N]` that `model` needs for each window's counted tokens."""
    total_N = np.zeros(len(found.ids))
    for first in range(0, len(found.ids), batch_size):
        part = slice(first, first + batch_size)
        ids_BT = torch.from_numpy(found.ids[part]).to(model.device)
        counted = torch.from_numpy(found.counted[part]).to(model.device)
        nats_BT = _token_nats(model(ids_BT).logits[:, :-1], ids_BT[:, 1:])
        total_N[part] = nats_BT.where(counted, 0.0).double().sum(-1).cpu().numpy()
        progress(min(first + batch_size, len(found.ids)), len(found.ids))
    return total_N


def _token_nats(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    nats = functional.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="none")
    return nats.view_as(targets_BT)


def ratio(parts: Floats, wholes: Floats) -> tuple[float, float | None]:
    """Σ parts / Σ wholes and its standard error over windows (delta method; None for a single window)."""
    value = float(parts.sum() / wholes.sum())
    n = len(parts)
    if n < 2:
        return value, None
    spread = float(((parts - value * wholes) ** 2).sum())
    return value, math.sqrt(spread / (n * (n - 1))) / float(wholes.mean())


def outcomes(found: Windows, nats_N: Floats) -> dict[str, Outcomes]:
    """Every window's part in bits per byte and in nats per token."""
    units_N = np.array([digest(row.tobytes()) for row in found.ids], np.int64)
    return {
        "bits_per_byte": Outcomes(units_N, nats_N / math.log(2), found.bytes.sum(-1).astype(float)),
        "nats_per_token": Outcomes(units_N, nats_N, found.counted.sum(-1).astype(float)),
    }


def metrics(found: dict[str, Outcomes]) -> list[MetricRow]:
    rows = []
    for name, outcome in found.items():
        value, stderr = ratio(outcome.parts, outcome.weights)
        rows.append(MetricRow(name, value, stderr, len(outcome.parts)))
    return rows
