"""Export with a plugin for vLLM (`vllm.general_plugins`): a package beside the weights, which pip installs.

The package carries mlkv/vllm_model.py and the modules that it imports, so mlkv need not be installed.
"""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

from .checkpoint import Checkpoint
from .transformers_directory import write as write_transformers

PACKAGE = "mlkv_vllm"
PYPROJECT = f"""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "mlkv-vllm"
version = "1.0"
description = "Models that share keys and values between layers, for vLLM"
requires-python = ">=3.10"

[project.entry-points."vllm.general_plugins"]
mlkv = "{PACKAGE}:register"

[tool.hatch.build.targets.wheel]
packages = ["{PACKAGE}"]
"""
INIT = '''\
"""Registers the decoder with vLLM, which calls `register` in each of its processes."""


def register():
    from vllm import ModelRegistry

    from . import hf  # registers its config with transformers  # noqa: F401

    ModelRegistry.register_model("MLKVForCausalLM", f"{__name__}.vllm_model:MLKVForVllm")
'''
SERVED = frozenset(
    {
        *("vocab_size", "width", "layers", "heads", "head_dim", "mlp_width", "context", "norm", "norm_eps"),
        *("activation", "gated_mlp", "attention_bias", "mlp_bias", "parallel_residual", "positions"),
        *("rotary_fraction", "rotary_base", "position_offset", "tied", "init_std", "kv_norm"),
        *("output_bias", "rotary_scaling", "rotary_factor", "rotary_context", "rotary_low", "rotary_high"),
        *("rotary_truncate", "rotary_size", "norm_place", "qk_norm", "attention_scalar", "attention_cap", "logit_cap"),
        *("embedding_scale", "window", "local_layers", "local_rotary_base", "unrotated_layers"),
    }
)
"""The fields of a shape that mlkv/vllm_model.py computes. Another one must have its default."""


NOT_HELD = {
    "latent": "vLLM has its own layers for latents, and they cannot be shared between layers",
    "apart": "its values have other sources or head counts than its keys, and vLLM shares both or none",
    "reads_above": "vLLM computes layers once, from the lowest, and some read the keys and values of a layer above",
    "reads_unrotated": "keys = unrotated: readers attend to other keys than their owner, and vLLM caches one kind",
    "unequal": "its owners have {counts} KV heads, and vLLM's cache groups need the same number in all that share",
}


def refusal(checkpoint: Checkpoint) -> str | None:
    if reason := checkpoint.refused(NOT_HELD):
        return reason
    shape = checkpoint.shape
    if unknown := [f.name for f in fields(shape) if f.name not in SERVED and getattr(shape, f.name) != f.default]:
        return f"the plugin does not compute {', '.join(unknown)}"
    return None


def write(checkpoint: Checkpoint, out: Path) -> None:
    """Raises ValueError for weights that are damaged."""
    from transformers.dynamic_module_utils import get_relative_import_files

    write_transformers(checkpoint, out)
    package = out / PACKAGE
    package.mkdir()
    model = Path(__file__).parents[1] / "vllm_model.py"
    for module in [model, *map(Path, get_relative_import_files(model))]:
        shutil.copyfile(module, package / module.name)
    (package / "__init__.py").write_text(INIT, "utf-8")
    (out / "pyproject.toml").write_text(PYPROJECT, "utf-8")
