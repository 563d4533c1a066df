"""How many sequences a model decodes at once before memory ends: MLKV-6 of Pythia-160M beside its MHA.

python benchmarks/largest_batch.py                    on a CPU, in --memory-gib
python benchmarks/largest_batch.py --device cuda      in all memory of the GPU

Both are searched in one process by the trials of the measure step (mlkv/measure/largest_batch.py), with weights, cache
and all that a step takes in the same memory. `cache_ratio` is what caches alone would give: logits and what attention
makes of a sequence are as large with few KV heads as with many.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlkv.context import Context, Outcome
from mlkv.layout import mha
from mlkv.measure.bench import Subject
from mlkv.measure.session import measure_together
from mlkv.patterns import make
from mlkv.recipes import MeasureRecipe
from mlkv.shape import DecoderShape

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.turns import arguments, circumstances, report

PYTHIA_160M = DecoderShape(vocab_size=50304, width=768, layers=12, heads=12, head_dim=64, mlp_width=3072, context=2048)
LAYOUTS = {"MHA-144": mha(12, 12), "MLKV-6": make("even", 12, 12, 6, 1)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="default: fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--context", type=int, default=2048, help="tokens of each sequence's cache")
    parser.add_argument("--memory-gib", type=float, help="default: 2 on a CPU, all memory of a GPU")
    options = parser.parse_args()
    where = circumstances()
    on_gpu = options.device == "cuda"
    found = largest(options)
    cache = {name: layout.kv_bytes_per_token(64, 1) for name, layout in LAYOUTS.items()}
    numbers = {
        "dtype": dtype_of(options),
        "context": options.context,
        "memory_gib": memory_of(options),
        "largest_batch": found,
        "ratio": found["MLKV-6"] / found["MHA-144"] if found["MHA-144"] else None,
        "cache_ratio": cache["MHA-144"] / cache["MLKV-6"],
    }
    report(f"largest_batch{'-cuda' if on_gpu else ''}", where, numbers, options.save)


def dtype_of(options: argparse.Namespace) -> str:
    return str(options.dtype or ("bf16" if options.device == "cuda" else "fp32"))


def memory_of(options: argparse.Namespace) -> float:
    """0: all there is."""
    return float(options.memory_gib if options.memory_gib is not None else 0 if options.device == "cuda" else 2)


def largest(options: argparse.Namespace) -> dict[str, float]:
    recipe = MeasureRecipe(
        batch_sizes=(1,),
        contexts=(options.context - 2,),
        new_tokens=2,
        repeats=1,
        protocol="warm",
        dtype=dtype_of(options),  # type: ignore[arg-type]
        device=options.device,
        memory_gib=memory_of(options),
    )

    subjects = [Subject(PYTHIA_160M, layout) for layout in LAYOUTS.values()]
    results = measure_together(recipe, subjects, Context(Path(), lambda row: None))
    found = {}
    for name, result in zip(LAYOUTS, results, strict=True):
        if not isinstance(result, Outcome):
            raise result
        found[name] = next(row.value or 0.0 for row in result.metrics if row.metric == "largest_batch")
        print(f"{name}: {found[name]:,.0f} sequences of {options.context:,} tokens", flush=True)
    return found


if __name__ == "__main__":
    main()
