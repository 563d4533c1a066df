"""The signatures of a variant's steps (mlkv/signature.py) as one text, which a column of the results holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlkv.signature import COLLAPSED

_BETWEEN = "; "


@dataclass(frozen=True)
class Sign:
    """word: `collapsed` or `unstable`. subject: the score's column, or the kind of the training. why: the numbers."""

    word: str
    subject: str
    why: str


def joined(signs: Iterable[Sign]) -> str | None:
    """`collapsed piqa.acc: acc = 0.51 is no better than …; unstable uptrain: a logged loss spiked (…)`."""
    return _BETWEEN.join(dict.fromkeys(f"{sign.word} {sign.subject}: {sign.why}" for sign in signs)) or None


def split(text: str | None) -> list[Sign]:
    """What `joined` made."""
    found = []
    for part in (text or "").split(_BETWEEN) if text else []:
        head, _, why = part.partition(": ")
        word, _, subject = head.partition(" ")
        found.append(Sign(word, subject, why))
    return found


def collapsed_scores(text: str | None) -> set[str]:
    """The columns of a variant's scores that are no better than chance."""
    return {sign.subject for sign in split(text) if sign.word == COLLAPSED}
