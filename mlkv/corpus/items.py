"""Task items cut from held-out documents: the quickstart's stand-ins for LAMBADA, ARC-e/SciQ and PIQA.

An item is one JSON line that conf/tasks/<task>.yaml reads. Contexts end and continuations begin between two words, so
that a tokenizer cuts the joined text where the item was cut, whichever continuation is put behind a context.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from .tokenizer import Encoded, Encoder

Item = dict[str, Any]

CONTEXT_TOKENS = 64
CONTINUATION_TOKENS = 16
_NEXT_WORD = re.compile(r" ([A-Za-z_]{3,})(?!\w)")


@dataclass(frozen=True)
class Passage:
    context: str
    continuation: str
    word: str | None
    """The continuation's first word, where it also stands in the context."""


def passages(
    documents: list[str], encoder: Encoder, sequence_length: int, wanted: Callable[[Passage], bool]
) -> list[Passage]:
    """The wanted passages of CONTEXT_TOKENS and CONTINUATION_TOKENS (fewer where `sequence_length` is short), in the
    documents' order, none overlapping, each cut where a single space parts two words."""
    continuation = min(CONTINUATION_TOKENS, sequence_length // 5)
    context = min(CONTEXT_TOKENS, sequence_length - continuation)
    found = [p for text in documents for p in _cut(encoder.encode(text), context, continuation, wanted)]
    lengths = [len(ids) for ids in encoder.ids([p.continuation for p in found])]
    return [p for p, length in zip(found, lengths, strict=True) if length == continuation]


def _cut(document: Encoded, context: int, continuation: int, wanted: Callable[[Passage], bool]) -> Iterator[Passage]:
    text, ends = document.text, document.ends.tolist()
    last = context
    while last + continuation < len(ends):
        start, cut, end = ends[last - context], ends[last], ends[last + continuation]
        passage = _passage(text, start, cut, end) if _parts_words(text, cut) else None
        if passage and wanted(passage):
            yield passage
            last += context + continuation
        else:
            last += 1


def _parts_words(text: str, cut: int) -> bool:
    return text[cut] == " " and not text[cut - 1].isspace() and not text[cut + 1].isspace()


def _passage(text: str, start: int, cut: int, end: int) -> Passage:
    context, word = text[start:cut], _NEXT_WORD.match(text, cut)
    repeated = word is not None and re.search(rf"\b{word[1]}\b", context)
    return Passage(context, text[cut:end], word[1] if word and repeated else None)


def cloze(found: list[Passage], items: int, random: Random) -> list[Item]:
    """The next word of a passage that has said it before, as LAMBADA's mostly have; chance is about 0."""
    chosen = random.sample(found, min(items, len(found)))
    return [{"context": p.context, "target": f" {p.word}"} for p in chosen]


def choice(found: list[Passage], items: int, ways: int, random: Random) -> list[Item]:
    """The right continuation among `ways`, the others from other passages; chance is 1 / `ways`."""
    if len({p.continuation for p in found}) < ways:
        return []
    return [_choice(p, found, ways, random) for p in random.sample(found, min(items, len(found)))]


def _choice(passage: Passage, found: list[Passage], ways: int, random: Random) -> Item:
    choices = [passage.continuation]
    while len(choices) < ways:
        other = random.choice(found).continuation
        if other not in choices:
            choices.append(other)
    label = random.randrange(ways)
    choices[0], choices[label] = choices[label], choices[0]
    return {"context": passage.context, "choices": choices, "label": label}


def make_items(
    documents: list[str], encoder: Encoder, *, sequence_length: int, items: int, seed: int
) -> dict[str, list[Item]]:
    """At most `items` items for each task; fewer, or none, where the documents are too short for that many."""
    every = passages(documents, encoder, sequence_length, lambda passage: True)
    with_word = passages(documents, encoder, sequence_length, lambda passage: passage.word is not None)
    return {
        "heldout_cloze": cloze(with_word, items, Random(f"cloze:{seed}")),
        "heldout_choice4": choice(every, items, 4, Random(f"choice4:{seed}")),
        "heldout_choice2": choice(every, items, 2, Random(f"choice2:{seed}")),
    }
