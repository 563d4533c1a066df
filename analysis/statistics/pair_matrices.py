"""What similarity steps found about the bases behind some results, as rules read it."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.data.pairs import PairMatrix
from analysis.data.similarity import TITLES
from analysis.statistics.landscape import Landscape
from analysis.statistics.similarity import similarities
from analysis.statistics.sources import Source
from mlkv.similarity.results import APART, Similarity


def matrices_of(source: Source, landscape: Landscape) -> list[PairMatrix]:
    """Every measure of the layers of a landscape's base; empty where no finished step compared them. Raises
    DamagedFileError."""
    steps = {each.variant.steps.similarity for each in source.planned if each.row == landscape.base}
    found = [each.found for each in similarities(source) if each.step in steps]
    return [matrix for each in found[:1] for matrix in matrices(each)]


def matrices(found: Similarity) -> Iterator[PairMatrix]:
    """As costs of a reader and its source, whichever way round they were measured."""
    if found.damage is not None:
        # There the layer that reads is the row.
        yield PairMatrix("damage of reading", found.damage.T.tolist(), is_cost=True)
    for measure, values in found.layers.items():
        yield PairMatrix(TITLES[measure], values.tolist(), higher_is_alike=measure not in APART)
