"""The files of a model, from a directory or from the Hugging Face hub's cache."""

from __future__ import annotations

import os
from pathlib import Path

WEIGHTS = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt")


TOKENIZER = ("config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")


def fetch_model(name: str, commit: str, files: tuple[str, ...] = WEIGHTS) -> Path:
    """A local directory with the model's files, downloaded unless cached. Offline where HF_HUB_OFFLINE says so."""
    from huggingface_hub import snapshot_download

    offline = os.environ.get("HF_HUB_OFFLINE", "") in ("1", "ON", "YES", "TRUE")
    return Path(snapshot_download(name, revision=commit, allow_patterns=list(files), local_files_only=offline))


def local_copy(source: dict[str, str], files: tuple[str, ...] = WEIGHTS) -> Path:
    """Where a model's files lie: `source` names a `path`, or a `hub` model and its `revision`."""
    return Path(source["path"]) if "path" in source else fetch_model(source["hub"], source["revision"], files)
