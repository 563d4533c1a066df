"""Kernels of attention at one token, in turns: what `mlkv.attention.attention_kernel` is a rule of.

    python benchmarks/attention_kernels.py [--device cuda] [--context 2048]

For each size: milliseconds of `rows` (the query heads of a KV head as rows of one fused kernel), of `gqa` (the same
kernel, told of groups), of `repeat` (each KV head copied for its query heads) and of `products` (two matrix products
with the weights between them; in bf16 these round the logits, which the others do not), and the fastest. The last line
is one JSON object.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mlkv.attention import attention_kernel, scores_and_values
from mlkv.device import DTYPES

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.turns import arguments, circumstances, in_turns, report

HEADS, WIDTH = 8, 64
SIZES = [(heads, heads, WIDTH, WIDTH) for heads in (1, 2, 4, 8)]
UNEQUAL = [(2, 1, WIDTH, WIDTH), (4, 2, WIDTH, WIDTH), (8, 1, WIDTH, WIDTH), (1, 8, WIDTH, WIDTH)]
LATENTS = [(1, 1, 96, 64), (1, 1, 256, 256), (1, 1, 288, 256)]


def rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q_BGRK = q.squeeze(2).unflatten(1, (k.shape[1], -1))
    return functional.scaled_dot_product_attention(q_BGRK, k, v).flatten(1, 2).unsqueeze(2)


def gqa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def repeat(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = max(k.shape[1], v.shape[1])
    return rows(q, *(each.repeat_interleave(heads // each.shape[1], 1) for each in (k, v)))


def rivals(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], Tensor]]:
    kernels: dict[str, Callable[..., Tensor]] = {"products": scores_and_values}
    if k.shape[1] == v.shape[1]:
        kernels |= {"rows": rows, "gqa": gqa}
    else:
        kernels["repeat"] = repeat
    return {name: partial(kernel, q, k, v) for name, kernel in kernels.items()}


@torch.inference_mode()
def measured(
    batch: int, size: tuple[int, int, int, int], dtype: torch.dtype, device: str, context: int, rounds: int
) -> dict[str, Any]:
    key_heads, value_heads, key_width, value_width = size
    q = torch.randn(batch, HEADS, 1, key_width, dtype=dtype, device=device)
    k = torch.randn(batch, key_heads, context, key_width, dtype=dtype, device=device)
    is_latent = key_heads == value_heads and size not in SIZES
    fresh = torch.randn(batch, value_heads, context, value_width, dtype=dtype, device=device)
    v = k[..., -value_width:] if is_latent else fresh

    def waited(kernel: Callable[[], Tensor]) -> None:
        kernel()
        if device == "cuda":
            torch.cuda.synchronize()

    turns = {name: partial(waited, kernel) for name, kernel in rivals(q, k, v).items()}
    # One thread: its processor time is the kernel's time, whatever else the machine does.
    clock = time.perf_counter if device == "cuda" else time.process_time
    milliseconds = {name: 1000 * median(seconds) for name, seconds in in_turns(turns, rounds, clock=clock).items()}
    fastest = min(milliseconds, key=milliseconds.__getitem__)
    return milliseconds | {"fastest": fastest, "rule": attention_kernel(q, k, v)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    where = circumstances()
    torch.set_num_threads(1)
    cells: dict[str, Any] = {}
    for dtype, batch, size in product(("fp32", "bf16"), (1, 8, 32), SIZES + UNEQUAL + LATENTS):
        name = f"{dtype}, batch {batch}, heads {size[0]} and {size[1]}, widths {size[2]} and {size[3]}"
        cells[name] = measured(batch, size, DTYPES[dtype], options.device, options.context, options.rounds)
        print(name, cells[name], flush=True)
    suffix = "-cuda" if options.device == "cuda" else ""
    report(f"kernels{suffix}", where, {"context": options.context, "threads": 1, "cells": cells}, options.save)


if __name__ == "__main__":
    main()
