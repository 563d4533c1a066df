"""The ids that a tokenizer gives, by its files alone: plans use it, and do not wait for transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..context import StepFailed
from ..families.files import check_present, read_json_object

BYTES = 256
"""Tokens that every byte-level tokenizer has, besides the end of text."""
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Vocabulary:
    """largest: the largest id of a tokenizer. end: that of the token after each document, where its files name it."""

    largest: int
    end: int | None


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """By the tokenizer.json in `folder`; None where it has none. Raises ValueError for a file that is damaged, and for
    a tokenizer that cannot cut a corpus."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    settings = [read_json_object(folder / name) for name in _SETTINGS if (folder / name).is_file()]
    check_present(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers has no class of errors
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{path} cannot be read ({reason}): copy it again") from None
    ids = tokenizer.get_vocab(with_added_tokens=True)
    ends = [end.get("content") if isinstance(end, dict) else end for each in settings if (end := each.get("eos_token"))]
    if not ends or ends[0] not in ids:
        _load(folder)  # its class may have an end-of-text token of its own
    return Vocabulary(max(ids.values(), default=0), ids.get(str(ends[0])) if ends else None)


def _load(folder: Path) -> None:
    from .tokenizer import load

    try:
        load(folder)
    except StepFailed as error:
        raise ValueError(str(error)) from None
