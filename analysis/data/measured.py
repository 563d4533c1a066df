"""The metrics of measure steps and of published measurements, by their names in the long table."""

from __future__ import annotations

CACHE = "cache_bytes"
CACHE_PER_TOKEN = "cache_bytes_per_token"
PEAK = "peak_bytes"
"""The largest allocation of a whole run, of our steps."""
PUBLISHED_MEMORY = "memory_bytes"
"""The memory of a whole run as nvidia-smi reports it, of published results."""
SPEED = "tokens_per_second"
OUT_OF_MEMORY = "oom"
"""1 in a cell that ran out of memory."""
ABOVE_ZERO = {CACHE, CACHE_PER_TOKEN, PEAK, PUBLISHED_MEMORY, SPEED}
"""Measurements that cannot be zero: there a zero means that nothing was measured."""
SAME_CONTEXT = 0.99
"""A context counts as a variant's longest from this share of it on: the published runs stopped a few tokens early, at
2,045 or 2,047 tokens by batch size."""
