"""The smallest config.json of every family, and transformers' own model of one, with weights far enough from zero."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from mlkv.families.tables import FAMILIES
from mlkv.files import Json

VOCAB, LAYERS, HEADS, WIDTH = 19, 2, 4, 32
IDS = torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(3))
_SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
SMALLEST: dict[str, dict[str, Any]] = {
    "gpt_neox": {**_SIZES, "intermediate_size": 24, "rotary_pct": 1.0},
    "llama": {**_SIZES, "intermediate_size": 24},
    "gpt2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
    "opt": {**_SIZES, "ffn_dim": 24},
    "mistral": {**_SIZES, "intermediate_size": 24, "num_key_value_heads": 2},
    "qwen2": {**_SIZES, "intermediate_size": 24, "num_key_value_heads": 2},
    "qwen3": {**_SIZES, "intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8},
    "smollm3": {**_SIZES, "intermediate_size": 24, "num_key_value_heads": 2, "pad_token_id": 0},
    "gemma": {**_SIZES, "intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {**_SIZES, "intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8},
    "gemma3_text": {**_SIZES, "intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8},
    "olmo2": {**_SIZES, "intermediate_size": 24},
    "phi3": {**_SIZES, "intermediate_size": 24, "pad_token_id": 0},
    "stablelm": {**_SIZES, "intermediate_size": 24, "num_key_value_heads": 2},
}
EARLIER = ("gpt_neox", "llama", "gpt2", "opt")
"""The others are drawn for less often, in `long` tests."""
LATER = [name for name in FAMILIES if name not in EARLIER]
for _name, _config in SMALLEST.items():
    _config |= {"model_type": _name, "vocab_size": VOCAB}
    _config["n_positions" if _name == "gpt2" else "max_position_embeddings"] = 16


def theirs_of(config: Json) -> Any:
    """transformers' own model of a parsed config.json. Raises what transformers raises."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**json.loads(json.dumps(config)))).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    return model.eval()(IDS).logits


@contextmanager
def saved(config: Json, model: Any | None, **extra: Any) -> Iterator[Path]:
    """A directory as the hub has them, which holds `config` to the letter."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        if model is not None:
            weights = {name: weight.clone() for name, weight in model.state_dict().items()}
            save_file(weights | extra, Path(folder) / "model.safetensors")
        yield Path(folder)


def refusal(run: Callable[[], Any]) -> str | None:
    """What a ValueError says, which has to be one line; None where there is none."""
    try:
        run()
    except ValueError as error:
        return str(error).replace("\n", " and a second line: ")
    return None
