"""A Hugging Face directory of GPT-NeoX, Llama, GPT-2, OPT or ours → our checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..context import Context, Outcome, StepFailed
from ..patterns import name_of
from .config import OURS, family_of, layout_of, read_config, shape_of
from .files import load_pickled, read_headers, read_json_object, weight_files
from .tables import OWN, Config, shown
from .weights import check_weights, checked_weights, from_family

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

    config = check_checkpoint(source)
    if config.get("model_type") == OURS:
        return load_checked(source).float()
    family = family_of(config)
    model = MLKVForCausalLM.from_shape(shape_of(config), layout_of(config), seed=0, keys=family.keys)
    theirs = checked_weights(_read_weights(source), family, model.shape, model.layout)
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


def check_checkpoint(source: Path) -> Config:
    """The config.json of a directory that `load_pretrained` can load, so far as headers show it. For plans too: torch
    is imported for pytorch_model.bin alone. Raises ValueError that names the file and what to do."""
    config = read_config(source)
    if (source / "adapter_config.json").exists():
        raise ValueError(
            f"{source} has an adapter (adapter_config.json): merge it into the weights and remove the file"
        )
    shape, layout = shape_of(config), layout_of(config)
    _check_special_tokens(config, "config.json")
    if (source / "generation_config.json").exists():
        _check_special_tokens(read_json_object(source / "generation_config.json"), "generation_config.json")
    found = read_headers(weight_files(source))
    try:
        check_weights(found, OWN if config.get("model_type") == OURS else family_of(config), shape, layout)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return config


def _check_special_tokens(config: Config, file: str) -> None:
    """Raises ValueError where generate() could not use them."""
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(key)
        several = value if key == "eos_token_id" and isinstance(value, list) else [value]
        if any(token is not None and type(token) is not int for token in several):
            raise ValueError(f"{key} = {shown(value)} in {file}: must be the id of a token, or null")


def _read_weights(source: Path) -> State:
    from safetensors.torch import load_file

    state: State = {}
    for path in weight_files(source):
        state |= load_file(path) if path.suffix == ".safetensors" else load_pickled(path)
    return state
