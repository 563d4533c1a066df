"""A model that is saved and loaded is the same one."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from .passes import relative
from .results import Found
from .subject import Subject


def round_trip(subject: Subject) -> Found:
    """The difference is of what a pass computes; weights that are missing or left over are a fault too."""
    with tempfile.TemporaryDirectory() as folder:
        subject.model.save_pretrained(folder)
        loaded: Any = type(subject.model).from_pretrained(
            folder, dtype=subject.model.dtype, output_loading_info=True, attn_implementation=_attention(subject)
        )
    model, info = loaded
    again = Subject(model.to(subject.model.device).eval(), subject.weights, subject.ids, subject.seed)
    wrong = [f"{kind.replace('_', ' ')}: {sorted(map(str, info[kind]))[0]}" for kind in _KINDS if info.get(kind)]
    own, other = subject.model.state_dict(), model.state_dict()
    wrong += [f"other values: {name}" for name in own if name in other and not torch.equal(own[name], other[name])][:1]
    difference = relative(again.states(subject.ids), subject.states(subject.ids))
    return Found(max(difference, 1.0) if wrong else difference, "; ".join(wrong), bound=0.0)


_KINDS = ("missing_keys", "unexpected_keys", "mismatched_keys")


def _attention(subject: Subject) -> str | None:
    return getattr(subject.config, "_attn_implementation", None)
