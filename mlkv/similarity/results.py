"""What a similarity step found, as its file holds it. numpy alone, so that tables and figures read it without torch.

Legend: `L` layers, `P` KV heads of all layers, lowest layer first, `N` windows of held-out text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = "similarity.safetensors"
DAMAGE, ATTENTION, DISTANCE = "damage", "attention_divergence", "distance"
KEYS, VALUES, UNROTATED = "keys", "values", "unrotated_keys"
MEASURES = (
    f"cka_{KEYS}",
    f"cka_{VALUES}",
    ATTENTION,
    f"cosine_{KEYS}",
    f"cosine_{VALUES}",
    DISTANCE,
    f"cka_{UNROTATED}",
)
"""All but the damage. That of unrotated keys is there only where keys rotate; DISTANCE and the cosines of layers only
where all layers have equally many heads, as vectors of different lengths have neither."""
APART = (ATTENTION, DISTANCE)
"""Of which less is more alike; of the others, more is."""

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Similarity:
    """layers: measure → `[L, L]`. heads: measure → `[P, P]`, not of DISTANCE.
    key_heads, value_heads: how many KV heads each layer attends to, `[L]`; of values for the measures of values.
    excess: `[N, L, L]`, nats that a window takes more where layer `j` (second axis) reads what layer `i` (last axis)
    computed. tokens, nats: `[N]`, predicted tokens of each window, and nats that the base takes for them; empty, as
    `excess` is, where the damage was not asked for.
    """

    layers: dict[str, Floats]
    heads: dict[str, Floats]
    key_heads: Counts
    value_heads: Counts
    excess: Floats
    tokens: Floats
    nats: Floats

    @property
    def damage(self) -> Floats | None:
        """`[L, L]` nats per token; None where it was not asked for."""
        return self.excess.sum(0) / self.tokens.sum() if len(self.tokens) else None

    @property
    def damage_errors(self) -> Floats | None:
        """The standard errors of `damage` over windows, of the difference in each window; None for a single one."""
        return errors(self.excess, self.tokens) if len(self.tokens) > 1 else None

    def costs(self) -> dict[str, list[list[float]]]:
        """By measure, `[i][j]`: the more, the more unlike layer `j` is to layer `i` below it; of DAMAGE, what it loses
        by reading it. As rules read them (mlkv/rules.py)."""
        found = {name: (values if name in APART else -values).tolist() for name, values in self.layers.items()}
        # There the layer that reads is the row.
        return found if self.damage is None else {**found, DAMAGE: self.damage.T.tolist()}

    def head_names(self, measure: str) -> list[tuple[int, int]]:
        """(layer, head) of each row of a measure of heads."""
        counts = self.value_heads if measure.endswith(f"_{VALUES}") else self.key_heads
        return [(layer, head) for layer, count in enumerate(counts) for head in range(count)]

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        arrays = {f"layers.{name}": values for name, values in self.layers.items()}
        arrays |= {f"heads.{name}": values for name, values in self.heads.items()}
        arrays |= {name: getattr(self, name) for name in _PARTS}
        save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Similarity:
        """Raises ValueError for a file that is damaged, OSError for one that is not there."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(folder / FILE)
            parts = {name: arrays[name] for name in _PARTS}
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{folder / FILE}: is damaged ({error})") from None
        layers, heads = (
            {name: arrays[f"{level}.{name}"] for name in MEASURES if f"{level}.{name}" in arrays}
            for level in ("layers", "heads")
        )
        return cls(layers, heads, **parts)


_PARTS = ("key_heads", "value_heads", "excess", "tokens", "nats")


def errors(parts_N: Floats, weights_N: Floats) -> Floats:
    """Standard errors of Σ parts / Σ weights over the first axis (delta method, as mlkv/evaluate/bits.py)."""
    n = len(weights_N)
    wholes = weights_N.reshape(-1, *[1] * (parts_N.ndim - 1))
    value = parts_N.sum(0) / weights_N.sum()
    spread: Floats = ((parts_N - value * wholes) ** 2).sum(0)
    return np.sqrt(spread / (n * (n - 1))) / weights_N.mean()


def pairs_below(layers: int) -> Sequence[tuple[int, int]]:
    """(j, i) of every layer and the layers below it, whose keys and values it could read."""
    return [(j, i) for j in range(layers) for i in range(j)]
