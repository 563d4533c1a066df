"""Gemma 1, 2 and 3 (text)."""

from __future__ import annotations

from dataclasses import replace

from .family import Family, Grouped, Rotary
from .llama import LLAMA
from .parts import ATTENTION_CAP, ATTENTION_SCALAR, GEMMA2_WINDOWS, GEMMA3_WINDOWS, ONE_WAY, SCALED_EMBEDDING, logit_cap

GEMMA = replace(
    LLAMA,
    name="gemma",
    fields={name: key for name, key in LLAMA.fields.items() if name != "mlp_bias"},
    fixed=LLAMA.fixed | {"norm": "rmsnorm_offset", "mlp_bias": False},
    defaults=LLAMA.defaults | {"head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    activations={"gelu": "gelu_new"},
    gelu="gelu_pytorch_tanh",
    parts=(SCALED_EMBEDDING, ONE_WAY),
    layout=Grouped(missing=16, null=False),
)

GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    fields=GEMMA.fields | {"activation": "hidden_activation"},
    fixed=GEMMA.fixed | {"norm_place": "around"},
    defaults=GEMMA.defaults | {"hidden_activation": "gelu_pytorch_tanh"},
    activations={},
    names=GEMMA.names
    | {
        ".attention_out_norm": "post_attention_layernorm",
        ".mlp_norm": "pre_feedforward_layernorm",
        ".mlp_out_norm": "post_feedforward_layernorm",
    },
    parts=(SCALED_EMBEDDING, ONE_WAY, ATTENTION_SCALAR, ATTENTION_CAP, logit_cap(missing=30.0), GEMMA2_WINDOWS),
    layout=Grouped(missing=4, null=False),
)

GEMMA3: Family = replace(
    GEMMA2,
    name="gemma3_text",
    fixed=GEMMA2.fixed | {"qk_norm": "head"},
    rotary=Rotary(
        "rope_theta",
        "partial_rotary_factor",
        1.0,
        partial=False,
        default_base=1_000_000.0,
        local=("rope_local_base_freq", 10_000.0),
    ),
    names=GEMMA2.names | {".attention.q_norm": "self_attn.q_norm", ".attention.k_norm": "self_attn.k_norm"},
    parts=(SCALED_EMBEDDING, ONE_WAY, ATTENTION_SCALAR, logit_cap(missing=None), GEMMA3_WINDOWS),
)
