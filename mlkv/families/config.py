"""config.json ↔ the decoder's shape and layout. Needs neither torch nor transformers, so plans use it.

`mlkv` counts as a family too, so that one of our checkpoints can be a base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ..layout import KVLayout, Latent, LatentFields
from ..patterns import name_of
from ..shape import DecoderShape
from .files import read_json_object
from .tables import FAMILIES, NEOX, PUBLISHED_MLKV, REQUIRED, Config, Family, Rotary, shown

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
        value = _read(config, family, key)
        if value is None and family.defaults.get(key, "needed") is None:
            continue  # derived from other fields below
        values[name] = _activation(key, value) if name == "activation" else _checked(key, name, value)
    width, heads = values["width"], values["heads"]
    if width % heads:
        raise ValueError(f"{family.fields['width']} = {width}: must be a multiple of the {heads} query heads")
    if config.get("layer_types") not in (None, ["full_attention"] * values["layers"]):
        raise ValueError(
            f"layer_types = {shown(config['layer_types'])}: only full_attention in every layer is supported"
        )
    values = {"head_dim": width // heads, "mlp_width": 4 * width} | values
    if family.rotary:
        values |= _rotary(config, family.rotary, values["head_dim"])
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
        return KVLayout(tuple(sources), tuple(kv_heads), shape.heads, _our_latent(config, shape))
    return family_of(config).layout(config, shape_of(config))


def _our_shape(config: Config) -> DecoderShape:
    needed = {f.name for f in fields(DecoderShape) if f.default is MISSING}
    named = [f.name for f in fields(DecoderShape) if f.name in config or f.name in needed]
    return DecoderShape(**{name: _checked(name, name, _our_field(config, name)) for name in named})


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
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"model_type = {shown(name)}: supported are {', '.join([*FAMILIES, OURS])}")
    family = FAMILIES[name]
    if family is NEOX and "num_key_value_layers" in config:
        family = PUBLISHED_MLKV
    if isinstance(quantised := config.get("quantization_config"), Mapping):
        method = shown(quantised.get("quant_method", "without a quant_method"))
        raise ValueError(
            f"quantization_config = {method}: quantised weights are not supported; save the model dequantised"
        )
    for key, needed in (REQUIRED | family.required).items():
        if config.get(key, needed) != needed:
            only = "models that leave it unset are" if needed is None else f"{key} = {needed} is"
            raise ValueError(f"{key} = {shown(config[key])}: of {name} only {only} supported")
    if config.get("word_embed_proj_dim") not in (None, config.get("hidden_size")):
        raise ValueError(f"word_embed_proj_dim = {shown(config['word_embed_proj_dim'])}: must be hidden_size")
    return family


def _read(config: Config, family: Family, key: str) -> Any:
    if (alias := family.aliases.get(key, key)) in config:
        return config[alias]
    if key not in config and key not in family.defaults:
        raise ValueError(f"{key} is missing from the config.json of a {family.name} model")
    return config.get(key, family.defaults.get(key))


def _activation(key: str, name: Any) -> str:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"{key} = {shown(name)}: supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _checked(key: str, name: str, value: Any) -> Any:
    """`value` of config key `key`. Raises ValueError unless DecoderShape's field `name` can have it."""
    try:
        return _types()[name].validate_python(value, strict=True)
    except ValidationError as error:
        expected = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise ValueError(f"{key} = {shown(value)}: must be {expected}") from None


@cache
def _types() -> dict[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(hint) for name, hint in get_type_hints(DecoderShape, include_extras=True).items()}


def _rotary(config: Config, family: Rotary, head_dim: int) -> dict[str, float]:
    """Base and rotated fraction, from transformers 5's `rope_parameters` or the keys that older files use.

    Raises ValueError for an odd number of rotated dimensions: transformers would rotate one more, at other angles.
    """
    newer = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(newer) or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"{newer} = {shown(rope)}: must be a mapping")
    if nested := [key for key, value in rope.items() if isinstance(value, Mapping)]:
        raise ValueError(f"{newer} = {shown(nested)}: rotation by kinds of layers is not supported")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_type = {shown(kind)}: only unscaled rotary positions (default) are supported")

    def read(key: str, older: str, default: float) -> tuple[str, Any]:
        return (key, rope[key]) if key in rope else (older, config.get(older, default))

    base_key, base = read("rope_theta", family.base, 10_000.0)
    fraction_key, fraction = read("partial_rotary_factor", family.fraction, family.default_fraction)
    if not family.partial:
        if fraction not in (None, 1.0):
            raise ValueError(
                f"{fraction_key} = {shown(fraction)}: transformers leaves it unread here; must be 1.0 or unset"
            )
        fraction_key = "head_dim" if config.get("head_dim") else "hidden_size / num_attention_heads"
        fraction = 1.0
    values = {
        "rotary_base": float(_checked(base_key, "rotary_base", base)),
        "rotary_fraction": float(_checked(fraction_key, "rotary_fraction", fraction)),
    }
    rotated = int(head_dim * values["rotary_fraction"])
    if rotated % 2:
        given = fraction if family.partial else head_dim
        raise ValueError(f"{fraction_key} = {given}: rotates {rotated} of a head's {head_dim} dimensions; must be even")
    return values


def config_of(shape: DecoderShape, layout: KVLayout, name: str) -> Config:
    """`shape_of` backwards: the config.json of family `name`. Raises ValueError if the family has no such model."""
    family = FAMILIES.choose(name)
    if layout.latent:
        raise ValueError(f"family = {name}: cannot express a latent")
    config: dict[str, Any] = {"model_type": name, **dict.fromkeys(family.dropouts, 0.0)}
    config |= {key: value for key, value in family.required.items() if value is not None}
    config |= {key: getattr(shape, ours) for ours, key in family.fields.items()}
    if layout.kv_heads[0] != shape.heads:
        config["num_key_value_heads"] = layout.kv_heads[0]
    if family.rotary:
        fraction = {"partial_rotary_factor": shape.rotary_fraction} if family.rotary.partial else {}
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": shape.rotary_base, **fraction}
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
