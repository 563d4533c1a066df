"""The same tokens, cut into passes and padded in different ways, give the same logits.

Each function returns the largest difference from one pass over a row alone without a cache, as a part of the largest
value of that pass. `B` rows, `T` tokens, `S` tokens and padding in the cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from .results import Found, Skipped
from .subject import Subject


def repeated(subject: Subject) -> Found:
    """Twice the same pass: what differs here comes from the machine, or from chance in the model."""
    return _compared(subject.states(subject.ids), subject.states(subject.ids))


def causal(subject: Subject) -> Found:
    """Other tokens at the end change nothing before them."""
    half = subject.ids.shape[1] // 2
    changed_BT = subject.ids.clone()
    changed_BT[:, half:] = subject.ids[:, half:].flip(0, 1)
    return _compared(subject.states(changed_BT)[:, :half], subject.states(subject.ids)[:, :half])


def batched(subject: Subject) -> Found:
    """A row alone, and the same row in a batch."""
    alone = torch.cat([subject.states(row[None]) for row in subject.ids])
    return _compared(subject.states(subject.ids), alone)


def eager(subject: Subject) -> Found:
    """Attention in single steps (`attn_implementation="eager"`), and as the model runs by itself. It is asked for
    the weights, since a model may take these steps for them alone."""
    before = subject.config._attn_implementation
    if before == "eager":
        raise Skipped("the model has no other implementation of attention")
    expected = subject.states(subject.ids)
    try:
        subject.model.set_attn_implementation("eager")
        return _compared(subject.states(subject.ids, output_attentions=True), expected)
    finally:
        subject.model.set_attn_implementation(before)


def cached(subject: Subject) -> Found:
    """Token by token, with a cache."""
    return _compared(_in_passes(subject, [1] * subject.ids.shape[1]), subject.states(subject.ids))


def chunked(subject: Subject) -> Found:
    """The prompt in three passes of unequal length (chunked prefill), with a cache."""
    length = subject.ids.shape[1]
    parts = [length // 2, 1, length - length // 2 - 1]
    return _compared(_in_passes(subject, parts), subject.states(subject.ids))


def padded(subject: Subject) -> Found:
    """Three columns of padding on the left of both rows."""
    ids_BS, mask_BS = _left_padded(subject, [subject.ids.shape[1]] * 2, 3)
    return _compared(subject.states(ids_BS, mask_BS)[:, 3:], subject.states(subject.ids))


def unequal(subject: Subject) -> Found:
    """Two rows of different lengths, padded on the left: a pass over the prompts, then token by token with a cache."""
    cache = _dynamic_cache(subject)
    length = subject.ids.shape[1]
    lengths, prompt = [length, length - 4], length - 3
    ids_BS, mask_BS = _left_padded(subject, lengths, 0)
    states = [subject.states(ids_BS[:, :prompt], mask_BS[:, :prompt], past_key_values=cache, use_cache=True)]
    for i in range(prompt, length):
        here = slice(i, i + 1)
        states.append(subject.states(ids_BS[:, here], mask_BS[:, : i + 1], past_key_values=cache, use_cache=True))
    together = torch.cat(states, 1)
    alone = [subject.states(row_T[None, -n:])[0] for row_T, n in zip(ids_BS, lengths, strict=True)]
    found = [row[-n:] for row, n in zip(together, lengths, strict=True)]
    return _compared(torch.cat(found), torch.cat(alone))


def static(subject: Subject) -> Found:
    """Two passes and then token by token, with a StaticCache that is longer than the text."""
    if not getattr(subject.model, "_can_compile_fullgraph", False):
        raise Skipped("the model does not say that it takes one (_can_compile_fullgraph)")
    _dynamic_cache(subject)
    length = subject.ids.shape[1]
    cache = StaticCache(config=subject.config, max_cache_len=length + 5)
    parts = [length // 2, 2, *[1] * (length - length // 2 - 2)]
    return _compared(_in_passes(subject, parts, cache), subject.states(subject.ids))


def _in_passes(subject: Subject, parts: Sequence[int], cache: DynamicCache | StaticCache | None = None) -> Tensor:
    cache = _dynamic_cache(subject) if cache is None else cache
    states = []
    for i, part_BT in enumerate(subject.ids.split(list(parts), 1)):
        begin = sum(parts[:i])
        arguments = {}
        if subject.accepts("position_ids"):
            positions = torch.arange(begin, begin + part_BT.shape[1], device=part_BT.device)
            arguments["position_ids"] = positions.expand(part_BT.shape)
        states.append(subject.states(part_BT, past_key_values=cache, use_cache=True, **arguments))
    return torch.cat(states, 1)


def _dynamic_cache(subject: Subject) -> DynamicCache:
    """An empty one. Raises Skipped for a model with a cache of another kind."""
    if not subject.accepts("past_key_values"):
        raise Skipped("the model takes no past_key_values")
    given = subject.output(subject.ids[:, :2], use_cache=True).past_key_values
    if not isinstance(given, DynamicCache):
        raise Skipped(f"the model's cache is a {type(given).__name__}, not a DynamicCache")
    if "config" in inspect.signature(DynamicCache).parameters:
        return DynamicCache(config=subject.config)
    return DynamicCache()


def _left_padded(subject: Subject, lengths: Sequence[int], more: int) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, S]`: the last tokens of each row, with padding before them and `more` columns of it."""
    width = max(lengths) + more
    ids_BS = subject.ids.new_full((len(lengths), width), int(subject.ids[0, 0]))
    mask_BS = torch.zeros_like(ids_BS)
    for b, length in enumerate(lengths):
        ids_BS[b, width - length :] = subject.ids[b, -length:]
        mask_BS[b, width - length :] = 1
    return ids_BS, mask_BS


def _compared(found: Tensor, expected: Tensor) -> Found:
    return Found(relative(found, expected))


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a part of the largest expected value; NaN where either is not finite."""
    found, expected = found.double(), expected.double()
    return float((found - expected).abs().max() / expected.abs().max())
