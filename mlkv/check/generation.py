"""generate() in a padded batch with a cache chooses what each prompt alone chooses without one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .passes import relative
from .results import Found, Skipped
from .subject import Subject

NEW = 6
"""Tokens that are generated."""
PADDING = 3
"""Columns of it before the first prompt; the second has none."""


def greedy(subject: Subject) -> Found:
    """The likeliest tokens; the difference is of the logits, up to the first other token."""
    together, alone = _generated(subject)
    counts = [_common(together.sequences[b], each.sequences[0]) for b, each in enumerate(alone)]
    found, expected = (
        torch.cat([each[b][:count] for b, count in enumerate(counts)])
        for each in (_logits(together), [_logits(each)[0] for each in alone])
    )
    return Found(relative(found, expected))


def beams(subject: Subject) -> Found:
    """Three beams; the difference is of the scores of the best ones. Caches are reordered here."""
    together, alone = _generated(subject, num_beams=3)
    scores = torch.cat([each.sequences_scores for each in alone])
    other = any(_common(together.sequences[b], each.sequences[0]) < NEW for b, each in enumerate(alone))
    return Found(relative(together.sequences_scores, scores), "other tokens" if other else "")


def _generated(subject: Subject, **options: Any) -> tuple[Any, list[Any]]:
    """Of both prompts together, with a cache; and of each alone, without."""
    if not subject.model.can_generate():
        raise Skipped("the model has no generate(), as it has no head")
    mask_BT = torch.ones_like(subject.ids)
    mask_BT[0, :PADDING] = 0
    rows = [subject.ids[:1, PADDING:], subject.ids[1:]]
    alone = [_generate(subject, row, torch.ones_like(row), use_cache=False, **options) for row in rows]
    return _generate(subject, subject.ids, mask_BT, use_cache=True, **options), alone


def _generate(subject: Subject, ids_BT: Tensor, mask_BT: Tensor, **options: Any) -> Any:
    return subject.model.generate(
        ids_BT,
        attention_mask=mask_BT,
        max_new_tokens=NEW,
        min_new_tokens=NEW,  # else a model with end tokens may stop at once
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )


def _logits(output: Any) -> Tensor:
    """`[B, NEW, V]`"""
    return torch.stack(output.logits, 1).double()


def _common(one_S: Tensor, other_S: Tensor) -> int:
    """Generated tokens up to and with the first that differs."""
    equal_T = one_S[-NEW:] == other_S[-NEW:]
    return min(NEW, int(equal_T.long().cumprod(0).sum()) + 1)
