"""GPT-NeoX, Llama, GPT-2 and OPT ↔ the decoder, both ways, from the tables in `family_tables`.

`shape_of` and `layout_of` need a parsed config.json and nothing else, so plans use them; torch and transformers are
imported where weights are touched. `mlkv` counts as a family too, so that one of our checkpoints can be a base.

Legend: `D` width, `H` query heads, `K` head width.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .context import Context, Outcome, StepFailed
from .family_tables import FAMILIES, PUBLISHED_MLKV, Config, Family
from .layout import KVLayout
from .shape import DecoderShape

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from .hf import MLKVForCausalLM

    State = dict[str, Tensor]

OURS = "mlkv"

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

BUFFERS = re.compile(r"(^|\.)(attention|attn)\.(bias|masked_bias)$|(^|\.)rotary_emb\.\w+$")
"""Masks and rotary tables that older files hold beside the weights."""

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


def shape_of(config: Config) -> DecoderShape:
    """The decoder's shape from a parsed config.json. Raises ValueError for a family or variant it does not cover."""
    if config.get("model_type") == OURS:
        return DecoderShape(**{f.name: config[f.name] for f in fields(DecoderShape) if f.name in config})
    family = _family_of(config)
    values = {ours: _read(config, family, theirs) for ours, theirs in family.fields.items()}
    values["activation"] = _activation(values["activation"])
    values["head_dim"] = values.get("head_dim") or values["width"] // values["heads"]
    values["mlp_width"] = values["mlp_width"] or 4 * values["width"]
    if family.fixed["positions"] == "rotary":
        values |= _rotary(config, family)
    return DecoderShape(**values, **family.fixed)


def layout_of(config: Config) -> KVLayout:
    """The KV layout of the pretrained model itself: MHA, or GQA where the config says so. Raises like `shape_of`."""
    if config.get("model_type") == OURS:
        return KVLayout(tuple(config["kv_source_layers"]), tuple(config["kv_heads"]), config["heads"])
    return _family_of(config).layout(config, shape_of(config))


def _family_of(config: Config) -> Family:
    name = config.get("model_type")
    if name not in FAMILIES:
        raise ValueError(f"model_type = {name}: supported are {', '.join([*FAMILIES, OURS])}")
    family = PUBLISHED_MLKV if "num_key_value_layers" in config else FAMILIES[name]
    for key, needed in family.required.items():
        if config.get(key, needed) != needed:
            raise ValueError(f"{key} = {config[key]}: of {name} only {key} = {needed} is supported")
    if config.get("word_embed_proj_dim", config.get("hidden_size")) != config.get("hidden_size"):
        raise ValueError(f"word_embed_proj_dim = {config['word_embed_proj_dim']}: must be hidden_size")
    return family


def _read(config: Config, family: Family, key: str) -> Any:
    if key not in config and key not in family.defaults:
        raise ValueError(f"{key} is missing from the config.json of a {family.name} model")
    return config.get(key, family.defaults.get(key))


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation = {name}: supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _rotary(config: Config, family: Family) -> dict[str, float]:
    """Base and rotated fraction, from transformers 5's `rope_parameters` or the keys that older files use."""
    rope: Config = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_type = {kind}: only unscaled rotary positions (default) are supported")
    base = rope.get("rope_theta", config.get("rotary_emb_base", config.get("rope_theta", 10_000.0)))
    fraction = rope.get("partial_rotary_factor", _read(config, family, "rotary_pct"))
    return {"rotary_base": float(base), "rotary_fraction": float(fraction)}


def config_of(shape: DecoderShape, layout: KVLayout, name: str) -> dict[str, Any]:
    """`shape_of` backwards: the config.json of family `name`. Raises ValueError if the family has no such model."""
    if name not in FAMILIES:
        raise ValueError(f"family = {name}: export knows {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    config: dict[str, Any] = {"model_type": name, **family.required}
    config |= {theirs: getattr(shape, ours) for ours, theirs in family.fields.items()}
    if layout.kv_heads[0] != shape.heads:
        config["num_key_value_heads"] = layout.kv_heads[0]
    if shape.positions == "rotary":
        config["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": shape.rotary_base,
            "partial_rotary_factor": shape.rotary_fraction,
        }
    lost = [f.name for f in fields(shape) if getattr(shape_of(config), f.name) != getattr(shape, f.name)]
    if lost or layout_of(config) != layout:
        raise ValueError(f"family = {name}: cannot express {', '.join(lost) or f'the layout {layout.name}'}")
    return config


def read_config(source: Path) -> dict[str, Any]:
    try:
        return json.loads((source / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{source} has no readable config.json: {error}") from error


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
    from .hf import MLKVForCausalLM, load_checked

    config = read_config(source)
    if config.get("model_type") == OURS:
        return load_checked(source).float()
    family = _family_of(config)
    model = MLKVForCausalLM.from_shape(shape_of(config), layout_of(config), seed=0, keys=family.keys)
    theirs = _strip(_read_weights(source), family, tied=model.shape.tied)
    model.model.load_state_dict(_from_family(theirs, family, model))
    _copy_special_tokens(config, model)
    return model


def to_family(model: MLKVForCausalLM, name: str) -> PreTrainedModel:
    """The same weights as transformers' own model of family `name`. Raises ValueError if that has no such layout."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = config_of(model.shape, model.layout, name)
    config |= {token: getattr(model.generation_config, token) for token in SPECIAL_TOKENS}
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=model.dtype)
    written = _to_family(model.model.state_dict(), FAMILIES[name], model.shape.heads)
    theirs.load_state_dict(_dress(written, FAMILIES[name], set(theirs.state_dict())))
    theirs.generation_config = model.generation_config
    return theirs


def export_pretrained(checkpoint: Path, out: Path, name: str) -> None:
    """Write our checkpoint as a Hugging Face directory of family `name`. Raises ValueError like `to_family`."""
    from .hf import load_checked

    to_family(load_checked(checkpoint), name).save_pretrained(out)
    copy_companions(checkpoint, out)


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


def _strip(state: State, family: Family, *, tied: bool) -> State:
    """Drop prefixes and buffers, and call the output head `head`. A tied head's copy in the file is dropped too."""
    heads = {f"{name}.weight" for name in family.heads}
    stripped: State = {}
    for key, tensor in state.items():
        if key in heads:
            stripped |= {} if tied else {"head.weight": tensor}
        elif not BUFFERS.search(key):
            prefix = next((p for p in family.prefixes if key.startswith(p)), "")
            stripped[key.removeprefix(prefix)] = tensor
    return stripped


def _dress(state: State, family: Family, keys: set[str]) -> State:
    """`_strip` backwards, with the head called as `keys` has it."""
    head = next(f"{name}.weight" for name in family.heads if f"{name}.weight" in keys)
    return {head if key == "head.weight" else family.prefixes[0] + key: tensor for key, tensor in state.items()}


def _from_family(theirs: State, family: Family, model: MLKVForCausalLM) -> State:
    """Our decoder's state from stripped family weights. Raises ValueError if any is missing, unknown or misshapen."""
    ours, used = model.model.state_dict(), set()
    for key, tensor in ours.items():
        if key == "head.weight" and model.shape.tied:
            ours[key] = theirs[f"{family.names['embed']}.weight"]
            continue
        name, part = _their_name(key, family)
        if name not in theirs:
            raise ValueError(f"missing weight: {name} (for {key})")
        used.add(name)
        ours[key] = _unpack(_turn(theirs[name], name, family), family, model.shape.heads, part)
        if ours[key].shape != tensor.shape:
            raise ValueError(f"{name} has shape {list(ours[key].shape)}, the config says {list(tensor.shape)}")
    if unknown := sorted(set(theirs) - used):
        raise ValueError(f"unknown weights: {', '.join(unknown)}")
    return ours


def _to_family(ours: State, family: Family, heads: int) -> State:
    parts: dict[str, list[Tensor]] = {}
    for key, tensor in ours.items():
        # State dicts list q, k and v in this order, so their parts gather in it.
        parts.setdefault(_their_name(key, family)[0], []).append(tensor)
    return {name: _turn(_pack(tensors, family, heads), name, family) for name, tensors in parts.items()}


def _their_name(key: str, family: Family) -> tuple[str, str | None]:
    """`blocks.3.attention.q.bias` → the weight that holds it and, where that is fused, which part (`q`) of it."""
    if not key.startswith("blocks."):
        module, kind = key.rsplit(".", 1)
        return f"{family.names.get(module, module)}.{kind}", None
    _, layer, module_kind = key.split(".", 2)
    module, kind = module_kind.rsplit(".", 1)
    part = module[-1] if family.fused and module in ("attention.q", "attention.k", "attention.v") else None
    theirs = family.names[".attention.qkv" if part else f".{module}"]
    return f"{family.names['blocks']}.{layer}.{theirs}.{kind}", part


def _turn(tensor: Tensor, name: str, family: Family) -> Tensor:
    """Transpose the matrices that the family stores as `[in, out]`; its own inverse."""
    in_layer = name.startswith(f"{family.names['blocks']}.")
    return tensor.t().contiguous() if family.transposed and in_layer and tensor.dim() == 2 else tensor


def _unpack(tensor: Tensor, family: Family, heads: int, part: str | None) -> Tensor:
    if part is None:
        return tensor
    index = "qkv".index(part)
    if family.fused == "stacked":
        return tensor.chunk(3)[index]
    return tensor.unflatten(0, (heads, 3, -1))[:, index].flatten(0, 1)


def _pack(tensors: list[Tensor], family: Family, heads: int) -> Tensor:
    import torch

    if len(tensors) == 1:
        return tensors[0]
    if family.fused == "stacked":
        return torch.cat(tensors)
    return torch.stack([part.unflatten(0, (heads, -1)) for part in tensors], dim=1).flatten(0, 2)
