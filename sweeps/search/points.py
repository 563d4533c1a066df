"""The points of an ordinary sweep as trials: what a rule stops, or a budget ends, without a sampler."""

from __future__ import annotations

from collections.abc import Iterable

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
    """The points of a plan in their order, without its baselines: variants that differ in the rung alone are one."""
    chains: dict[tuple[object, ...], list[Variant]] = {}
    for variant in variants:
        if variant.baseline is None:
            others = tuple(line for line in variant.varying if not line.startswith(f"{STEPS}="))
            first = next(iter((*variant.earlier, variant.uptrain)), None)
            chains.setdefault((others, variant.layout, variant.config.cache, first and first.id), []).append(variant)
    return [Trial(number, (), tuple(chain)) for number, chain in enumerate(chains.values(), 1)]
