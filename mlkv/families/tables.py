"""The families that load and are written. A new one is one row of FAMILIES, in a file of those that are like it."""

from __future__ import annotations

from ..registry import Registry
from .family import REQUIRED, Config, Family, Part, Rotary, shown
from .gemma import GEMMA, GEMMA2, GEMMA3
from .gpt import GPT2, NEOX, OPT, PUBLISHED_MLKV
from .llama import LLAMA, MISTRAL, OLMO2, PHI3, QWEN2, QWEN3, SMOLLM3, STABLELM

__all__ = [
    "FAMILIES",
    "LACKING",
    "NEOX",
    "OWN",
    "PUBLISHED_MLKV",
    "REQUIRED",
    "Config",
    "Family",
    "Part",
    "Rotary",
    "shown",
]

FAMILIES = Registry(
    "family",
    {
        family.name: family
        for family in (
            NEOX,
            LLAMA,
            GPT2,
            OPT,
            MISTRAL,
            QWEN2,
            QWEN3,
            SMOLLM3,
            GEMMA,
            GEMMA2,
            GEMMA3,
            OLMO2,
            PHI3,
            STABLELM,
        )
    },
)
"""`model_type` → family."""

_VISION = "text_config stands beside a vision tower, which is not of this decoder; take a"
_GEMMA_3N = "altup_num_inputs and hidden_size_per_layer_input are not of this decoder; take a Gemma 3"
_GEMMA_4 = "hidden_size_per_layer_input and global_head_dim are not of this decoder; take a Gemma 3"
_EXPERTS = "experts are not of this decoder; take a dense"
LACKING = {
    "gemma3": f"{_VISION} text model (gemma3_text)",
    "gemma3n": _GEMMA_3N,
    "gemma3n_text": _GEMMA_3N,
    "gemma4": _GEMMA_4,
    "gemma4_text": _GEMMA_4,
    "llama4": f"{_EXPERTS} Llama 3",
    "llama4_text": f"{_EXPERTS} Llama 3",
    "mistral3": f"{_VISION} text model (mistral)",
    "mistral_large4": f"n_routed_{_EXPERTS} Mistral",
    "mistral_large4_text": f"n_routed_{_EXPERTS} Mistral",
    "mixtral": f"num_local_{_EXPERTS} Mistral",
    "qwen3_moe": f"num_{_EXPERTS} Qwen3",
}
"""`model_type` → why a family that people ask for does not load."""

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
            "attention_out_norm",
            "kv_norm",
            "attention.q",
            "attention.k",
            "attention.v",
            "attention.o",
            "attention.latent",
            "attention.k_up",
            "attention.v_up",
            "attention",
            "attention.q_norm",
            "attention.k_norm",
            "mlp_norm",
            "mlp_out_norm",
            "mlp.gate",
            "mlp.up",
            "mlp.down",
        )
    },
)
"""How our own checkpoints name their weights (and `attention` the planes of a latent); their config.json holds a
DecoderShape as it is."""
