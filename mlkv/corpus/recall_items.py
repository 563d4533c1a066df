"""Items of the generated tasks: copying, key-value retrieval and associative recall at distances that grow.

The distance of an item is the number of tokens from what it asks for back to where that was written; each is a power
of two. Items are text, as lm-eval takes it, of words that are one token each, so that the model that is scored reads as
many tokens as were drawn. They are drawn from another stream of random numbers than the rows of the training text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .recall import KEY_VALUE, PAIR_END, Words
from .tokenizer import Encoder

NEAREST = 16
"""Tokens: the smallest distance."""
SHOWN = 8
"""Words of a copy that are there before the word that is asked for."""
_BESIDES = 2 * SHOWN
"""Tokens of an item besides those of its distance, at most."""


@dataclass(frozen=True)
class RecallItem:
    context: str
    target: str
    distance: int
    """Tokens from the target back to its original."""


Draw = Callable[[np.random.Generator, int, int, Sequence[str]], tuple[str, str]]
"""From a distance, the tokens of a row and words to a context and a target."""


def copy_item(random: np.random.Generator, distance: int, length: int, words: Sequence[str]) -> tuple[str, str]:
    """Random words, and the first of them again."""
    drawn = _distinct(random, words, distance)
    return "".join(drawn + drawn[:SHOWN]), drawn[SHOWN]


def kv_item(random: np.random.Generator, distance: int, length: int, words: Sequence[str]) -> tuple[str, str]:
    """Pairs of a key and a value, " key = value;", and one of the keys again."""
    return _asked(random, distance, length, words, (KEY_VALUE, PAIR_END))


def associative_item(random: np.random.Generator, distance: int, length: int, words: Sequence[str]) -> tuple[str, str]:
    """Pairs of two words, and the first word of one of them again."""
    return _asked(random, distance, length, words, ("", ""))


DRAWS: dict[str, Draw] = {
    "recall_copy": copy_item,
    "recall_kv": kv_item,
    "recall_associative": associative_item,
}


def _asked(
    random: np.random.Generator, distance: int, length: int, words: Sequence[str], marks: tuple[str, str]
) -> tuple[str, str]:
    """As many pairs are before the one that is asked for as behind it, as far as the row has room for them."""
    width = 2 + sum(map(bool, marks))
    behind = distance // width - 1
    before = min(behind, (length - distance - _BESIDES) // width)
    keys = _distinct(random, words, before + 1 + behind)
    values = [words[i] for i in random.integers(len(words), size=len(keys))]
    between, end = marks
    written = "".join(f"{key}{between}{value}{end}" for key, value in zip(keys, values, strict=True))
    return f"{written}{keys[before]}{between}", values[before]


def _distinct(random: np.random.Generator, words: Sequence[str], count: int) -> list[str]:
    return [words[i] for i in random.choice(len(words), count, replace=False)]


def distances(sequence_length: int, words: int) -> list[int]:
    """Powers of two from NEAREST: those of which an item fits into a row, and needs no word twice."""
    doubled = (NEAREST << n for n in range(sequence_length.bit_length()))
    return [d for d in doubled if d + _BESIDES <= sequence_length and d <= words]


def name_of(task: str, distance: int) -> str:
    """Of a task's member with the items at one distance, and of its file."""
    return f"{task}_{distance}"


def make_recall_items(
    encoder: Encoder, *, sequence_length: int, items: int, seed: int
) -> dict[str, Sequence[RecallItem]]:
    """`items` items for each task and distance, by the names of their files. Raises StepFailed for a tokenizer without
    words enough."""
    if not items:
        return {}
    words = Words.of(encoder).texts
    made: dict[str, Sequence[RecallItem]] = {}
    for number, (task, draw) in enumerate(DRAWS.items()):
        for distance in distances(sequence_length, len(words)):
            # Never a training row's seed: that is two numbers, and the third here is no 0, which would add nothing.
            random = np.random.Generator(np.random.PCG64([seed, number, distance]))
            drawn = [draw(random, distance, sequence_length, words) for _ in range(items)]
            made[name_of(task, distance)] = [RecallItem(*each, distance) for each in drawn]
    return made
