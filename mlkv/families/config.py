"""config.json ↔ the decoder's shape and layout. Needs neither torch nor transformers, so plans use it.

`mlkv` counts as a family too, so that one of our checkpoints can be a base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from ..layout import KVLayout, Latent, LatentFields
from ..patterns import name_of
from ..shape import DecoderShape
from .checks import checked
from .family import DERIVED, REQUIRED, Config, Family, Grouped, shown, stated
from .files import read_json_object
from .rotary import read_rotary, write_rotary
from .tables import FAMILIES, LACKING, NEOX, PUBLISHED_MLKV

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
        return _our_shape(config)
    family = family_of(config)
    values: dict[str, Any] = {}
    for name, key in family.fields.items():
        default = family.defaults.get(key, "needed")
        key, value = _read(config, family, key)
        if value is DERIVED or (value is None and default is None):
            continue  # derived from other fields below
        values[name] = _activation(key, value, family) if name == "activation" else checked(key, name, value)
    width, heads = values["width"], values["heads"]
    if width % heads:
        key, _ = _read(config, family, family.fields["width"])
        raise ValueError(f"{key} = {width}: must be a multiple of the {heads} query heads")
    is_global = config.get("layer_types") in (None, ["full_attention"] * values["layers"])
    if not is_global and not any("layer_types" in part.keys for part in family.parts):
        raise ValueError(
            f"layer_types = {shown(config['layer_types'])}: only full_attention in every layer is supported"
        )
    values = {"head_dim": width // heads, "mlp_width": 4 * width} | values
    for part in family.parts:
        values |= part.read(config, values)
    if family.rotary:
        values |= read_rotary(config, family.rotary, values)
    return DecoderShape(**values, **family.fixed)


def layout_of(config: Config) -> KVLayout:
    """The KV layout of the pretrained model itself: MHA, or GQA where the config says so. Raises like `shape_of`."""
    if config.get("model_type") == OURS:
        shape = _our_shape(config)
        if config.get("keys", "rotated") not in ("rotated", "unrotated"):
            raise ValueError(f"keys = {shown(config['keys'])}: must be rotated or unrotated")
        sources, kv_heads = _our_integers(config, "kv_source_layers"), _our_integers(config, "kv_heads")
        if len(sources) != shape.layers:
            raise ValueError(f"kv_source_layers has {len(sources)} entries: the decoder has {shape.layers} layers")
        value_sources, value_heads = (
            tuple(_our_integers(config, name)) if config.get(name) else None
            for name in ("value_source_layers", "value_heads")
        )
        latent = _our_latent(config, shape)
        passes = [
            _our_field(config, name) if name in config else None for name in ("forward_passes", "backward_passes")
        ]
        if any(each is not None and type(each) is not int for each in passes):
            raise ValueError(f"forward_passes, backward_passes = {shown(passes)}: must be integers")
        return KVLayout(tuple(sources), tuple(kv_heads), shape.heads, latent, value_sources, value_heads, *passes)
    return family_of(config).layout(config, shape_of(config))


def _our_shape(config: Config) -> DecoderShape:
    needed = {f.name for f in fields(DecoderShape) if f.default is MISSING}
    named = [f.name for f in fields(DecoderShape) if f.name in config or f.name in needed]
    given = {name: _our_field(config, name) for name in named}
    return DecoderShape(
        **{name: checked(name, name, tuple(v) if isinstance(v, list) else v) for name, v in given.items()}
    )


def _our_integers(config: Config, key: str) -> list[int]:
    value = _our_field(config, key)
    if not isinstance(value, list) or any(type(number) is not int for number in value):
        raise ValueError(f"{key} = {shown(value)}: must be a list of integers")
    return value


def _our_latent(config: Config, shape: DecoderShape) -> Latent | None:
    given = config.get("latent")
    if given is None:
        return None
    if not isinstance(given, Mapping) or given.keys() != get_type_hints(LatentFields).keys():
        raise ValueError(f"latent = {shown(given)}: must have {', '.join(get_type_hints(LatentFields))}, and no more")
    ranks, rotary_dims, shared = _our_integers(given, "ranks"), given["rotary_dims"], given["shared"]
    if type(rotary_dims) is not int or type(shared) is not bool:
        raise ValueError(f"latent = {shown(given)}: rotary_dims must be an integer, and shared true or false")
    latent = Latent(tuple(ranks), rotary_dims, shared)
    shape.check_latent(latent)
    if config.get("keys") == "unrotated":
        raise ValueError("keys = unrotated: a latent needs rotated ones")
    return latent


def _our_field(config: Config, key: str) -> Any:
    if key not in config:
        raise ValueError(f"{key} is missing from the config.json of a {OURS} model")
    return config[key]


def family_of(config: Config) -> Family:
    name = config.get("model_type")
    if isinstance(name, str) and name in LACKING and name not in FAMILIES:
        raise ValueError(f"model_type = {name}: {LACKING[name]}")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"{stated(config, 'model_type', name)}: supported are {', '.join([*FAMILIES, OURS])}")
    family = FAMILIES[name]
    if family is NEOX and "num_key_value_layers" in config:
        family = PUBLISHED_MLKV
    if isinstance(quantised := config.get("quantization_config"), Mapping):
        method = shown(quantised.get("quant_method", "without a quant_method"))
        raise ValueError(
            f"quantization_config = {method}: quantised weights are not supported; save the model dequantised"
        )
    read = {key for part in family.parts for key in part.keys}
    for key, needed in (REQUIRED | family.required).items():
        if key not in read and config.get(key, needed) != needed:
            only = "models that leave it unset are" if needed is None else f"{key} = {needed} is"
            raise ValueError(f"{key} = {shown(config[key])}: of {name} only {only} supported")
    if config.get("word_embed_proj_dim") not in (None, config.get("hidden_size")):
        raise ValueError(f"word_embed_proj_dim = {shown(config['word_embed_proj_dim'])}: must be hidden_size")
    return family


def _read(config: Config, family: Family, key: str) -> tuple[str, Any]:
    """The name under which the config has `key`, and its value or default."""
    if (alias := family.aliases.get(key, key)) in config:
        return alias, config[alias]
    if key not in config and key not in family.defaults:
        raise ValueError(f"{key} is missing from the config.json of a {family.name} model")
    return key, config.get(key, family.defaults.get(key))


def _activation(key: str, name: Any, family: Family) -> str:
    known = ACTIVATIONS | family.activations
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{key} = {shown(name)}: supported are {', '.join(known)}")
    return known[name]


def config_of(shape: DecoderShape, layout: KVLayout, name: str) -> Config:
    """`shape_of` backwards: the config.json of family `name`. Raises ValueError if the family has no such model."""
    family = FAMILIES.choose(name)
    if layout.latent:
        raise ValueError(f"family = {name}: cannot express a latent")
    if layout.apart:
        raise ValueError(f"family = {name}: cannot express the layout {name_of(layout)} (keys and values apart)")
    if layout.reads_above:
        raise ValueError(f"family = {name}: cannot express the layout {name_of(layout)} (layers that read from above)")
    config: dict[str, Any] = {"model_type": name, **dict.fromkeys(family.dropouts, 0.0)}
    config |= {key: value for key, value in family.required.items() if value is not None}
    config |= {key: getattr(shape, ours) for ours, key in family.fields.items()}
    if shape.activation == "gelu_new":
        config[family.fields["activation"]] = family.gelu
    if isinstance(family.layout, Grouped) or layout.kv_heads[0] != shape.heads:
        config["num_key_value_heads"] = layout.kv_heads[0]
    for part in family.parts:
        config |= part.write(shape)
    if family.rotary:
        config |= write_rotary(shape, family.rotary)
    try:
        shape_read, layout_read = shape_of(config), layout_of(config)
    except ValueError as error:
        raise ValueError(f"family = {name}: {error}") from None
    lost = [f.name for f in fields(shape) if getattr(shape_read, f.name) != getattr(shape, f.name)]
    if lost or layout_read != layout:
        raise ValueError(f"family = {name}: cannot express {', '.join(lost) or f'the layout {name_of(layout)}'}")
    return config


def read_config(source: Path) -> Config:
    """The config.json of a checkpoint directory. Raises ValueError that names the file and what is wrong."""
    if not (source / "config.json").exists():
        raise ValueError(f"{source} has no readable config.json")
    return read_json_object(source / "config.json")
