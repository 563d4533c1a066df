"""config.json ↔ the decoder's shape and layout. Needs neither torch nor transformers, so plans use it.

`mlkv` counts as a family too, so that one of our checkpoints can be a base.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..layout import KVLayout
from ..shape import DecoderShape
from .tables import FAMILIES, PUBLISHED_MLKV, Config, Family

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


def shape_of(config: Config) -> DecoderShape:
    """The decoder's shape from a parsed config.json. Raises ValueError for a family or variant it does not cover."""
    if config.get("model_type") == OURS:
        return DecoderShape(**{f.name: config[f.name] for f in fields(DecoderShape) if f.name in config})
    family = family_of(config)
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
    return family_of(config).layout(config, shape_of(config))


def family_of(config: Config) -> Family:
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
