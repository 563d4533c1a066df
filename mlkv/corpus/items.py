"""Task items cut from held-out documents: the quickstart's stand-ins for LAMBADA, ARC-e/SciQ and PIQA.

An item is one JSON line that conf/tasks/<task>.yaml reads. Contexts end and continuations begin between two words, so
that a tokenizer cuts the joined text where the item was cut, whichever continuation is put behind a context.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tokenizer import Encoded, Encoder  # with numpy, which no plan needs

CONTEXT_TOKENS = 64
CONTINUATION_TOKENS = 16
_NEXT_WORD = re.compile(r" ([A-Za-z_]{3,})(?!\w)")


@dataclass(frozen=True)
class Passage:
    context: str
    continuation: str
    word: str | None
    """The continuation's first word, where the context has it too."""


@dataclass(frozen=True)
class ClozeItem:
    context: str
    target: str


@dataclass(frozen=True)
class ChoiceItem:
    context: str
    choices: list[str]
    label: int
    """The place of the right one in `choices`."""


Item = ClozeItem | ChoiceItem


def cut_passages(
    documents: list[str], encoder: Encoder, sequence_length: int, wanted: Callable[[Passage], bool]
) -> list[Passage]:
    """The wanted passages of CONTEXT_TOKENS and CONTINUATION_TOKENS (fewer where `sequence_length` is short), in the
    documents' order, none overlapping, each cut where a single space separates two words."""
    context, continuation = passage_tokens(sequence_length)
    cut = [p for text in documents for p in _cut(encoder.encode(text), context, continuation, wanted)]
    # Cut out of its text a continuation may have more tokens or fewer. All choices of an item must have equally many:
    # a sum of log-likelihoods favours short ones.
    lengths = [len(ids) for ids in encoder.ids([p.continuation for p in cut])]
    return [p for p, length in zip(cut, lengths, strict=True) if length == continuation]


def passage_tokens(sequence_length: int) -> tuple[int, int]:
    """Tokens of a context and of its continuation."""
    continuation = min(CONTINUATION_TOKENS, sequence_length // 5)
    return min(CONTEXT_TOKENS, sequence_length - continuation), continuation


def _cut(document: Encoded, context: int, continuation: int, wanted: Callable[[Passage], bool]) -> Iterator[Passage]:
    text, ends = document.text, document.ends.tolist()
    last = context
    while last + continuation < len(ends):
        start, cut, end = ends[last - context], ends[last], ends[last + continuation]
        passage = _passage(text, start, cut, end) if _is_between_words(text, cut) else None
        if passage and wanted(passage):
            yield passage
            last += context + continuation
        else:
            last += 1


def _is_between_words(text: str, cut: int) -> bool:
    return text[cut] == " " and not text[cut - 1].isspace() and not text[cut + 1].isspace()


def _passage(text: str, start: int, cut: int, end: int) -> Passage:
    context, word = text[start:cut], _NEXT_WORD.match(text, cut)
    repeated = word is not None and re.search(rf"\b{word[1]}\b", context)
    return Passage(context, text[cut:end], word[1] if word and repeated else None)


def cloze(passages: list[Passage], items: int, random: Random) -> list[ClozeItem]:
    """The next word of a passage, which occurs earlier in it as LAMBADA's mostly do; chance is about 0."""
    chosen = random.sample(passages, min(items, len(passages)))
    return [ClozeItem(p.context, f" {p.word}") for p in chosen]


def choice(passages: list[Passage], items: int, ways: int, random: Random) -> list[ChoiceItem]:
    """The right continuation among `ways`, the others from other passages; chance is 1 / `ways`."""
    if len({p.continuation for p in passages}) < ways:
        return []
    return [_choice(p, passages, ways, random) for p in random.sample(passages, min(items, len(passages)))]


def _choice(passage: Passage, passages: list[Passage], ways: int, random: Random) -> ChoiceItem:
    choices = [passage.continuation]
    while len(choices) < ways:
        other = random.choice(passages).continuation
        if other not in choices:
            choices.append(other)
    label = random.randrange(ways)
    choices[0], choices[label] = choices[label], choices[0]
    return ChoiceItem(passage.context, choices, label)


def make_items(
    documents: list[str], encoder: Encoder, *, sequence_length: int, items: int, seed: int
) -> dict[str, Sequence[Item]]:
    """At most `items` items for each task; fewer, or none, where the documents are too short for so many."""
    every = cut_passages(documents, encoder, sequence_length, lambda passage: True)
    repeating = cut_passages(documents, encoder, sequence_length, lambda passage: passage.word is not None)
    return {
        "heldout_cloze": cloze(repeating, items, Random(f"cloze:{seed}")),
        "heldout_choice4": choice(every, items, 4, Random(f"choice4:{seed}")),
        "heldout_choice2": choice(every, items, 2, Random(f"choice2:{seed}")),
    }
