"""The pair matrices of the bases behind some results."""

from __future__ import annotations

from analysis.data.pairs import PairMatrix
from analysis.statistics.sources import Source


def matrices_of(source: Source) -> list[PairMatrix]:
    return []
