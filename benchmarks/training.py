"""Training of ours beside transformers' Trainer with GPTNeoXForCausalLM of the same shape.

    python benchmarks/training.py                  # CPU, one thread: 70 M parameters, 2,048 tokens a step
    python benchmarks/training.py --device cuda    # MFU of Pythia-160M's and 410M's shapes, bf16

Each rival runs in a process of its own, as a process has one peak, and the processes alternate. Both have a vocabulary
of 50,304, random rows of tokens, bf16 autocast, fused AdamW with the same numbers, the same threads; ours has
efficiency=auto. Time is the median of the steps after the first two; memory the most that the process held at once
(resident on a CPU, allocated tensors on CUDA). The last line is one JSON object.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.turns import arguments, circumstances, ratio, report
from mlkv.context import Context
from mlkv.layout import mha
from mlkv.shape import DecoderShape
from mlkv.train.step import run as train
from mlkv.train.utilisation import flops_per_token, mfu
from mlkv.training_recipes import TrainRecipe
from tests.support.blocks import write_blocks

SIZES: dict[str, dict[str, Any]] = {
    "70m": {"width": 512, "layers": 6, "heads": 8, "head_dim": 64, "mlp_width": 2048},
    "160m": {"width": 768, "layers": 12, "heads": 12, "head_dim": 64, "mlp_width": 3072},
    "410m": {"width": 1024, "layers": 24, "heads": 16, "head_dim": 64, "mlp_width": 4096},
}
VOCABULARY, LR, WARMUPS = 50_304, 1e-4, 2


def shape_of(size: str, length: int) -> DecoderShape:
    return DecoderShape(**SIZES[size], vocab_size=VOCABULARY, context=length, rotary_fraction=0.25)


def ours(folder: Path, size: str, rows: int, length: int, steps: int, precision: Any) -> list[float]:
    """Seconds of each step."""
    corpus, ends = write_blocks(folder / "corpus", rows * steps, length, VOCABULARY), [time.perf_counter()]
    context = Context(work=folder / "work", log=lambda _row: ends.append(time.perf_counter()))
    recipe = TrainRecipe(
        steps=steps, batch_size=rows, lr=LR, schedule="constant", warmup=0.0, precision=precision, log_every=1,
        efficiency="auto",
    )  # fmt: skip
    train(recipe, folder / "out", context, corpus=corpus, start=None, shape=shape_of(size, length))
    return [end - start for start, end in pairwise(ends)]


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends = [time.perf_counter()]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def stock(folder: Path, size: str, rows: int, length: int, steps: int, precision: Any) -> list[float]:
    shape, clock = shape_of(size, length), _Clock()
    config = GPTNeoXConfig(
        hidden_size=shape.width, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        intermediate_size=shape.mlp_width, vocab_size=VOCABULARY, max_position_embeddings=length,
    )  # fmt: skip
    ids = torch.randint(VOCABULARY, (rows * steps, length), generator=torch.Generator().manual_seed(0))
    settings = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=rows, learning_rate=LR,
        lr_scheduler_type="constant", weight_decay=0.1, adam_beta2=0.95, bf16=precision == "bf16",
        optim="adamw_torch_fused", use_cpu=not torch.cuda.is_available(), report_to="none", save_strategy="no",
        logging_strategy="steps", logging_steps=1, disable_tqdm=True, torch_compile=torch.cuda.is_available(),
    )  # fmt: skip
    data: Any = [{"input_ids": row, "labels": row} for row in ids]
    Trainer(GPTNeoXForCausalLM(config), settings, train_dataset=data, callbacks=[clock]).train()
    return [end - start for start, end in pairwise(clock.ends)]


RIVALS = {"ours": ours, "stock": stock}


def run(rival: str, *sizes: str) -> dict[str, float]:
    """A rival in a process of its own: tokens per second and the peak in bytes."""
    done = subprocess.run([sys.executable, __file__, "--rival", rival, *sizes], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def as_rival(name: str, size: str, rows: int, length: int, steps: int, precision: str) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        seconds = RIVALS[name](Path(folder), size, rows, length, steps, precision)[WARMUPS:]
    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens_per_second": rows * length / median(seconds), "peak": peak}))


def in_alternation(rounds: int, *sizes: str) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in RIVALS}
    for number in range(rounds):
        for name in sorted(RIVALS, reverse=bool(number % 2)):
            found[name].append(run(name, *sizes))
    return found


def numbers_of(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    columns = {name: {key: [row[key] for row in rows] for key in rows[0]} for name, rows in found.items()}
    own, other = columns["ours"], columns["stock"]
    return {
        "ratio": ratio(own["tokens_per_second"], other["tokens_per_second"]),
        "peak_ratio": ratio(own["peak"], other["peak"]),
        **{f"{name}_tokens_per_second": median(column["tokens_per_second"]) for name, column in columns.items()},
        **{f"{name}_peak_gib": median(column["peak"]) / 2**30 for name, column in columns.items()},
    }


def on_gpu(rounds: int) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for size, rows in (("160m", 32), ("410m", 16)):
        own = numbers_of(in_alternation(rounds, size, str(rows), "2048", "30", "bf16"))
        flops = flops_per_token(shape := shape_of(size, 2048), mha(shape.layers, shape.heads), 2048)
        for name in RIVALS:
            own[f"{name}_mfu"] = mfu(own[f"{name}_tokens_per_second"], flops, torch.device("cuda"))
        numbers |= {f"{key}_{size}": value for key, value in own.items()}
    return numbers


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--rival", nargs=6, help="one rival, in this process")
    given = parser.parse_args()
    if given.rival:
        name, size, *counts, precision = given.rival
        rows, length, steps = map(int, counts)
        return as_rival(name, size, rows, length, steps, precision)
    where = circumstances()
    if given.device == "cuda":
        return report("training-cuda", where, on_gpu(given.rounds), given.save)
    found = in_alternation(given.rounds, "70m", "4", "512", str(given.steps), given.precision)
    report("training", where, numbers_of(found), given.save)


if __name__ == "__main__":
    main()
