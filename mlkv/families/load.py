"""A Hugging Face directory of GPT-NeoX, Llama, GPT-2, OPT or ours → our checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..context import Context, Outcome, StepFailed
from .config import OURS, family_of, layout_of, read_config, shape_of
from .tables import Config
from .weights import from_family, strip

if TYPE_CHECKING:
    from torch import Tensor

    from ..hf import MLKVForCausalLM

    State = dict[str, Tensor]


SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")

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

    Raises StepFailed for an unsupported model, and for weights that are missing, unknown or of another shape.
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
    return {"metrics": [], "facts": {"parameters": model.num_parameters(), "layout": model.layout.name}}


def load_pretrained(source: Path) -> MLKVForCausalLM:
    """The model in a local Hugging Face directory as ours, in float32. Raises ValueError like `import_pretrained`."""
    from ..hf import MLKVForCausalLM, load_checked

    config = read_config(source)
    if config.get("model_type") == OURS:
        return load_checked(source).float()
    family = family_of(config)
    model = MLKVForCausalLM.from_shape(shape_of(config), layout_of(config), seed=0, keys=family.keys)
    theirs = strip(_read_weights(source), family, tied=model.shape.tied)
    model.model.load_state_dict(from_family(theirs, family, model))
    _copy_special_tokens(config, model)
    return model


def copy_companions(source: Path, out: Path) -> None:
    """Copy the tokenizer's files, whichever of them there are."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def _name_tokenizer(source: Path, out: Path) -> None:
    """Write the tokenizer's class down where `source` left it to its model_type (as GPT-2 does), which is now ours."""
    from transformers import AutoTokenizer

    said = out / "tokenizer_config.json"
    config = json.loads(said.read_text()) if said.is_file() else {}
    if "tokenizer_class" not in config and any((out / name).is_file() for name in COMPANIONS):
        config["tokenizer_class"] = type(AutoTokenizer.from_pretrained(source, trust_remote_code=False)).__name__
        said.write_text(json.dumps(config, indent=2))


def _copy_special_tokens(config: Config, model: MLKVForCausalLM) -> None:
    for name in SPECIAL_TOKENS:
        setattr(model.generation_config, name, config.get(name))


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
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = source / f"{name}.index.json"
        if index.is_file():
            return [source / shard for shard in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        if (source / name).is_file():
            return [source / name]
    raise ValueError(f"{source} has no weights: needs model.safetensors or pytorch_model.bin, whole or sharded")
