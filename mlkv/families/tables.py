"""How each family writes its config.json and names its weights. A new family is one row of FAMILIES.

Legend: `D` width, `H` query heads, `K` head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..layout import KVLayout, from_owners, mha
from ..registry import Registry
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
    """Values of config keys that older config.json files leave out."""
    required: dict[str, Any]
    """Config keys that must have this value if the config has them: other variants are not this decoder. None: must be
    unset."""
    prefixes: tuple[str, ...]
    """Before the name of every weight but the head's: the first is written, the others are read from older files."""
    heads: tuple[str, ...]
    """Module names of the output head, likewise."""
    names: dict[str, str]
    """Our module → theirs; those of a layer start with a dot."""
    fused: Literal["per_head", "stacked"] | None = None
    """Queries, keys and values in one matrix: head by head `[H, 3, K, D]`, or one after the other `[3, H, K, D]`."""
    transposed: bool = False
    """Matrices inside layers are `[in, out]` (GPT-2's Conv1D)."""
    rotary: Rotary | None = None
    """None: positions are learned."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Config key → its other name, which wins where a config has both (transformers' `attribute_map`)."""
    dropouts: tuple[str, ...] = ()
    """Config keys of dropout, which this decoder does not have: ignored, and written as 0."""
    layout: Callable[[Config, DecoderShape], KVLayout] = field(default=lambda _, shape: mha(shape.layers, shape.heads))
    keys: Literal["rotated", "unrotated"] = "rotated"


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


def _divisor(config: Config, key: str, whole: int) -> int:
    value = config.get(key)
    if value is None:
        return whole
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or whole % value:
        raise ValueError(f"{key} = {shown(value)}: must divide the {whole} query heads")
    return value


def _gqa(config: Config, shape: DecoderShape) -> KVLayout:
    kv_heads = _divisor(config, "num_key_value_heads", shape.heads)
    return KVLayout(tuple(range(shape.layers)), (kv_heads,) * shape.layers, shape.heads)


def _published_mlkv(config: Config, shape: DecoderShape) -> KVLayout:
    """Owners by the published code's rule, which divides in floating point (arXiv 2406.09297)."""
    kv_layers = config["num_key_value_layers"]
    if not isinstance(kv_layers, int) or not 1 <= kv_layers <= shape.layers:
        raise ValueError(f"num_key_value_layers = {shown(kv_layers)}: must be 1 to {shape.layers}")
    owners = [0, *(int((i + 1) * (shape.layers / kv_layers)) for i in range(kv_layers - 1))]
    sources = from_owners(shape.layers, owners)
    kv_heads = _divisor(config, "num_key_value_heads", shape.heads)
    return KVLayout(sources, (kv_heads,) * len(set(owners)), shape.heads)


NEOX = Family(
    name="gpt_neox",
    fields={
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp_width": "intermediate_size",
        "context": "max_position_embeddings",
        "norm_eps": "layer_norm_eps",
        "activation": "hidden_act",
        "attention_bias": "attention_bias",
        "parallel_residual": "use_parallel_residual",
        "tied": "tie_word_embeddings",
        "init_std": "initializer_range",
    },
    fixed={"positions": "rotary"},
    defaults={
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "attention_bias": True,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
    },
    required={"head_dim": None},
    rotary=Rotary("rotary_emb_base", "rotary_pct", 0.25, partial=True),
    dropouts=("attention_dropout", "hidden_dropout"),
    prefixes=("gpt_neox.",),
    heads=("lm_head", "embed_out"),
    names={
        "embed": "embed_in",
        "norm": "final_layer_norm",
        "blocks": "layers",
        ".attention_norm": "input_layernorm",
        ".attention.qkv": "attention.query_key_value",
        ".attention.o": "attention.dense",
        ".mlp_norm": "post_attention_layernorm",
        ".mlp.up": "mlp.dense_h_to_4h",
        ".mlp.down": "mlp.dense_4h_to_h",
    },
    fused="per_head",
)

PUBLISHED_MLKV = replace(
    NEOX,
    name="gpt_neox with num_key_value_layers",
    required={**NEOX.required, "use_key_value_mlp": False},
    names={
        **NEOX.names,
        ".attention.q": "attention.query",
        ".attention.k": "attention.key",
        ".attention.v": "attention.value",
    },
    fused=None,
    layout=_published_mlkv,
    keys="unrotated",
)

LLAMA = Family(
    name="llama",
    fields={
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "head_dim": "head_dim",
        "mlp_width": "intermediate_size",
        "context": "max_position_embeddings",
        "norm_eps": "rms_norm_eps",
        "activation": "hidden_act",
        "attention_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
        "tied": "tie_word_embeddings",
        "init_std": "initializer_range",
    },
    fixed={"norm": "rmsnorm", "gated_mlp": True, "parallel_residual": False, "positions": "rotary"},
    defaults={
        "head_dim": None,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
    },
    required={},
    rotary=Rotary("rope_theta", "partial_rotary_factor", 1.0, partial=False),
    dropouts=("attention_dropout",),
    prefixes=("model.",),
    heads=("lm_head",),
    names={
        "embed": "embed_tokens",
        "norm": "norm",
        "blocks": "layers",
        ".attention_norm": "input_layernorm",
        ".attention.q": "self_attn.q_proj",
        ".attention.k": "self_attn.k_proj",
        ".attention.v": "self_attn.v_proj",
        ".attention.o": "self_attn.o_proj",
        ".mlp_norm": "post_attention_layernorm",
        ".mlp.gate": "mlp.gate_proj",
        ".mlp.up": "mlp.up_proj",
        ".mlp.down": "mlp.down_proj",
    },
    layout=_gqa,
)

GPT2 = Family(
    name="gpt2",
    fields={
        "vocab_size": "vocab_size",
        "width": "n_embd",
        "layers": "n_layer",
        "heads": "n_head",
        "mlp_width": "n_inner",
        "context": "n_positions",
        "norm_eps": "layer_norm_epsilon",
        "activation": "activation_function",
        "tied": "tie_word_embeddings",
        "init_std": "initializer_range",
    },
    fixed={"parallel_residual": False, "positions": "learned"},
    defaults={
        "n_inner": None,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
    },
    required={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    aliases={
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
    },
    dropouts=("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    prefixes=("transformer.",),
    heads=("lm_head",),
    names={
        "embed": "wte",
        "positions": "wpe",
        "norm": "ln_f",
        "blocks": "h",
        ".attention_norm": "ln_1",
        ".attention.qkv": "attn.c_attn",
        ".attention.o": "attn.c_proj",
        ".mlp_norm": "ln_2",
        ".mlp.up": "mlp.c_fc",
        ".mlp.down": "mlp.c_proj",
    },
    fused="stacked",
    transposed=True,
)

OPT = Family(
    name="opt",
    fields={
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp_width": "ffn_dim",
        "context": "max_position_embeddings",
        "activation": "activation_function",
        "tied": "tie_word_embeddings",
        "init_std": "init_std",
    },
    fixed={"parallel_residual": False, "positions": "learned", "position_offset": 2},
    defaults={"activation_function": "relu", "tie_word_embeddings": True, "init_std": 0.02},
    required={
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
    },
    dropouts=("dropout", "attention_dropout", "layerdrop"),
    prefixes=("model.decoder.", "decoder."),
    heads=("lm_head",),
    names={
        "embed": "embed_tokens",
        "positions": "embed_positions",
        "norm": "final_layer_norm",
        "blocks": "layers",
        ".attention_norm": "self_attn_layer_norm",
        ".attention.q": "self_attn.q_proj",
        ".attention.k": "self_attn.k_proj",
        ".attention.v": "self_attn.v_proj",
        ".attention.o": "self_attn.out_proj",
        ".mlp_norm": "final_layer_norm",
        ".mlp.up": "fc1",
        ".mlp.down": "fc2",
    },
)

FAMILIES = Registry("family", {family.name: family for family in (NEOX, LLAMA, GPT2, OPT)})
"""`model_type` → family."""

OWN = Family(
    name="mlkv",
    fields={},
    fixed={},
    defaults={},
    required={},
    prefixes=("model.",),
    heads=("model.head",),
    names={name: name for name in ("embed", "positions", "norm", "blocks")}
    | {
        f".{module}": module
        for module in (
            "attention_norm",
            "kv_norm",
            "attention.q",
            "attention.k",
            "attention.v",
            "attention.o",
            "attention.latent",
            "attention.k_up",
            "attention.v_up",
            "attention",
            "mlp_norm",
            "mlp.gate",
            "mlp.up",
            "mlp.down",
        )
    },
)
"""How our own checkpoints name their weights (and `attention` the planes of a latent); their config.json holds a
DecoderShape as it is."""
