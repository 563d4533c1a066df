"""How far a checkpoint's predictions are from the base's that it was made of, on the corpus's held-out text.

Top-1 agreement is the share of tokens at which both would continue greedily with the same token; the divergence is
KL(base ‖ checkpoint) over the vocabulary. A checkpoint can reach the base's loss and still predict other tokens: what
distillation keeps and the plain loss does not. Windows and tokens are those of bits per byte (bits.py).

Legend: `N` windows, `B` windows of a batch, `T` tokens of a window, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..context import StepFailed
from ..corpus.blocks import check_ids, open_blocks
from ..corpus.manifest import read_manifest
from .batch_size import BatchSize
from .bits import Floats, Windows, batches, cut_windows, metrics
from .held_out_pass import HeldOutPass, pass_of
from .models import LastModel
from .outcomes import Outcomes, digest
from .tasks import AGREEMENT, Scores, Scoring

BASE = LastModel()
"""The base that checkpoints are compared with: the same for all of a sweep."""


@torch.inference_mode()
def compare(
    base: HeldOutPass,
    model: HeldOutPass,
    windows: Windows,
    batch_size: BatchSize,
    progress: Callable[[int, int], None],
) -> tuple[Floats, Floats]:
    """`[N]` each: the counted tokens at which the greedy predictions agree, and KL(base ‖ model) summed over them, in
    nats."""
    agreed_N, kl_N = np.zeros(len(windows.ids)), np.zeros(len(windows.ids))
    for batch, hidden in batches(windows, batch_size, lambda batch: (base.hidden(batch), model.hidden(batch))):
        counted_BT = torch.from_numpy(windows.counted[batch]).to(hidden[0].device)
        # Window by window, so that one window's logits are in memory and not a batch's.
        for i, counted_T in enumerate(counted_BT):
            base_TV, model_TV = (
                each.model.model.logits(hidden_BTD[i, :-1][counted_T])
                for each, hidden_BTD in zip((base, model), hidden, strict=True)
            )
            agreed_N[batch.start + i] = float((base_TV.argmax(-1) == model_TV.argmax(-1)).sum())
            kl_N[batch.start + i] = float(divergence(base_TV, model_TV).double().sum())
        progress(batch.stop, len(windows.ids))
    return agreed_N, kl_N


def divergence(base_TV: Tensor, model_TV: Tensor) -> Tensor:
    """KL(base ‖ model) `[T]` in nats of the distributions that these logits are. In float32 whatever the models compute
    in; what rounding makes smaller than zero is zero."""
    base_log_TV, model_log_TV = base_TV.float().log_softmax(-1), model_TV.float().log_softmax(-1)
    return (base_log_TV.exp() * (base_log_TV - model_log_TV)).sum(-1).clamp_min(0.0)


def score(scoring: Scoring) -> Scores:
    """Raises StepFailed without a corpus or a base, and for a corpus whose tokens the model does not know."""
    if scoring.corpus is None or scoring.base is None:
        raise StepFailed(f"task = {AGREEMENT}: needs a corpus with held-out text, and the base of the checkpoint")
    model, base = scoring.model, BASE.of(scoring.base)
    check_ids(open_blocks(scoring.corpus, "heldout"), read_manifest(scoring.corpus).vocab_size, model.shape.vocab_size)
    windows = cut_windows(scoring.corpus, scoring.recipe.limit)
    reading = pass_of("checkpoint", scoring, model, windows.ids)
    reading_base = pass_of("base", scoring, base, windows.ids)
    agreed_N, kl_N = compare(reading_base, reading, windows, scoring.batch_size, scoring.progress)
    units_N = np.array([digest(row.tobytes()) for row in windows.ids], np.int64)
    counted_N = windows.counted.sum(-1).astype(float)
    by_metric = {"agreement": Outcomes(units_N, agreed_N, counted_N), "kl": Outcomes(units_N, kl_N, counted_N)}
    return Scores(metrics(by_metric), by_metric)
