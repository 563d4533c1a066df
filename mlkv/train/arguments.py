"""What transformers and torch make of a recipe's values, and the check, without a model, that they take them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

from ..training_recipes import TrainRecipe
from . import sharded
from .prefetch import PREFETCH


def training_arguments(
    recipe: TrainRecipe, steps: int, folder: Path, *, precision: str, processes: int, cpu: bool
) -> TrainingArguments:
    """transformers' arguments of a run of `steps` steps in each of its processes. Raises ValueError."""
    micro_batch = recipe.micro_batch_size(processes)
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=recipe.batch_size // (micro_batch * processes),
        learning_rate=recipe.lr,
        max_grad_norm=recipe.grad_clip,
        seed=recipe.seed,
        bf16=precision == "bf16",
        torch_compile=bool(recipe.compile),
        use_cpu=cpu,
        ddp_find_unused_parameters=False,
        **sharded.fsdp_arguments(recipe.strategy, processes),
        dataloader_pin_memory=not cpu,
        **({} if cpu or recipe.teacher_stored else PREFETCH),
        remove_unused_columns=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def optimizer(recipe: TrainRecipe, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW; biases and norm weights do not decay. Raises ValueError."""
    every = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in every if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in every if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=True)


def epoch_order(seed: int, epoch: int) -> np.random.Generator:
    """What the order of the rows in an epoch is drawn from. Raises ValueError."""
    return np.random.Generator(np.random.PCG64([seed, epoch]))


def check(recipe: TrainRecipe) -> None:
    """Raises ValueError where a run with these values could not begin, on whatever machine and with how many processes.

    What depends on a machine (bf16 on its GPU, its processes) is left to it.
    """
    environment = dict(os.environ)  # transformers leaves notes for accelerate in it
    try:
        precision = "bf16" if recipe.precision == "bf16" else "fp32"
        training_arguments(recipe, recipe.steps or 1, Path(), precision=precision, processes=1, cpu=True)
        optimizer(recipe, [torch.nn.Parameter(torch.zeros(1, 1))])
        epoch_order(recipe.seed, 0)
        torch.Generator().manual_seed(recipe.seed)
    except (TypeError, OverflowError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    finally:
        os.environ.clear()
        os.environ.update(environment)
