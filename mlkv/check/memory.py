"""What a cache holds, in bytes, beside what follows from the config."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .results import Found, Skipped
from .sharing import named_sources
from .subject import Subject

WHOLE = ("full_attention", "attention")
WINDOWED = ("sliding_attention",)


def cache_bytes(subject: Subject) -> Found:
    """The difference is in bytes of all, as a part of the formula's."""
    rows, length = subject.ids.shape
    expected = rows * formula(subject, length)
    if not subject.accepts("past_key_values"):
        raise Skipped("the model takes no past_key_values")
    cache = subject.output(subject.ids, use_cache=True).past_key_values
    if not isinstance(cache, DynamicCache):
        raise Skipped(f"the model's cache is a {type(cache).__name__}, not a DynamicCache")
    counted = counted_bytes(cache)
    return Found(abs(counted - expected) / expected, f"{counted:,} counted, {expected:,} by the config", bound=0.0)


def counted_bytes(cache: Any) -> int:
    """Of every tensor in the layers of a cache that grows with its tokens."""
    tensors = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.dim() >= 3)


def formula(subject: Subject, length: int) -> int:
    """Bytes of one row: owners' keys and values of all tokens, or of those that a window still needs."""
    config = subject.config
    size = torch.empty((), dtype=subject.model.dtype).element_size()
    if config.model_type == "mlkv":
        total: int = config.layout.kv_bytes_per_token(config.shape.head_dim, size) * length
        return total
    owners = sorted(set(named_sources(config)))
    if getattr(config, "kv_lora_rank", None):
        return length * size * (sum(_latent_numbers(config, i) for i in owners) + _indexer_numbers(config))
    types = _layer_types(config)
    if others := set(types) - {*WHOLE, *WINDOWED}:
        raise Skipped(f"no formula for layers of type {', '.join(sorted(others))}")
    return sum(_numbers(config, i) * _held(config, types[i], length) for i in owners) * size


def _layer_types(config: Any) -> list[str]:
    every = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    return getattr(config, "layer_types", None) or [every] * int(config.num_hidden_layers)


def _latent_numbers(config: Any, layer: int) -> int:
    """A token's latent, and the rotated part of its keys where the layer rotates."""
    rotates = (getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers)[layer]
    return int(config.kv_lora_rank + (config.qk_rope_head_dim if rotates else 0))


def _indexer_numbers(config: Any) -> int:
    """Of all layers that choose the tokens which they attend to, by small keys of their own (DeepSeek sparse
    attention)."""
    modes = getattr(config, "indexer_types", None) or ["full"] * int(config.num_hidden_layers)
    return int(modes.count("full") * (getattr(config, "index_head_dim", None) or 0))


def _numbers(config: Any, layer: int) -> int:
    """That a token leaves in this layer's cache."""
    several = getattr(config, "per_layer_config", None)  # of transformers ≥ 5.23: Gemma 4's layers differ in head width
    own = several[layer] if several else config
    kv_heads = getattr(own, "num_key_value_heads", None) or own.num_attention_heads
    head_dim = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
    return int(2 * kv_heads * head_dim)


def _held(config: Any, layer_type: str, length: int) -> int:
    """Tokens that stay: with the newest, those before it that a window reaches."""
    window = getattr(config, "sliding_window", None)
    return min(length, int(window) - 1) if layer_type in WINDOWED and window else length
