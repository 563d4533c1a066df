"""What families read from several config keys together: windows, layers without rotation, caps, scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..shape import FLOAT32, INT64, DecoderShape
from .family import Config, Part, Values, shown

LOCAL, GLOBAL = "sliding_attention", "full_attention"
WINDOW, TYPES = "sliding_window", "layer_types"


def _positive(config: Config, key: str, missing: int | None) -> int | None:
    """A whole number above 0, or null. Raises ValueError for anything else."""
    value = config.get(key, missing)
    if value is not None and (type(value) is not int or not 0 < value <= INT64):
        raise ValueError(f"{key} = {shown(value)}: must be a whole number above 0, or null")
    return value


def _switch(config: Config, key: str) -> bool:
    value = config.get(key, False)
    if type(value) is not bool:
        raise ValueError(f"{key} = {shown(value)}: must be true or false")
    return value


def every_layer_local(missing: int | None) -> Part:
    """All layers have the window that `sliding_window` says. missing: what it is where a config does not say it."""

    def read(config: Config, values: Values) -> Values:
        window = _positive(config, WINDOW, missing)
        return {"window": window, "local_layers": tuple(range(values["layers"]))} if window else {}

    return Part(read, lambda shape: {WINDOW: shape.window or None}, (WINDOW,))


Types = Callable[[Config, Values], list[str]]


def _local_by_type(window_of: Callable[[Config], int | None], default: Types, **written: Any) -> Part:
    """The layers that `layer_types` names have the window. default: the types where the config has none."""

    def read(config: Config, values: Values) -> Values:
        window, types = window_of(config), config.get(TYPES)
        types = default(config, values) if types is None else types
        if (
            not isinstance(types, list)
            or len(types) != values["layers"]
            or any(t not in (LOCAL, GLOBAL) for t in types)
        ):
            raise ValueError(
                f"{TYPES} = {shown(types)}: must be {LOCAL} or {GLOBAL} for each of the {values['layers']} layers"
            )
        local = tuple(layer for layer, kind in enumerate(types) if kind == LOCAL)
        if local and window is None:
            needed = f"{shown(types)}: {LOCAL} needs a {WINDOW}"
            if config.get(TYPES) is not None:
                raise ValueError(f"{TYPES} = {needed}, which is null or switched off")
            raise ValueError(f"{WINDOW} = None: the default of {TYPES} is {needed}")
        return {"window": window, "local_layers": local} if local else {}

    def write(shape: DecoderShape) -> Config:
        types = [LOCAL if layer in shape.local_layers else GLOBAL for layer in range(shape.layers)]
        return {TYPES: types, **({WINDOW: shape.window, **written} if shape.window else {})}

    return Part(read, write, (WINDOW, TYPES))


def _qwen_window(config: Config) -> int | None:
    return _positive(config, WINDOW, 4096) if _switch(config, "use_sliding_window") else None


def _qwen_types(config: Config, values: Values) -> list[str]:
    first = config.get("max_window_layers", 28)
    if type(first) is not int:
        raise ValueError(f"max_window_layers = {shown(first)}: must be a whole number")
    has_window = _qwen_window(config) is not None
    return [LOCAL if has_window and layer >= first else GLOBAL for layer in range(values["layers"])]


QWEN_WINDOWS = _local_by_type(_qwen_window, _qwen_types, use_sliding_window=True)


def _smollm_types(config: Config, values: Values) -> list[str]:
    """Layers that do not rotate are the local ones."""
    has_window = _switch(config, "use_sliding_window") and _positive(config, WINDOW, None) is not None
    return [LOCAL if has_window and i in values["unrotated_layers"] else GLOBAL for i in range(values["layers"])]


SMOLLM_WINDOWS = _local_by_type(lambda config: _positive(config, WINDOW, None), _smollm_types, use_sliding_window=True)


def _every(config: Config, values: Values, pattern: int) -> list[str]:
    """Every so many layers one is not local."""
    return [LOCAL if (layer + 1) % pattern else GLOBAL for layer in range(values["layers"])]


def _gemma3_types(config: Config, values: Values) -> list[str]:
    pattern = config.get("sliding_window_pattern", 6)
    if type(pattern) is not int or pattern < 1:
        raise ValueError(f"sliding_window_pattern = {shown(pattern)}: must be a whole number above 0")
    return _every(config, values, pattern)


def _gemma_window(config: Config) -> int | None:
    return _positive(config, WINDOW, 4096)


GEMMA2_WINDOWS = _local_by_type(_gemma_window, lambda config, values: _every(config, values, 2))
GEMMA3_WINDOWS = _local_by_type(_gemma_window, _gemma3_types)


def _read_no_rope(config: Config, values: Values) -> Values:
    layers, rotates = values["layers"], config.get("no_rope_layers")
    if rotates is None:
        interval = config.get("no_rope_layer_interval", 4)
        if type(interval) is not int or interval < 1:
            raise ValueError(f"no_rope_layer_interval = {shown(interval)}: must be a whole number above 0")
        rotates = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if not isinstance(rotates, list) or len(rotates) < layers or any(type(each) is not int for each in rotates):
        raise ValueError(f"no_rope_layers = {shown(rotates)}: must be 0 or 1 for each of the {layers} layers")
    return {"unrotated_layers": tuple(layer for layer in range(layers) if not rotates[layer])}


def _write_no_rope(shape: DecoderShape) -> Config:
    return {"no_rope_layers": [int(layer not in shape.unrotated_layers) for layer in range(shape.layers)]}


NO_ROPE = Part(_read_no_rope, _write_no_rope, ("no_rope_layers",))

SCALED_EMBEDDING = Part(lambda config, values: {"embedding_scale": values["width"] ** 0.5}, lambda shape: {})


def _read_one_way(config: Config, values: Values) -> Values:
    if config.get("use_bidirectional_attention"):
        given = shown(config["use_bidirectional_attention"])
        raise ValueError(f"use_bidirectional_attention = {given}: tokens attend to earlier ones alone; must be false")
    return {}


ONE_WAY = Part(_read_one_way, lambda shape: {})


def _read_scalar(config: Config, values: Values) -> Values:
    scalar = config.get("query_pre_attn_scalar", 256)
    if type(scalar) is not int or not 0 < scalar <= INT64:
        raise ValueError(f"query_pre_attn_scalar = {shown(scalar)}: must be a whole number above 0")
    return {} if scalar == values["head_dim"] else {"attention_scalar": scalar}


ATTENTION_SCALAR = Part(_read_scalar, lambda shape: {"query_pre_attn_scalar": shape.attention_scalar or shape.head_dim})


def _cap(key: str, field: str, missing: float | None) -> Part:
    def read(config: Config, values: Values) -> Values:
        value = config.get(key, missing)
        if value is None:
            return {}
        if type(value) is not float or not 0 < value <= FLOAT32:
            raise ValueError(f"{key} = {shown(value)}: must be a number with a point above 0, or null")
        return {field: value}

    return Part(read, lambda shape: {key: getattr(shape, field) or None})


ATTENTION_CAP = _cap("attn_logit_softcapping", "attention_cap", 50.0)


def logit_cap(missing: float | None) -> Part:
    return _cap("final_logit_softcapping", "logit_cap", missing)
