"""Llama and the families that are variants of it: Mistral, Qwen, SmolLM3, OLMo 2, Phi-3, StableLM."""

from __future__ import annotations

from dataclasses import replace

from .family import DERIVED, Family, Grouped, Rotary
from .parts import NO_ROPE, QWEN_WINDOWS, SMOLLM_WINDOWS, every_layer_local

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
    layout=Grouped(),
)


def _fields(*without: str, **other: str) -> dict[str, str]:
    return {name: key for name, key in LLAMA.fields.items() if name not in without} | other


_NO_BIAS = {"attention_bias": False, "mlp_bias": False}
_DERIVED_HEADS = LLAMA.defaults | {"head_dim": DERIVED}

MISTRAL = replace(
    LLAMA,
    name="mistral",
    fields=_fields("attention_bias", "mlp_bias"),
    fixed=LLAMA.fixed | _NO_BIAS,
    parts=(every_layer_local(missing=4096),),
    layout=Grouped(missing=8, null=False),
)

QWEN2 = replace(
    LLAMA,
    name="qwen2",
    fields=_fields("attention_bias", "mlp_bias"),
    fixed=LLAMA.fixed | {"attention_bias": True, "output_bias": False, "mlp_bias": False},
    defaults=_DERIVED_HEADS,
    parts=(QWEN_WINDOWS,),
    layout=Grouped(missing=32),
)

QWEN3 = replace(
    LLAMA,
    name="qwen3",
    fields=_fields("mlp_bias"),
    fixed=LLAMA.fixed | {"mlp_bias": False, "qk_norm": "head"},
    defaults=LLAMA.defaults | {"head_dim": 128},
    names=LLAMA.names | {".attention.q_norm": "self_attn.q_norm", ".attention.k_norm": "self_attn.k_norm"},
    parts=(QWEN_WINDOWS,),
    layout=Grouped(missing=32),
)

SMOLLM3 = replace(
    LLAMA,
    name="smollm3",
    defaults=_DERIVED_HEADS | {"tie_word_embeddings": True},
    rotary=replace(LLAMA.rotary, default_base=2_000_000.0) if LLAMA.rotary else None,
    parts=(NO_ROPE, SMOLLM_WINDOWS),
    layout=Grouped(missing=4),
)

OLMO2 = replace(
    LLAMA,
    name="olmo2",
    fields=_fields("mlp_bias"),
    fixed=LLAMA.fixed | {"mlp_bias": False, "qk_norm": "width", "norm_place": "after"},
    defaults=_DERIVED_HEADS | {"rms_norm_eps": 1e-5},
    names={name: theirs for name, theirs in LLAMA.names.items() if not name.endswith("_norm")}
    | {
        ".attention.q_norm": "self_attn.q_norm",
        ".attention.k_norm": "self_attn.k_norm",
        ".attention_out_norm": "post_attention_layernorm",
        ".mlp_out_norm": "post_feedforward_layernorm",
    },
)

PHI3 = replace(
    LLAMA,
    name="phi3",
    fields=_fields("attention_bias", "mlp_bias"),
    fixed=LLAMA.fixed | _NO_BIAS,
    defaults=_DERIVED_HEADS | {"rms_norm_eps": 1e-5},
    rotary=Rotary("rope_theta", "partial_rotary_factor", 1.0, partial=True, scalings=()),
    dropouts=("attention_dropout", "resid_pdrop", "embd_pdrop"),
    names=LLAMA.names
    | {f".attention.{part}": "self_attn.qkv_proj" for part in "qkv"}
    | {f".mlp.{part}": "mlp.gate_up_proj" for part in ("gate", "up")},
    parts=(every_layer_local(missing=None),),
)

STABLELM = replace(
    LLAMA,
    name="stablelm",
    fields=_fields("mlp_bias", "head_dim", attention_bias="use_qkv_bias", norm_eps="layer_norm_eps"),
    fixed=LLAMA.fixed | {"norm": "layernorm", "mlp_bias": False, "output_bias": False},
    defaults=LLAMA.defaults | {"layer_norm_eps": 1e-5, "use_qkv_bias": False},
    required={"head_dim": None, "qk_layernorm": False, "use_parallel_residual": False},
    rotary=Rotary("rope_theta", "partial_rotary_factor", 0.25, partial=True),
    dropouts=("attention_dropout", "hidden_dropout"),
    layout=Grouped(missing=32, null=False),
)
