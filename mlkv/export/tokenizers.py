"""A tokenizer's tokens and merges for a GGUF file, and which kinds llama.cpp splits text for as transformers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..files import Json
from .checkpoint import Checkpoint

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "ByteLevel": "gpt-2",
    "Digits ByteLevel": "smollm",
    _WORDS % r"\p{N}{1,3}": "llama-bpe",
    _WORDS % r"\p{N}": "qwen2",
}
"""How a tokenizer cuts text into words (its pre-tokenizers' names, or the pattern of the first) → llama.cpp's name."""
NORMAL, CONTROL, UNUSED, USER_DEFINED = 1, 3, 5, 4
"""llama.cpp's kinds of tokens."""


def unknown_tokenizer(checkpoint: Path) -> str | None:
    """Why llama.cpp could not use a checkpoint's tokenizer as transformers does; None where it can."""
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        return "the checkpoint has no tokenizer.json"
    tokenizer: Json = json.loads(path.read_text("utf-8"))
    if tokenizer["model"].get("type") != "BPE" or tokenizer["model"].get("byte_fallback"):
        return "its tokenizer is no byte-level BPE"
    if tokenizer.get("normalizer") not in (None, {"type": "NFC"}):
        return "its tokenizer normalizes text in a way of its own"
    return None if _split_name(tokenizer) in SPLITS else "its tokenizer cuts text into words in a way of its own"


def _split_name(tokenizer: Json) -> str:
    outer = tokenizer.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers", [outer])
    if steps and steps[0].get("type") == "Split":
        return str(steps[0]["pattern"].get("Regex"))
    return " ".join(str(step.get("type")) for step in steps)


def add_tokenizer(writer: Any, checkpoint: Checkpoint) -> None:
    """Tokens, their kinds, merges and special tokens; places of the vocabulary without a token are filled."""
    tokenizer: Json = json.loads((checkpoint.path / "tokenizer.json").read_text("utf-8"))
    size = checkpoint.shape.vocab_size
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, number in tokenizer["model"]["vocab"].items():
        tokens[number], kinds[number] = token, NORMAL
    for added in tokenizer.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(SPLITS[_split_name(tokenizer)])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    _add_special(writer, checkpoint, tokens)


def _add_special(writer: Any, checkpoint: Checkpoint, tokens: list[str]) -> None:
    path = checkpoint.path / "tokenizer_config.json"
    config: Json = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    names = {"bos_token": writer.add_bos_token_id, "eos_token": writer.add_eos_token_id}
    for name, add in names.items():
        value = config.get(name)
        token = value.get("content") if isinstance(value, dict) else value
        if token in tokens:
            add(tokens.index(token))
    writer.add_add_bos_token(bool(config.get("add_bos_token")))
