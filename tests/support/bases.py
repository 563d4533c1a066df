"""Checkpoints of others, as small as they can be: what a user brings."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

from mlkv.corpus.tokenizer import train
from mlkv.families.config import family_of, layout_of, shape_of
from mlkv.families.weights import expected_shapes
from mlkv.files import Json

GQA: Json = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
}
"""Llama's shape: six layers of 8 query heads that share 4 KV heads."""


def write_base(folder: Path, seed: int = 0, config: Json = GQA) -> Path:
    """A checkpoint as transformers saves it, with a tokenizer of its own."""
    import torch  # a test that only plans does not wait for them
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
    train(["the quick brown fox jumps over the lazy dog"], 280).save_pretrained(folder)
    return folder


def write_config(folder: Path, **changes: object) -> Path:
    """With other values in its config.json; `None` is written as null."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def write_zeros(folder: Path, config: Json, fill: bytes = b"\0") -> None:
    """The config.json and the weights of a base of which only plans are made: each byte of the weights is `fill`."""
    shape, header, end = shape_of(config), {}, 0
    for name, size in expected_shapes(family_of(config), shape, layout_of(config)).items():
        start, end = end, end + 2 * prod(size)
        header[name] = {"dtype": "F16", "shape": size, "data_offsets": [start, end]}
    written = json.dumps(header).encode()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(len(written).to_bytes(8, "little") + written + fill * end)
