"""How alike the keys, values and attention of two layers or heads are, from sums over a text that is read once.

Every measure compares what two layers compute at the same token of the same text:

- linear CKA (Kornblith et al., arXiv 1905.00414, equation 4) of features `X` and `Y`, each `[tokens, features]`
  with the mean of every feature taken off: `‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)` in Frobenius norms. It is 1 where one is a
  turned and scaled copy of the other, which a converted projection could undo. xKV (arXiv 2503.18893) compares
  caches by it. It exceeds 0 by some features / tokens where the two have nothing in common.
- cosine of the two vectors, the mean over tokens. It is 1 only where one is a scaled copy of the other as it stands,
  which is what a layer needs that reads the other's cache.
- distance: Euclid's, between the mean caches of some texts (KVSharer, arXiv 2410.18517, as its code computes it; it
  shares the most distant layers).
- attention divergence: Jensen and Shannon's (Lin, IEEE Trans. Inf. Theory 37, 1991) of two attention distributions, in
  bits, the mean over queries; 0 where they are equal, 1 where they share no token. A KV head's distribution is the
  mean of those of its query heads, a layer's the mean of all.

Keys are compared rotated, as attention reads them. Rotation multiplies them by another matrix at every position, which
features are not invariant to, so there is a CKA of keys before rotation too. Cosines and distances at one position are
the same before and after, as both keys turn by the same angles.

Legend: `B` sequences, `T` tokens of each, `G` KV heads of a layer, `P` those of all layers, `K` head width, `F` = G·K,
`W` queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

Pairs = Sequence[tuple[int, int]]
SUMS_AT_ONCE = 2**31
"""Bytes of products of features that are summed in one pass over the text: at more, the text is read again."""


def passes(widths: Sequence[int]) -> Sequence[Pairs]:
    """Pairs of layers of so many features, in groups whose sums fit into SUMS_AT_ONCE."""
    groups: list[list[tuple[int, int]]] = [[]]
    used = 0
    for i, first in enumerate(widths):
        for j in range(i, len(widths)):
            size = 8 * first * widths[j]
            if groups[-1] and used + size > SUMS_AT_ONCE:
                groups.append([])
                used = 0
            groups[-1].append((i, j))
            used += size
    return groups


@dataclass
class Alignment:
    """`‖XᵀY‖²` of the centred features of every pair of heads, for CKA.

    The products are summed over tokens, never held by them. What is taken off first, the mean of the first batch,
    changes no result: without it, float32 would lose the differences beside a large mean.
    """

    heads: list[int]
    squares: Tensor = field(init=False)
    """`[P, P]`"""
    _shifts: list[Tensor] = field(default_factory=list)
    _products: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _sums: dict[int, Tensor] = field(default_factory=dict)
    _tokens: int = 0

    def __post_init__(self) -> None:
        self.squares = torch.zeros(sum(self.heads), sum(self.heads), dtype=torch.float64)

    def add(self, layers: Sequence[Tensor], pairs: Pairs) -> None:
        """`layers`: `[B, G, T, K]` of each layer; `pairs`: those that are summed in this pass over the text."""
        features = [each.transpose(1, 2).flatten(2).flatten(0, 1).float() for each in layers]
        if not self._shifts:
            self._shifts = [each.mean(0) for each in features]
        features = [each - shift for each, shift in zip(features, self._shifts, strict=True)]
        for i, j in pairs:
            product = (features[i].mT @ features[j]).double()
            self._products[i, j] = self._products[i, j] + product if (i, j) in self._products else product
        for layer, each in enumerate(features):
            self._sums[layer] = self._sums.get(layer, 0) + each.double().sum(0)
        self._tokens += len(features[0])

    def end_pass(self) -> None:
        """Keep the pass's squares, and none of its sums."""
        starts = [sum(self.heads[:layer]) for layer in range(len(self.heads))]
        for (i, j), product in self._products.items():
            centred = product - self._sums[i][:, None] * self._sums[j] / self._tokens
            blocks = centred.unflatten(1, (self.heads[j], -1)).unflatten(0, (self.heads[i], -1))
            squares_GG = blocks.square().sum((1, 3)).cpu()
            rows, columns = (slice(starts[layer], starts[layer] + self.heads[layer]) for layer in (i, j))
            self.squares[rows, columns] = squares_GG
            self.squares[columns, rows] = squares_GG.mT
        self._products, self._sums, self._tokens = {}, {}, 0

    def cka(self) -> tuple[Tensor, Tensor]:
        """Of layers `[L, L]` and of heads `[P, P]`; 0 for features that do not vary."""
        rows = torch.stack([part.sum(0) for part in self.squares.split(self.heads)])
        layers = torch.stack([part.sum(1) for part in rows.split(self.heads, 1)], 1)
        return _normalised(layers), _normalised(self.squares)


def _normalised(squares: Tensor) -> Tensor:
    scale = squares.diagonal().sqrt()
    return torch.where(scale[:, None] * scale > 0, squares / (scale[:, None] * scale), 0.0)


class Cosine:
    """The mean over tokens of the cosine of two heads' vectors, and of two layers' with all heads side by side."""

    def __init__(self) -> None:
        self._heads: Tensor | float = 0.0
        self._layers: Tensor | float = 0.0
        self._tokens = 0

    def add(self, layers: Sequence[Tensor]) -> None:
        heads = torch.cat([_directions(each.transpose(0, 1).flatten(1, 2)) for each in layers])
        self._heads = self._heads + (heads @ heads.mT).double().cpu()
        if len({each.shape[1] for each in layers}) == 1:
            whole = torch.cat([_directions(each.transpose(1, 2).flatten(2).flatten(0, 1)[None]) for each in layers])
            self._layers = self._layers + (whole @ whole.mT).double().cpu()
        self._tokens += layers[0].shape[0] * layers[0].shape[2]

    def means(self) -> tuple[Tensor | None, Tensor]:
        """Of layers `[L, L]`, None where their vectors have different lengths; and of heads `[P, P]`."""
        layers = self._layers / self._tokens if isinstance(self._layers, Tensor) else None
        assert isinstance(self._heads, Tensor)
        return layers, self._heads / self._tokens


def _directions(vectors: Tensor) -> Tensor:
    """Each token's vector at length 1, and those of all tokens in a row: `[…, tokens, F]` → `[…, tokens · F]`."""
    return functional.normalize(vectors.float(), dim=-1).flatten(-2)


class Distance:
    """Euclid's distance of two layers' mean caches: of the vectors of a head at a position, each the mean over texts;
    the mean over heads and positions, and of keys and values."""

    def __init__(self) -> None:
        self._sums: list[list[Tensor]] = []
        self._texts = 0

    def add(self, *kinds: Sequence[Tensor]) -> None:
        """`[B, G, T, K]` of each layer, of keys and of values."""
        sums = [[layer.double().sum(0) for layer in layers] for layers in kinds]
        before = self._sums or [[torch.zeros_like(layer) for layer in layers] for layers in sums]
        self._sums = [[a + b for a, b in zip(one, two, strict=True)] for one, two in zip(before, sums, strict=True)]
        self._texts += len(kinds[0][0])

    def distances(self) -> Tensor | None:
        """`[L, L]`; None where layers have different numbers of heads."""
        if any(len({layer.shape for layer in layers}) > 1 for layers in self._sums):
            return None
        means = [torch.stack([_distances(one, layers) for one in layers]) for layers in self._sums]
        return (torch.stack(means).mean(0) / self._texts).cpu()


def _distances(one: Tensor, layers: Sequence[Tensor]) -> Tensor:
    return torch.stack([(one - other).norm(dim=-1).mean() for other in layers])


class Divergence:
    """Jensen and Shannon's divergence in bits, the mean over queries, of every pair of distributions."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._queries = 0

    def add(self, weights: Tensor) -> None:
        """`weights`: `[P, …, T]`, distributions over tokens."""
        weights_PQT = weights.float().flatten(1, -2)
        own_P = _bits(weights_PQT).sum(1)
        sums_PP = weights_PQT.new_zeros(len(own_P), len(own_P), dtype=torch.float64)
        for one in range(len(own_P) - 1):
            mixed = _bits((weights_PQT[one] + weights_PQT[one + 1 :]) / 2).sum(1)
            sums_PP[one, one + 1 :] = mixed - (own_P[one] + own_P[one + 1 :]) / 2
        self._sum = self._sum + (sums_PP + sums_PP.mT).cpu()
        self._queries += weights_PQT.shape[1]

    def means(self) -> Tensor:
        """`[P, P]`; rounding leaves none below 0."""
        assert isinstance(self._sum, Tensor)
        return (self._sum / self._queries).clamp(min=0)


def _bits(distributions: Tensor) -> Tensor:
    """Entropy over the last dimension."""
    return torch.special.entr(distributions).sum(-1).double() / math.log(2)
