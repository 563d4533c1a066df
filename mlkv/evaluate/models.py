"""The model and the tokenizer of a checkpoint, as every evaluation computes with them.

A process scores several tasks of a checkpoint, and often several checkpoints of one shape. So the last model stays: the
next task on its checkpoint finds it, and a checkpoint with the same configuration is read into it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..context import StepFailed
from ..corpus import tokenizer as tokenizers
from ..device import default_device
from ..hf import MLKVForCausalLM, load_checked, non_finite, read_generation_config

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def load_model(checkpoint: Path) -> MLKVForCausalLM:
    """In float32 on the default device, in evaluation mode. Raises StepFailed for one that cannot be loaded."""
    try:
        model = load_checked(checkpoint, dtype=torch.float32).to(default_device()).eval()
    except ValueError as error:
        raise StepFailed(str(error)) from error
    model.config.use_cache = False  # a text is scored in one pass; generate() makes its own cache
    return model


@dataclass
class LastModel:
    """The model that was asked for last. `loads` counts how often weights were read, `builds` how often a model was
    made for them."""

    loads: int = 0
    builds: int = 0
    _model: MLKVForCausalLM | None = None
    _of: tuple[Path, int] | None = None
    _config: bytes = b""

    def of(self, checkpoint: Path) -> MLKVForCausalLM:
        """As `load_model`. A checkpoint that replaced another one at its path is read anew."""
        of = checkpoint.resolve(), (checkpoint / CONFIG).stat().st_mtime_ns
        if self._model is not None and of == self._of:
            return self._model
        model, config = self._model, (checkpoint / CONFIG).read_bytes()
        self._model, self.loads = None, self.loads + 1  # what fails half-way is not to be found by the next task
        if model is None or config != self._config or not _read_into(model, checkpoint):
            model = None  # its memory is needed
            model, self.builds = load_model(checkpoint), self.builds + 1
        self._model, self._of, self._config = model, of, config
        return model


def _read_into(model: MLKVForCausalLM, checkpoint: Path) -> bool:
    """Put a checkpoint's weights in the place of a model's with the same configuration: bit for bit those of a new
    model. False where they do not fit, or lie in several files; `load_model` then says what is wrong."""
    if not (checkpoint / WEIGHTS).is_file():
        return False
    weights, places = load_file(checkpoint / WEIGHTS), model.state_dict()
    tied = model._tied_weights_keys if model.shape.tied else {}
    if not weights.keys() <= places.keys() or not places.keys() - weights.keys() <= tied.keys():
        return False
    if any(weight.shape != places[name].shape for name, weight in weights.items()) or non_finite(weights):
        return False
    for name, weight in weights.items():
        places[name].copy_(weight)
    try:
        model.generation_config = read_generation_config(checkpoint)
    except ValueError:
        return False
    return True


@dataclass
class LastTokenizer:
    """The tokenizer that was asked for last, and what it was asked to encode: the checkpoints of a sweep have one."""

    encoded: dict[tuple[Any, ...], list[int]] = field(default_factory=dict)
    digest: str = ""
    _tokenizer: Any = None

    def of(self, checkpoint: Path) -> Any:
        """Raises StepFailed as the tokenizer's `load`."""
        whole = hashlib.sha256()
        for name in tokenizers.FILES:
            path = checkpoint / name
            whole.update(f"{name} {path.stat().st_size if path.is_file() else None}\n".encode())
            whole.update(path.read_bytes() if path.is_file() else b"")
        if self._tokenizer is None or whole.hexdigest() != self.digest:
            self._tokenizer, self.encoded = tokenizers.load(checkpoint), {}
            self.digest = whole.hexdigest()
        return self._tokenizer
