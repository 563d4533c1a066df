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
STEP_SECONDS = "step_seconds"
STEP_OVER_MHA = "step_over_mha"
"""The seconds of a step over MHA's, measured in turns."""
STEP_BYTES = "step_bytes_once"
"""The fewest bytes that a step reads: the weights, and each cached byte once."""
STEP_OPERATIONS = "step_operations"
ONCE_SPEED, BY_LAYER_SPEED = "once_bytes_per_second", "by_layer_bytes_per_second"
"""Bytes a second of a step, where each cached byte counts once, or once for each layer that attends to it."""
COPY_SPEED = "copy_bytes_per_second"
"""Bytes a second that the machine moved when it copied memory, measured in the same rounds."""
PROCESSOR_CACHE = "processor_cache_bytes"
WEIGHTS = "weights_bytes"
PREFILL_PEAK, DECODE_PEAK = "prefill_peak_bytes", "decode_peak_bytes"
FORMULA = "cache_formula_bytes"
LARGEST = "largest_batch"
"""The largest batch whose run fits in memory, searched by trials."""
SAME_CONTEXT = 0.99
"""A context counts as a variant's longest from this share of it on: the published runs stopped a few tokens early, at
2,045 or 2,047 tokens by batch size."""
