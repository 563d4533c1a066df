"""What of a model is trained: all of it, the owners' keys and values alone, or low-rank adapters (LoRA, arXiv
2106.09685), which are merged into its weights at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..hf import MLKVForCausalLM
from ..training_recipes import TrainRecipe
from .parts import ADAPTED, is_trained

if TYPE_CHECKING:
    from peft.tuners.lora import LoraModel

FILE = "adapters.safetensors"
"""In a resume checkpoint of a run with adapters, instead of the model: its other weights are those of the start."""


def choose_trained(model: MLKVForCausalLM, recipe: TrainRecipe) -> LoraModel | None:
    """Freeze the weights that `recipe.train` leaves as they are, and add adapters if it names them."""
    if recipe.train == "lora":
        return _with_adapters(model, recipe)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, recipe.train))
    return None


def _with_adapters(model: MLKVForCausalLM, recipe: TrainRecipe) -> LoraModel:
    """Each `W` becomes `W + alpha/rank · B A`, of which `A` begins random (`recipe.seed`) and `B` at 0; no other weight
    is trained."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    config = LoraConfig(r=recipe.lora_rank, lora_alpha=recipe.lora_alpha, target_modules=ADAPTED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return LoraModel(model, config, "default")


def merge(adapters: LoraModel) -> MLKVForCausalLM:
    """The model with its adapters added to its weights, without any trace of them."""
    model: MLKVForCausalLM = adapters.merge_and_unload()
    if hasattr(model, "peft_config"):  # which older versions leave
        del model.peft_config
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save(weights: Mapping[str, Tensor], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, folder / FILE)


def load(model: nn.Module, folder: Path) -> None:
    """Raises ValueError unless the file holds exactly what is trained."""
    own, saved = trained(model), load_file(folder / FILE)
    if own.keys() != saved.keys() or any(own[name].shape != weight.shape for name, weight in saved.items()):
        raise ValueError(f"{folder / FILE} does not hold this run's adapters")
    with torch.no_grad():
        for name, weight in saved.items():
            own[name].copy_(weight)
