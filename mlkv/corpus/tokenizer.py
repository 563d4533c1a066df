"""Tokenizers: train a byte-level BPE, load a tokenizer, and encode text with the characters of each token."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..context import StepFailed

END_OF_TEXT = "<|endoftext|>"
_WORD_PIECE = re.compile("[Ġ▁][A-Za-z]+")
"""A space in front of a word is one of the two in the vocabularies of byte-level and of SentencePiece tokenizers."""
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def train(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE of at most `vocab_size` tokens, the end-of-text token first; the same for the same texts.

    Raises StepFailed for fewer than 257 tokens: every byte and the end-of-text token have one.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size <= len(alphabet):
        raise StepFailed(f"vocab_size = {vocab_size}: a byte-level tokenizer needs at least {len(alphabet) + 1}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def load(folder: Path) -> Any:
    """The tokenizer in `folder`. Raises StepFailed if there is none, or none with offsets and an end-of-text token."""
    from transformers import AutoTokenizer

    try:
        # Our checkpoints carry their model's code, and transformers would prompt whether to run it.
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a damaged file may raise any error of its parser
        reason = (str(error).splitlines() or [""])[0]
        if not isinstance(error, OSError | ValueError):
            reason = f"cannot be read ({type(error).__name__}: {reason})"
        raise StepFailed(f"tokenizer = {folder}: {reason}") from error
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise StepFailed(f"tokenizer = {folder}: needs a tokenizer.json and an end-of-text token")
    return tokenizer


@dataclass(frozen=True)
class Encoded:
    """Tokens of one text; `ends`: the character (exclusive) at which each token ends."""

    text: str
    ids: NDArray[np.int64]
    ends: NDArray[np.int64]

    @property
    def token_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of the text that each token adds to the tokens before it: they sum to the text's length."""
        return np.diff(_byte_positions(self.text)[self.ends], prepend=0)


class Encoder:
    """A tokenizer for plain text: adds no special tokens, and reads one that a text spells out as ordinary text."""

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        self.end: int = tokenizer.eos_token_id
        self.vocab_size = len(tokenizer)
        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True

    def ids(self, texts: list[str]) -> list[NDArray[np.int64]]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in encodings]

    def token_texts(self) -> list[str]:
        """The text of each token by itself."""
        return list(self._tokenizer.decode_batch([[i] for i in range(self.vocab_size)], skip_special_tokens=False))

    def words(self) -> dict[int, str]:
        """The tokens that are a space and a word of letters, and that a text of such words is cut into."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        pieces = {i: f" {piece[1:]}" for piece, i in vocabulary.items() if _WORD_PIECE.fullmatch(piece)}
        cut = self.ids([text * 2 for text in pieces.values()])
        return {i: text for (i, text), ids in zip(pieces.items(), cut, strict=True) if ids[-2:].tolist() == [i, i]}

    def encode(self, text: str) -> Encoded:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ends_T = np.maximum.accumulate(np.array([end for _, end in encoding.offsets], np.int64))
        if len(ends_T):
            ends_T[-1] = len(text)
        return Encoded(text, np.array(encoding.ids, np.int64), ends_T)


SAMPLES = (
    "The quick brown fox jumps over the lazy dog, 1,234.5 times; isn't it?",
    "def f(x: int) -> str:\n    return f'{x!r}'  # don't\n\n\tif x >= 0x1F: pass\r\n",
    "naïve Ünïcödé café — “quotes” … Ærø, Привет, γειά, 你好世界, こんにちは, שלום, 🙂👩‍👩‍👧",
    "   three spaces,\ttab,\n\n\nnewlines, trailing   ",
    "one by one: cafe\u0301 A\u030angstro\u0308m \u1112\u1161\u11ab",  # NFC would compose these
    "\ufeffno\u00a0break,\u2009thin\u3000wide, soft\u00adhyphen, zero\u200bwidth, \ufb01 \u00bd \u2460 \uff21 \u212b",
)


def difference(one: Encoder, other: Encoder) -> str | None:
    """A text that the two encode differently, of the sample texts and the texts of all tokens of both; "the end of a
    text" if only their end-of-text tokens differ; None if nothing does."""
    texts = [*SAMPLES, *one.token_texts(), *other.token_texts()]
    for text, ids, others in zip(texts, one.ids(texts), other.ids(texts), strict=True):
        if not np.array_equal(ids, others):
            return text
    return None if one.end == other.end else "the end of a text"


def _byte_positions(text: str) -> NDArray[np.int64]:
    """The UTF-8 byte at which each character of `text` starts, and the length at the end."""
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(widths)])


def copy_tokenizer(folders: list[Path], out: Path) -> None:
    """Copy the tokenizer of the first of `folders` that has one into `out`. Raises StepFailed if none has."""
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            for name in FILES:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, out / name)
            return
    raise StepFailed(f"no tokenizer.json in {', '.join(map(str, folders))}")
