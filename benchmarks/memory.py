"""What fits where: GiB of each device for trainings of 1, 3 and 8 B, by formula. The table of docs/memory.md.

python benchmarks/memory.py
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

from mlkv.families.config import layout_of, shape_of
from mlkv.train.memory import training_memory
from mlkv.training_recipes import TrainRecipe

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.families import published

MODELS = ("Llama-3.2-1B", "Llama-3.2-3B", "Llama-3.1-8B", "Mistral-7B-v0.3", "Qwen2.5-7B", "Qwen3-8B")
COLUMNS: dict[str, tuple[int, dict[str, Any]]] = {
    "1 GPU, all": (1, {}),
    "1 GPU, kv": (1, {"train": "kv"}),
    "1 GPU, lora": (1, {"train": "lora"}),
    "8 GPUs, all, ddp": (8, {}),
    "8 GPUs, all, fsdp": (8, {"strategy": "fsdp"}),
    "the same, teacher": (8, {"strategy": "fsdp", "teacher": "base"}),
}
TOKENS = 2048


def gib(model: str, column: str) -> float:
    config, (processes, changes) = published()[model]["config"], COLUMNS[column]
    shape, layout = shape_of(config), layout_of(config)
    recipe = TrainRecipe(steps=1, batch_size=8, micro_batch=1, gradient_checkpointing=True, **changes)
    base = shape.parameters(layout)
    memory = training_memory(recipe, shape, layout, TOKENS, bf16=True, processes=processes, base_parameters=base)
    return memory.total / 2**30


def table() -> str:
    cells = {(model, column): f"{gib(model, column):.0f}" for model, column in product(MODELS, COLUMNS)}
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    return "\n".join([*lines, *(f"| {m} | {' | '.join(cells[m, column] for column in COLUMNS)} |" for m in MODELS)])


if __name__ == "__main__":
    print(table())
