"""How far a checkpoint's predictions are from the base's that it was made of, on the corpus's held-out text.

Top-1 agreement is the share of tokens at which both would continue greedily with the same token; the divergence is
KL(base ‖ checkpoint) over the vocabulary. A checkpoint can reach the base's loss and still predict other tokens: what
distillation keeps and the plain loss does not. Windows and tokens are those of bits per byte (bits.py).

Legend: `N` windows, `B` windows of a batch, `T` tokens of a window, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..context import StepFailed
from ..corpus.blocks import check_ids, open_blocks
from ..corpus.manifest import read_manifest
from .bits import Floats, Windows, cut_windows, metrics
from .models import load_model
from .outcomes import Outcomes, digest
from .tasks import AGREEMENT, Scores, Scoring


@torch.inference_mode()
def compare(
    base: Any, model: Any, windows: Windows, batch_size: int, progress: Callable[[int, int], None]
) -> tuple[Floats, Floats]:
    """`[N]` each: the counted tokens at which the greedy predictions agree, and KL(base ‖ model) summed over them, in
    nats."""
    agreed_N, kl_N = np.zeros(len(windows.ids)), np.zeros(len(windows.ids))
    for first in range(0, len(windows.ids), batch_size):
        batch = slice(first, first + batch_size)
        ids_BT = torch.from_numpy(windows.ids[batch]).to(model.device)
        counted_BT = torch.from_numpy(windows.counted[batch]).to(model.device)
        base_BTV, model_BTV = base(ids_BT).logits[:, :-1], model(ids_BT).logits[:, :-1]
        # Window by window, so that one window's probabilities are in memory and not a batch's.
        for i, counted_T in enumerate(counted_BT):
            base_TV, model_TV = base_BTV[i][counted_T], model_BTV[i][counted_T]
            agreed_N[first + i] = float((base_TV.argmax(-1) == model_TV.argmax(-1)).sum())
            kl_N[first + i] = float(divergence(base_TV, model_TV).double().sum())
        progress(min(first + batch_size, len(windows.ids)), len(windows.ids))
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
    model, base = scoring.model, load_model(scoring.base)
    check_ids(open_blocks(scoring.corpus, "heldout"), read_manifest(scoring.corpus).vocab_size, model.shape.vocab_size)
    windows = cut_windows(scoring.corpus, scoring.recipe.limit)
    agreed_N, kl_N = compare(base, model, windows, scoring.recipe.batch_size, scoring.progress)
    units_N = np.array([digest(row.tobytes()) for row in windows.ids], np.int64)
    counted_N = windows.counted.sum(-1).astype(float)
    by_metric = {"agreement": Outcomes(units_N, agreed_N, counted_N), "kl": Outcomes(units_N, kl_N, counted_N)}
    return Scores(metrics(by_metric), by_metric)
