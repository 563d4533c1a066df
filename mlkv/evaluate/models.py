"""The model of a checkpoint, as every evaluation computes with it."""

from __future__ import annotations

from pathlib import Path

import torch

from ..context import StepFailed
from ..device import default_device
from ..hf import MLKVForCausalLM, load_checked


def load_model(checkpoint: Path) -> MLKVForCausalLM:
    """In float32 on the default device, in evaluation mode. Raises StepFailed for one that cannot be loaded."""
    try:
        model = load_checked(checkpoint, dtype=torch.float32).to(default_device()).eval()
    except ValueError as error:
        raise StepFailed(str(error)) from error
    model.config.use_cache = False  # a text is scored in one pass; generate() makes its own cache
    return model
