"""A Hugging Face directory of GPT-NeoX, Llama, GPT-2, OPT or ours → our checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..context import Context, Outcome, StepFailed
from ..patterns import name_of
from .config import OURS, family_of, layout_of, read_config, shape_of
from .weights import from_family, remove_prefix

if TYPE_CHECKING:
    from torch import Tensor

    from ..hf import MLKVForCausalLM

    State = dict[str, Tensor]


COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def import_pretrained(source: Path, out: Path, ctx: Context) -> Outcome:
    """A local Hugging Face model directory → our checkpoint in `out`, with float32 weights and its tokenizer.

    Raises StepFailed for an unsupported model, and for weights that are missing, unknown, misshapen or not finite.
    """
    ctx.log({"step": 0, "steps": 1})
    try:
        model = load_pretrained(source)
    except ValueError as error:
        raise StepFailed(str(error)) from error
    model.save_pretrained(out)
    copy_companions(source, out)
    _name_tokenizer(source, out)
    ctx.log({"step": 1, "steps": 1})
    return Outcome(facts={"parameters": model.num_parameters(), "layout": name_of(model.layout)})


def load_pretrained(source: Path) -> MLKVForCausalLM:
    """The model in a local Hugging Face directory as ours, in float32. Raises ValueError like `import_pretrained`."""
    from ..hf import MLKVForCausalLM, load_checked, non_finite, read_generation_config

    config = read_config(source)
    if (source / "adapter_config.json").exists():
        raise ValueError(
            f"{source} has an adapter (adapter_config.json): merge it into the weights and remove the file"
        )
    if config.get("model_type") == OURS:
        return load_checked(source).float()
    family = family_of(config)
    model = MLKVForCausalLM.from_shape(shape_of(config), layout_of(config), seed=0, keys=family.keys)
    theirs = remove_prefix(_read_weights(source), family)
    if reason := non_finite(theirs):
        raise ValueError(f"{source}: {reason}")
    model.model.load_state_dict(from_family(theirs, family, model))
    if reason := non_finite(model.state_dict()):  # float64 values that are infinite in float32
        raise ValueError(f"{source}: {reason}")
    model.generation_config = read_generation_config(source)
    return model


def copy_companions(source: Path, out: Path) -> None:
    """Copy the tokenizer's files that exist."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def _name_tokenizer(source: Path, out: Path) -> None:
    """Record the tokenizer's class where `source` leaves it to its model_type (as GPT-2 does), which is now ours."""
    from transformers import AutoTokenizer

    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    if "tokenizer_class" not in config and any((out / name).is_file() for name in COMPANIONS):
        config["tokenizer_class"] = type(AutoTokenizer.from_pretrained(source, trust_remote_code=False)).__name__
        path.write_text(json.dumps(config, indent=2))


def _read_weights(source: Path) -> State:
    import torch
    from safetensors.torch import load_file

    state: State = {}
    for path in _weight_files(source):
        if path.suffix == ".safetensors":
            state |= load_file(path)
        else:
            state |= torch.load(path, map_location="cpu", weights_only=True)
    return state


def _weight_files(source: Path) -> list[Path]:
    """Of several forms the one that transformers loads."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (source / name).is_file():
            return [source / name]
        index = source / f"{name}.index.json"
        if index.is_file():
            return [source / shard for shard in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    raise ValueError(f"{source} has no weights: needs model.safetensors or pytorch_model.bin, whole or sharded")
