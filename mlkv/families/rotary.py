"""How a config.json says that heads are rotated ↔ the decoder's shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..shape import DecoderShape
from .checks import checked
from .family import Config, Rotary, Values, shown, stated

LOCAL, GLOBAL = "sliding_attention", "full_attention"


def read_rotary(config: Config, family: Rotary, values: Values) -> Values:
    """Base, rotated fraction and scaling, from transformers 5's `rope_parameters` or the keys that older files use.

    Raises ValueError for an odd number of rotated dimensions: transformers would rotate one more, at other angles.
    """
    if not isinstance(given := config.get("rope_parameters", {}), Mapping | None):
        raise ValueError(f"rope_parameters = {shown(given)}: must be a mapping")  # beside rope_scaling too
    rope = _rope(config, "rope_scaling" if config.get("rope_scaling") and not family.local else "rope_parameters")
    if family.local:
        return _read_by_kind(config, family, rope, values)
    if nested := [key for key, value in rope.items() if isinstance(value, Mapping)]:
        name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        raise ValueError(f"{name} = {shown(nested)}: rotation by kinds of layers is not supported")
    return _read_one(config, family, rope, values)


def _read_one(config: Config, family: Rotary, rope: Config, values: Values) -> Values:
    base = _either(rope, "rope_theta", config, family.base, family.default_base)
    fraction_key, fraction = _either(rope, "partial_rotary_factor", config, family.fraction, family.default_fraction)
    kind = _kind(rope, family)
    if not family.partial:
        if fraction not in ((None, 1.0) if kind == "default" else (1.0,)):
            raise ValueError(
                f"{fraction_key} = {shown(fraction)}: transformers leaves it unread here; must be 1.0 or unset"
            )
        fraction = 1.0
    if fraction == 1.0:
        fraction_key = "head_dim" if config.get("head_dim") else "hidden_size / num_attention_heads"
    found: Values = {
        "rotary_base": float(checked(base[0], "rotary_base", base[1])),
        "rotary_fraction": float(checked(fraction_key, "rotary_fraction", fraction)),
    }
    head_dim = values["head_dim"]
    rotated = int(head_dim * found["rotary_fraction"])
    if rotated % 2:
        given = head_dim if fraction == 1.0 else fraction
        at_fault = f"{fraction_key} = {given}" if fraction == 1.0 else stated({**config, **rope}, fraction_key, given)
        raise ValueError(f"{at_fault}: rotates {rotated} of a head's {head_dim} dimensions; must be even")
    return found | (_scaling(kind, config, rope, values) if kind != "default" else {})


def _read_by_kind(config: Config, family: Rotary, rope: Config, values: Values) -> Values:
    """Of a family whose local layers have a base of their own (Gemma 3)."""
    assert family.local
    key, default = family.local
    whole, local = (_rope(rope, kind) for kind in (GLOBAL, LOCAL))
    whole = {"rope_type": "default"} | whole | _rope(config, "rope_scaling")
    if whole.get("truncate") is False:
        raise ValueError("truncate = False: transformers leaves it unread here; must be true or unset")
    found = _read_one({**config, "original_max_position_embeddings": _original(whole, values)}, family, whole, values)
    if (kind := local.get("rope_type", local.get("type", "default"))) != "default":
        raise ValueError(f"rope_type = {shown(kind)}: only global layers ({GLOBAL}) can have scaled positions")
    if (fraction := local.get("partial_rotary_factor", 1.0)) not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor = {shown(fraction)}: transformers leaves it unread here; must be 1.0")
    base = _either(local, "rope_theta", config, key, default)
    local_base = float(checked(base[0], "rotary_base", base[1]))
    return found | ({"local_rotary_base": local_base} if values.get("local_layers") else {})


def _rope(config: Config, key: str) -> dict[str, Any]:
    rope = config.get(key) or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"{key} = {shown(rope)}: must be a mapping")
    return dict(rope)


def _kind(rope: Config, family: Rotary) -> str:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" and kind not in family.scalings:
        raise ValueError(
            f"rope_type = {shown(kind)}: supported are {', '.join(('default', *family.scalings))}; take a checkpoint "
            "with one of these"
        )
    return str(kind)


def _either(rope: Config, key: str, config: Config, older: str, default: float) -> tuple[str, Any]:
    return (key, rope[key]) if key in rope else (older, config.get(older, default))


def _original(rope: Config, values: Values) -> Any:
    return rope.get("original_max_position_embeddings", values["context"])


def _scaling(kind: str, config: Config, rope: Config, values: Values) -> Values:
    def number(key: str, field: str, default: float | None = None) -> float:
        if default is None and key not in rope:
            raise ValueError(f"{key} is missing from the config.json, and rope_type = {kind} needs it")
        value = rope.get(key, default)
        if default is not None and not value and type(value) in (int, float, type(None)):
            value = default  # transformers has `or` there
        return float(checked(key, field, float(value) if type(value) is int else value))

    found: Values = {"rotary_scaling": kind, "rotary_factor": number("factor", "rotary_factor")}
    if kind == "linear":
        return found
    # A key beside the mapping comes first, as Phi-3's files have it there.
    key = "original_max_position_embeddings"
    original = config[key] if key in config else _original(rope, values)
    if type(original) is not int or original < 1:
        raise ValueError(f"{key} = {shown(original)}: must be a whole number above 0")
    found["rotary_context"] = checked(key, "rotary_context", original)
    if kind == "llama3":
        names, low, high = (
            ("low_freq_factor", "high_freq_factor"),
            *(number(name, "rotary_low") for name in ("low_freq_factor", "high_freq_factor")),
        )
    else:
        names, low, high = (
            ("beta_slow", "beta_fast"),
            number("beta_slow", "rotary_low", 1.0),
            number("beta_fast", "rotary_high", 32.0),
        )
        found |= {"rotary_size": _yarn_size(rope, found["rotary_factor"]), "rotary_truncate": _truncate(rope)}
    if low >= high:
        if names[0] in rope:
            raise ValueError(f"{names[0]} = {low}: must be below {names[1]} = {high}")
        raise ValueError(f"{names[1]} = {high}: must be above {names[0]} = {low}")
    return found | {"rotary_low": low, "rotary_high": high}


def _truncate(rope: Config) -> bool:
    value = rope.get("truncate", True)
    if type(value) is not bool:
        raise ValueError(f"truncate = {shown(value)}: must be true or false")
    return value


def _yarn_size(rope: Config, factor: float) -> float:
    """By how much rotated queries and keys are larger: 0.1 ln(factor) + 1 (arXiv 2309.00071, section 3.4), or the ratio
    of two such numbers where `mscale` and `mscale_all_dim` are set."""
    given = rope.get("attention_factor")
    if given is not None:
        return float(checked("attention_factor", "rotary_size", given))

    def size(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    scales = [rope.get(key) for key in ("mscale", "mscale_all_dim")]
    if not all(scales):
        return size(1.0)
    above, below = (checked(key, "rotary_size", s) for key, s in zip(("mscale", "mscale_all_dim"), scales, strict=True))
    return float(size(above) / size(below))


def write_rotary(shape: DecoderShape, family: Rotary) -> Config:
    """`read_rotary` backwards."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rotary_base}
    if family.partial:
        rope["partial_rotary_factor"] = shape.rotary_fraction
    if shape.rotary_scaling != "none":
        rope |= {"rope_type": shape.rotary_scaling, "factor": shape.rotary_factor}
    if shape.rotary_scaling in ("llama3", "yarn"):
        low, high = {"llama3": ("low_freq_factor", "high_freq_factor")}.get(
            shape.rotary_scaling, ("beta_slow", "beta_fast")
        )
        rope |= {
            "original_max_position_embeddings": shape.rotary_context,
            low: shape.rotary_low,
            high: shape.rotary_high,
        }
    if shape.rotary_scaling == "yarn":
        rope |= {"attention_factor": shape.rotary_size, "truncate": shape.rotary_truncate}
    if not family.local:
        return {"rope_parameters": rope}
    local = {"rope_type": "default", "rope_theta": shape.local_rotary_base or shape.rotary_base}
    return {"rope_parameters": {GLOBAL: rope, LOCAL: local}}
