"""The one table of families and layouts that every model test runs over.

A new family is a row of FAMILY_CONFIGS, a new layout a row of LAYOUTS. Sizes are the smallest that still tell apart
width, MLP width, head width times heads and the number of layers.
"""

from __future__ import annotations

from typing import Any

from mlkv.layout import KVLayout, mha
from mlkv.patterns import cla, make
from mlkv.shape import DecoderShape

LAYERS, HEADS, VOCAB, CONTEXT = 6, 4, 61, 48

_EARLIER: dict[str, dict[str, Any]] = {
    "gpt_neox": {
        "model_type": "gpt_neox",
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 56,
        "max_position_embeddings": CONTEXT,
        "vocab_size": VOCAB,
        "rotary_pct": 0.25,
        "initializer_range": 0.3,
    },
    "gpt_neox_sequential_tied": {
        "model_type": "gpt_neox",
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 56,
        "max_position_embeddings": CONTEXT,
        "vocab_size": VOCAB,
        "rotary_pct": 1.0,
        "rotary_emb_base": 500,
        "use_parallel_residual": False,
        "attention_bias": False,
        "hidden_act": "gelu_new",
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
    },
    "llama": {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "intermediate_size": 40,
        "max_position_embeddings": CONTEXT,
        "vocab_size": VOCAB,
        "rope_theta": 5000.0,
        "initializer_range": 0.3,
    },
    "llama_bias_tied": {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 40,
        "max_position_embeddings": CONTEXT,
        "vocab_size": VOCAB,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": CONTEXT,
        "vocab_size": VOCAB,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "opt": {
        "model_type": "opt",
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "ffn_dim": 56,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": CONTEXT,
        "vocab_size": VOCAB,
        "init_std": 0.3,
        "do_layer_norm_before": True,
    },
}

_LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCAB,
    "initializer_range": 0.3,
}
_GEMMA = _LLAMA | {"head_dim": 12, "query_pre_attn_scalar": 24, "sliding_window": 5, "pad_token_id": 0}

FAMILY_CONFIGS = _EARLIER | {
    "llama_3": _LLAMA
    | {
        "model_type": "llama",
        "rope_theta": 500.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "llama_yarn": _LLAMA
    | {
        "model_type": "llama",
        "rope_scaling": {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 16},
    },
    "llama_linear": _LLAMA | {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "mistral": _LLAMA | {"model_type": "mistral", "sliding_window": 5, "head_dim": 12},
    "qwen2": _LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2_windows": _LLAMA
    | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "qwen3": _LLAMA | {"model_type": "qwen3", "head_dim": 12},
    "smollm3": _LLAMA | {"model_type": "smollm3", "no_rope_layer_interval": 3, "pad_token_id": 0},
    "gemma": _LLAMA | {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 12, "pad_token_id": 0},
    "gemma2": _GEMMA | {"model_type": "gemma2", "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3": _GEMMA
    | {
        "model_type": "gemma3_text",
        "rope_theta": 900.0,
        "rope_local_base_freq": 20.0,
        "sliding_window_pattern": 3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "olmo2": _LLAMA | {"model_type": "olmo2", "pad_token_id": 0},
    "phi3": _LLAMA
    | {"model_type": "phi3", "sliding_window": 6, "partial_rotary_factor": 0.75, "pad_token_id": 0, "eos_token_id": 0},
    "stablelm": _LLAMA | {"model_type": "stablelm", "use_qkv_bias": True},
}
"""A tiny config.json per family and variant, as the hub has them."""

_SEVEN_WIDE = {"hidden_size": 28}
_BIASES = {"attention_bias": True, "mlp_bias": True}

TRAPS: dict[str, dict[str, Any]] = {
    "gpt2, heads 7 wide": FAMILY_CONFIGS["gpt2"] | {"n_embd": 28},
    "opt, heads 7 wide": FAMILY_CONFIGS["opt"] | _SEVEN_WIDE | {"word_embed_proj_dim": 28},
    "gpt_neox, 4 of 7 dimensions rotated": FAMILY_CONFIGS["gpt_neox"] | _SEVEN_WIDE | {"rotary_pct": 0.6},
    "stablelm, 2 of 7 dimensions rotated": FAMILY_CONFIGS["stablelm"] | _SEVEN_WIDE | {"partial_rotary_factor": 0.3},
    "phi3, 4 of 7 dimensions rotated": FAMILY_CONFIGS["phi3"] | _SEVEN_WIDE | {"partial_rotary_factor": 0.6},
    "llama, 3 rotary planes": FAMILY_CONFIGS["llama"] | {"head_dim": 6},
    "llama, heads wider than the model, biases": FAMILY_CONFIGS["llama"] | _BIASES | {"head_dim": 16},
    "qwen3, biases in all projections": FAMILY_CONFIGS["qwen3"] | {"attention_bias": True},
    "olmo2, biases in all projections": FAMILY_CONFIGS["olmo2"] | {"attention_bias": True},
    "smollm3, biases in attention and MLP": FAMILY_CONFIGS["smollm3"] | _BIASES,
    "stablelm, no biases, tied": FAMILY_CONFIGS["stablelm"] | {"use_qkv_bias": False, "tie_word_embeddings": True},
    "gemma2, head not tied": FAMILY_CONFIGS["gemma2"] | {"tie_word_embeddings": False},
    "gemma2, caps off": FAMILY_CONFIGS["gemma2"] | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma3, output cap": FAMILY_CONFIGS["gemma3"] | {"final_logit_softcapping": 3.0},
    "gemma3, one base for all layers": FAMILY_CONFIGS["gemma3"] | {"rope_local_base_freq": 900.0, "rope_scaling": None},
    "mistral, window of one token": FAMILY_CONFIGS["mistral"] | {"sliding_window": 1},
    "mistral, window as long as the context": FAMILY_CONFIGS["mistral"] | {"sliding_window": CONTEXT},
    "smollm3, windows where layers do not rotate": FAMILY_CONFIGS["smollm3"]
    | {"use_sliding_window": True, "sliding_window": 4},
}
"""What silently changes logits where it is read wrongly, beside the same in FAMILY_CONFIGS."""

LATER = [name for name in FAMILY_CONFIGS if name not in _EARLIER]
"""Those with one short test each in the fast suite; all that the others go through is a `long` test of them."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "width": 32,
    "layers": LAYERS,
    "heads": HEADS,
    "mlp_width": 56,
    "context": CONTEXT,
    "init_std": 0.3,
}

SHAPES: dict[str, DecoderShape] = {
    "neox": DecoderShape(**_COMMON, head_dim=8, rotary_fraction=0.5),
    "llama": DecoderShape(
        **_COMMON,
        head_dim=12,
        norm="rmsnorm",
        activation="silu",
        gated_mlp=True,
        attention_bias=False,
        mlp_bias=False,
        parallel_residual=False,
        rotary_fraction=1.0,
    ),
    "cla": DecoderShape(
        **_COMMON,
        head_dim=7,
        activation="silu",
        gated_mlp=True,
        attention_bias=False,
        mlp_bias=False,
        parallel_residual=False,
        rotary_fraction=1.0,
        kv_norm=True,
    ),
    "opt": DecoderShape(
        **_COMMON,
        head_dim=8,
        activation="relu",
        parallel_residual=False,
        positions="learned",
        position_offset=2,
        tied=True,
    ),
}
"""One shape for each way to place tokens and heads; `llama`'s and `cla`'s head widths do not follow from the width, and
`cla`'s owners norm their keys and values apart."""

LAYOUTS: dict[str, KVLayout] = {
    "mha": mha(LAYERS, HEADS),
    "gqa": make("even", LAYERS, HEADS, LAYERS, 2),
    "mqa": make("even", LAYERS, HEADS, LAYERS, 1),
    "mlkv": make("even", LAYERS, HEADS, 2, 1),
    "mlkv_one": make("even", LAYERS, HEADS, 1, 1),
    "cla": KVLayout(cla(LAYERS, 4), (2, 2), HEADS),
    "keep_ends": make("keep_ends", LAYERS, HEADS, 4, 2),
    "dense_front": make("dense_front", LAYERS, HEADS, 4, 1),
    "dense_back": make("dense_back", LAYERS, HEADS, 4, HEADS),
    "pizza": make("pizza", LAYERS, HEADS, 3, 2),
    "sandwich": make("sandwich", LAYERS, HEADS, 3, 1),
    "explicit": KVLayout((0, 1, 0, 3, 1, 3), (4, 1, 2), HEADS),
    "kv_apart": KVLayout(
        (0, 0, 2, 0, 4, 2), (4, 1, 2), HEADS, value_source_layers=(0, 1, 1, 3, 1, 3), value_heads=(1, 2, 4)
    ),
}
"""`explicit` has interleaved readers and owners of different head counts; `kv_apart` has owners of keys alone, of
values alone and of both with other head counts, and layers that own one of them and read the other."""
