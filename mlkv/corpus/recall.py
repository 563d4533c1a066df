"""Generated rows that can only be predicted by looking back: copies, and keys with values, at distances that grow.

Legend: `T` tokens of a row, `P` pairs of keys and values. A row is drawn at the level of tokens, because the distance
to what it repeats is counted in tokens, and it fills a row of the corpus, so that no packing cuts a copy in two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..context import StepFailed
from .tokenizer import Encoder

Ids = NDArray[np.int64]

COPIES = 0.7
"""Share of the rows that are copies. Half of the rest are keys and values that are written out."""
PART = 64
"""Tokens of a row for one copy, or as many as its distance asks for: a row of one copy at a small distance would say
the same some dozen times over, where a model learns from each set of tokens anew."""
FEW = 64
"""Tokens that many rows are made of, the same ones in all of these rows. A small model learns to look back on them
first: each is copied so often that what its copies have in common shows in the gradient. At once on some thousand
tokens it learns next to nothing in as many steps (docs/experiments.md)."""
OF_FEW = 0.5
"""Share of the rows that are made of these; in the others all tokens are equally common."""
NEAREST = 4
"""Tokens between a copy and its original, at least."""
FARTHEST = 0.75
"""The same at most, as a share of the row: the rest of the row is the copy."""
ASKED_AGAIN = 0.5
"""Share of the pairs whose key was there before, with its value."""
FEWEST_WORDS = 64
KEY_VALUE, PAIR_END = " =", ";"


@dataclass(frozen=True)
class Words:
    """Tokens that are whole words. A text of such words is cut into these tokens again, so that distances in it are
    exact. between, end: the tokens of " =" and ";", which write a key and its value."""

    ids: Ids
    texts: tuple[str, ...]
    between: int
    end: int

    @classmethod
    def of(cls, encoder: Encoder) -> Words:
        """Raises StepFailed for a tokenizer with too few of them."""
        found = sorted(encoder.words().items())
        marks = [ids.tolist() for ids in encoder.ids([KEY_VALUE, PAIR_END])]
        if len(found) < FEWEST_WORDS or any(len(mark) != 1 for mark in marks):
            cut = " and ".join(str(len(mark)) for mark in marks)
            raise StepFailed(
                f"recall: {len(found)} of the tokenizer's tokens are whole words (asked: {FEWEST_WORDS}), and "
                f"{KEY_VALUE!r} and {PAIR_END!r} are {cut} tokens (asked: 1); take one with a larger vocab_size"
            )
        ids, texts = zip(*found, strict=True)
        return cls(np.array(ids, np.int64), texts, marks[0][0], marks[1][0])


@dataclass(frozen=True)
class RecallRows:
    """Rows `[T]` for training, by number: the same seed and number give the same row."""

    length: int
    seed: int
    encoder: Encoder
    share: float
    """Of all rows of the corpus."""

    @cached_property
    def words(self) -> Words:
        return Words.of(self.encoder)

    def due(self, text_rows: int, written: int) -> Iterator[Ids]:
        """The generated rows that follow the text's row number `text_rows`, where `written` were before it."""
        wanted = int(text_rows * self.share / (1 - self.share)) if self.share else 0
        for number in range(written, wanted):
            yield self.row(number)

    def row(self, number: int) -> Ids:
        """Most rows are copies, each a document; the others are keys and values, written out or bare."""
        random = np.random.Generator(np.random.PCG64([self.seed, 1 + number]))
        kind = random.random()
        if kind < COPIES:
            return self._copies(random, _few_or_all(random, self._every_token))
        if kind < (1 + COPIES) / 2:
            body_T = recalled(random, _few_or_all(random, self._every_token), self.length - 1)
        else:
            body_T = recalled(random, _few_or_all(random, self.words.ids), self.length - 1, self.words)
        return np.concatenate([[self.encoder.end], body_T])

    def _copies(self, random: np.random.Generator, ids: Ids) -> Ids:
        parts: list[Ids] = []
        left = self.length
        while left:
            body_T = copied(random, ids, left - 1)
            left -= 1 + len(body_T)
            parts += [np.array([self.encoder.end]), body_T]
        return np.concatenate(parts)

    @cached_property
    def _every_token(self) -> Ids:
        """But the end of text, which would end what a copy may look at."""
        tokens = np.delete(np.arange(self.encoder.vocab_size), self.encoder.end)
        return np.random.Generator(np.random.PCG64([self.seed])).permutation(tokens)


def _few_or_all(random: np.random.Generator, every: Ids) -> Ids:
    """Of the tokens, in the order in which they are given to all rows."""
    return every[:FEW] if random.random() < OF_FEW else every


def log_uniform(random: np.random.Generator, low: int, high: int) -> int:
    """From `low` to `high`, as often between 8 and 16 as between 64 and 128."""
    return min(high, int(low * math.exp(random.random() * math.log((high + 1) / low))))


def copied(random: np.random.Generator, ids: Ids, most: int) -> Ids:
    """`[T]`: different random tokens, repeated until the end: a token says where its last place was, and what followed
    it there. Each token of the copy is as far behind its original. All of the `most` tokens, or PART of them and more
    where the distance needs them, if as many are left."""
    farthest = min(len(ids), max(2, int(FARTHEST * most)))
    distance = log_uniform(random, min(NEAREST, farthest), farthest)
    length = max(PART - 1, math.ceil(distance / FARTHEST))
    if most - length < PART:
        length = most
    return np.resize(random.choice(ids, distance, replace=False), length)


def recalled(random: np.random.Generator, ids: Ids, length: int, marks: Words | None = None) -> Ids:
    """`[length]`: pairs of a key and its value; a key that was there before has the same value again. With `marks`
    pairs are written " key = value;", else as two tokens."""
    width = 4 if marks else 2
    pairs = -(-length // width)
    key_P = _keys_of_pairs(random, pairs, len(ids))
    drawn_P, worth_P = random.permutation(ids)[key_P], random.choice(ids, pairs)[key_P]
    columns = [drawn_P, worth_P]
    if marks:
        columns = [drawn_P, np.full(pairs, marks.between), worth_P, np.full(pairs, marks.end)]
    return np.stack(columns, 1).reshape(-1)[:length]


def _keys_of_pairs(random: np.random.Generator, pairs: int, keys: int) -> Ids:
    """`[P]`: the number of each pair's key, in the order of their coming: a new one, or that of an earlier pair, drawn
    as often among the last 8 to 16 as among the last 32 to 64. At most `keys` numbers."""
    again_P = random.random(pairs) < ASKED_AGAIN
    back_P = np.exp(random.random(pairs) * np.log(np.maximum(np.arange(pairs), 1))).astype(np.int64)
    numbers: list[int] = []
    new = 0
    for again, back in zip(again_P.tolist(), back_P.tolist(), strict=True):
        if numbers and (again or new == keys):
            numbers.append(numbers[-back])
        else:
            numbers.append(new)
            new += 1
    return np.array(numbers, np.int64)
