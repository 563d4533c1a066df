"""The points of an ordinary sweep as trials: what a rule stops, or a budget ends, without a sampler."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mlkv.cache.formats import CacheName
from mlkv.layout import KVLayout
from sweeps.planning.plan import Plan
from sweeps.planning.variant import Variant
from sweeps.planning.variants import STEPS
from sweeps.search.trials import Trial, Values


class Points:
    """The points of a sweep in place of those that a sampler asks for: all are there from the beginning."""

    exhausted, impossible = True, ""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.trials = listed(plan.variants)

    def ask(self, values: Values) -> Trial | None:
        return None

    def plan(self) -> Plan:
        return self._plan


def listed(variants: Iterable[Variant]) -> list[Trial]:
    """The points of a plan in their order, without its baselines: variants that differ in the rung alone are one. A
    model before any training is the first rung of every recipe that it is trained by."""
    own = [variant for variant in variants if variant.baseline is None]
    chains: dict[tuple[tuple[str, ...], KVLayout, CacheName], list[Variant]] = {}
    for variant in own:
        if not _is_untrained_rung(variant):
            chains.setdefault((_without_length(variant), variant.layout, variant.config.cache), []).append(variant)
    for first in filter(_is_untrained_rung, own):
        lines, made = set(_without_length(first)), (first.convert, first.config.cache)
        trained = [
            chain
            for (others, *_), chain in chains.items()
            if lines.issubset(others) and made == (chain[0].convert, chain[0].config.cache)
        ]
        for chain in trained:
            chain.insert(0, replace(first))  # another object for each, as one may be stopped without the others
        if not trained:
            chains[(), first.layout, first.config.cache] = [first]
    return [Trial(number, (), tuple(chain)) for number, chain in enumerate(chains.values(), 1)]


def _is_untrained_rung(variant: Variant) -> bool:
    return bool(variant.config.uptrain.rungs) and variant.uptrain is None


def _without_length(variant: Variant) -> tuple[str, ...]:
    """The lines in which points differ, without the rung."""
    rung = f"{STEPS}=" if variant.config.uptrain.rungs else None
    return tuple(line for line in variant.varying if not rung or not line.startswith(rung))
