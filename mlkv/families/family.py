"""What a family is: how it writes its config.json and names its weights.

Legend: `D` width, `H` query heads, `K` head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..layout import KVLayout, mha
from ..shape import DecoderShape

Config = Mapping[str, Any]
"""A config.json, parsed."""


@dataclass(frozen=True)
class Rotary:
    """The config keys that say how a family rotates, unless transformers 5's `rope_parameters` do."""

    base: str
    fraction: str
    default_fraction: float
    partial: bool
    """Whether a part of a head can be rotated; if not, transformers ignores a fraction and rotates all of it."""
    default_base: float = 10_000.0
    scalings: tuple[str, ...] = ("linear", "llama3", "yarn")
    """How it can be slowed for longer contexts."""
    local: tuple[str, float] | None = None
    """The key of the base of local layers, and its default, where they have one of their own; `rope_parameters` then
    has a mapping for each kind of layers."""


Values = dict[str, Any]
"""Fields of DecoderShape, by name."""


@dataclass(frozen=True)
class Part:
    """Fields of DecoderShape that are not one config key each.

    read: from a config and the fields that are known by then. Raises ValueError that names the key.
    write: the keys of a shape.
    keys: those that it reads and other families must leave unset.
    """

    read: Callable[[Config, Values], Values]
    write: Callable[[DecoderShape], Config]
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """How one family writes its config and its weights.

    A config key is read as transformers reads it: ignored where transformers ignores it, and refused where this decoder
    cannot compute what transformers would.
    """

    name: str
    fields: dict[str, str]
    """DecoderShape field → config key."""
    fixed: dict[str, Any]
    """DecoderShape fields that are the same for the whole family."""
    defaults: dict[str, Any]
    """Values of config keys that a config.json may leave out. `DERIVED`: it follows from other keys, and null is no
    value of it; None: null has it derived too."""
    required: dict[str, Any]
    """Config keys that must have this value if the config has them: other variants are not this decoder. None: must be
    unset."""
    prefixes: tuple[str, ...]
    """Before the name of every weight but the head's: the first is written, the others are read from older files."""
    heads: tuple[str, ...]
    """Module names of the output head, likewise."""
    names: dict[str, str]
    """Our module → theirs; those of a layer start with a dot. Several of ours with one name are one matrix."""
    fused: Literal["per_head", "stacked"] = "stacked"
    """Such a matrix has one part after the other, or is cut by heads first: `[H, 3, K, D]`."""
    transposed: bool = False
    """Matrices inside layers are `[in, out]` (GPT-2's Conv1D)."""
    rotary: Rotary | None = None
    """None: positions are learned."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Config key → its other name, which wins where a config has both (transformers' `attribute_map`)."""
    dropouts: tuple[str, ...] = ()
    """Config keys of dropout, which this decoder does not have: ignored, and written as 0."""
    parts: tuple[Part, ...] = ()
    activations: dict[str, str] = field(default_factory=dict)
    """Names of activations that mean something else here than elsewhere."""
    gelu: str = "gelu_new"
    """The name under which its configs have the GELU that is approximated by a tanh."""
    layout: Callable[[Config, DecoderShape], KVLayout] = field(default=lambda _, shape: mha(shape.layers, shape.heads))
    keys: Literal["rotated", "unrotated"] = "rotated"


DERIVED = object()


@dataclass(frozen=True)
class Grouped:
    """The layout of a family whose layers all have equally many KV heads, by `num_key_value_heads`.

    missing: their number where the config does not say it; None: that of the query heads. null: whether null means that
    too.
    """

    missing: int | None = None
    null: bool = True

    def __call__(self, config: Config, shape: DecoderShape) -> KVLayout:
        if not self.null and config.get(KV_HEADS, 1) is None:
            raise ValueError(f"{KV_HEADS} = None: must be a number")
        kv_heads = divisor(config, KV_HEADS, shape.heads, self.missing)
        return KVLayout(tuple(range(shape.layers)), (kv_heads,) * shape.layers, shape.heads)


KV_HEADS = "num_key_value_heads"

REQUIRED: dict[str, Any] = {
    "is_causal": True,
    "sliding_window": None,
    "attention_chunk_size": None,
    "kv_sharing_modes": None,
    "per_layer_config": None,
    "text_config": None,
    "decoder": None,
    "generator": None,
    "quantization_config": None,
    "transformers_weights": None,
}
"""Config keys that change what transformers computes, caches or loads for a model of any family; as Family.required."""


_SHOWN = 80
"""Characters of a value in a message."""


def shown(value: object) -> str:
    """A value of a config.json for a message: on one line, and not all of a long one."""
    text = " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def stated(config: Config, key: str, value: object) -> str:
    """How a message begins that refuses `value` of `key`: where the config does not have the key, it is a default."""
    if key in config:
        return f"{key} = {shown(value)}"
    default = "" if value is None else f", and its default is {shown(value)}"
    return f"{key} is missing from the config.json{default}"


def divisor(config: Config, key: str, whole: int, missing: int | None = None) -> int:
    """A number of KV heads that divides the query heads; `missing` where the config does not have it, and None is their
    own number."""
    value = config.get(key, missing)
    if value is None:
        return whole
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or whole % value:
        raise ValueError(f"{stated(config, key, value)}: must divide the {whole} query heads")
    return value
