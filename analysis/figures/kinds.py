"""The figures that `mlkv figure` can draw. Imports nothing, so that `mlkv --help` can list them."""

FIGURES = {
    "pareto": "accuracy (or the sweep's main axis) against KV bytes per token",
    "pareto_throughput": "the same against the decode speed of the fastest cell",
    "pareto_loss": "bits per byte, perplexity or loss against KV bytes per token",
    "memory": "KV cache against batch size, with what ran out of memory",
    "throughput": "decode speed against batch size, with what ran out of memory",
    "curves": "training loss by variant, smoothed over raw",
    "spectrum": "quality against the number of KV layers at fixed heads",
    "layouts": "each variant's layout: owners with their KV heads, and their readers",
    "tasks": "each task's difference from the baseline, with error bars",
}
"""Kind → what it shows."""
