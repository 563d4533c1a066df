"""The points of an ordinary sweep as trials: what a rule stops, or a budget ends, without a sampler."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sweeps.planning.variant import Variant
from sweeps.planning.variants import STEPS


@dataclass(frozen=True)
class Listed:
    """A point of the sweep, from 1 on, with the variants of its rungs, the shortest first."""

    number: int
    variants: tuple[Variant, ...]


def listed(variants: Iterable[Variant]) -> list[Listed]:
    """The points of a plan in their order, without its baselines: variants that differ in the rung alone are one."""
    chains: dict[tuple[object, ...], list[Variant]] = {}
    for variant in variants:
        if variant.baseline is None:
            others = tuple(line for line in variant.varying if not line.startswith(f"{STEPS}="))
            first = next(iter((*variant.earlier, variant.uptrain)), None)
            chains.setdefault((others, variant.layout, variant.config.cache, first and first.id), []).append(variant)
    return [Listed(number, tuple(chain)) for number, chain in enumerate(chains.values(), 1)]
