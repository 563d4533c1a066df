"""Which rows of the results a signature is of (mlkv/signature.py), for tables and figures alike."""

from __future__ import annotations

from collections.abc import Iterable

from analysis.data.frame import Row
from analysis.data.signatures import collapsed_scores, split
from analysis.statistics.columns import split_parts
from mlkv.signature import COLLAPSED, UNSTABLE

_MOST_NAMES = 4
"""Rows that a line names."""


def is_collapsed(row: Row, name: str) -> bool:
    """Whether a score is no better than chance; a mean accuracy where that is so of all its parts."""
    known = collapsed_scores(row.get("signatures"))
    score = row.get("quality_score") if name == "quality" else name
    if known and score == "accuracy":
        return known.issuperset(split_parts(row["accuracy_parts"]))
    return score in known


def of_score(row: Row, name: str) -> list[str]:
    """What is signed of a row's score and of its trainings, a line each."""
    score = row.get("quality_score") if name == "quality" else name
    own = [sign for sign in split(row.get("signatures")) if sign.word == UNSTABLE or sign.subject == score]
    return [f"{sign.word}: {sign.why}" for sign in own]


def signed(rows: Iterable[Row], score: str) -> list[str]:
    """`collapsed: MLKV-1`, `unstable: GQA-12`: a line for each word that is true of rows by this score."""
    own = list(rows)
    collapsed = [str(row["variant"]) for row in own if is_collapsed(row, score)]
    unstable = [str(row["variant"]) for row in own if UNSTABLE in {sign.word for sign in split(row.get("signatures"))}]
    return [
        f"{word}: {', '.join(names[:_MOST_NAMES])}{', …' if len(names) > _MOST_NAMES else ''}"
        for word, names in ((COLLAPSED, collapsed), (UNSTABLE, unstable))
        if names
    ]
