"""GPT-NeoX, its published MLKV variant, GPT-2 and OPT."""

from __future__ import annotations

from dataclasses import replace

from ..layout import KVLayout, from_owners
from ..shape import DecoderShape
from .family import Config, Family, Rotary, divisor, shown


def _published_mlkv(config: Config, shape: DecoderShape) -> KVLayout:
    """Owners by the published code's rule, which divides in floating point (arXiv 2406.09297)."""
    kv_layers = config["num_key_value_layers"]
    if not isinstance(kv_layers, int) or not 1 <= kv_layers <= shape.layers:
        raise ValueError(f"num_key_value_layers = {shown(kv_layers)}: must be 1 to {shape.layers}")
    owners = [0, *(int((i + 1) * (shape.layers / kv_layers)) for i in range(kv_layers - 1))]
    sources = from_owners(shape.layers, owners)
    kv_heads = divisor(config, "num_key_value_heads", shape.heads)
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
        ".attention.q": "attention.query_key_value",
        ".attention.k": "attention.query_key_value",
        ".attention.v": "attention.query_key_value",
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
    layout=_published_mlkv,
    keys="unrotated",
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
        ".attention.q": "attn.c_attn",
        ".attention.k": "attn.c_attn",
        ".attention.v": "attn.c_attn",
        ".attention.o": "attn.c_proj",
        ".mlp_norm": "ln_2",
        ".mlp.up": "mlp.c_fc",
        ".mlp.down": "mlp.c_proj",
    },
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
