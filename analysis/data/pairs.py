"""Numbers of pairs of layers, by which rules choose which layers share: how alike they are, or what sharing costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PairMatrix:
    """A measure of a base's layers. `values[i][j]`: of layer `j` that would read layer `i`. higher_is_alike: whether
    more means more alike. is_cost: whether it is what sharing costs; sharing what costs most is then no rule."""

    name: str
    values: Sequence[Sequence[float]]
    higher_is_alike: bool = False
    is_cost: bool = False
