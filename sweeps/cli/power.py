"""What `mlkv plan` says of the differences that the planned seeds and samples can tell apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.data.metrics import METRICS
from analysis.data.replicates import SEEDS
from analysis.statistics.noise import Evidence, Wanted, evidence, recipe_key

if TYPE_CHECKING:
    from analysis.statistics.power import Noise
    from mlkv.files import Json
    from sweeps.planning.plan import Plan
    from sweeps.planning.variant import Variant
    from sweeps.store.store import Store

_SMALLER = (2, 4)
"""Parts of the difference that the planned seeds find, for which the needed seeds are told."""
_COUNTS = range(2, 11)
"""Seeds for which `--json` tells the difference that they find."""


@dataclass(frozen=True)
class PlannedPower:
    """Of one model and quality axis. seeds: of the layout that has fewest."""

    wanted: Wanted
    seeds: int
    evidence: Evidence | None

    @property
    def metric(self) -> str:
        """`accuracy` for a mean over several scores."""
        return self.wanted.scores[0][1] if len(self.wanted.scores) == 1 else "accuracy"

    @property
    def compares_trainings(self) -> bool:
        """Whether there is a spread of seeds, which takes two to be seen."""
        return bool(self.wanted.recipes)


def planned_power(plan: Plan, store: Store) -> list[PlannedPower]:
    """For each model and quality axis of a plan."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Variant]] = defaultdict(list)
    for variant in plan.variants:
        if variant.baseline != "untouched" and (scores := _scores(variant)):
            groups[variant.config.model.name, scores].append(variant)
    found = []
    for (model, scores), variants in groups.items():
        trained = [variant for variant in variants if variant.uptrain]
        recipes = frozenset(recipe_key(each.values["uptrain"]) for each in trained)
        wanted = Wanted(model, scores, recipes, variants[0].config.evaluate.limit)
        found.append(PlannedPower(wanted, _fewest_seeds(trained or variants), evidence(store, wanted)))
    return found


def _scores(variant: Variant) -> tuple[tuple[str, str], ...]:
    """Whose mean is the main quality axis; none where a score of it is not planned."""
    own = variant.config.evaluate
    axis = own.axis if own.axis and own.axis[0] != "accuracy" else None
    scores = (axis,) if axis else own.accuracy
    return scores if all(task in variant.evaluate for task, _ in scores) else ()


def _fewest_seeds(variants: Sequence[Variant]) -> int:
    """Of any layout and recipe, counted as tables count them (analysis/data/replicates.py)."""
    seeds: dict[object, set[tuple[str, ...]]] = defaultdict(set)
    for variant in variants:
        own = [line for line in variant.varying if line.startswith(SEEDS)]
        swept = (line for line in variant.varying if line not in own and not line.startswith("layout"))
        seeds[variant.baseline, variant.layout, tuple(sorted(swept))].add(tuple(sorted(own)))
    return min(map(len, seeds.values()))


def power_lines(found: Sequence[PlannedPower]) -> Iterator[str]:
    """A line on what is told apart for each, and one on the noise that this follows from."""
    for each in found:
        of = f" of {each.wanted.model}" if len({one.wanted.model for one in found}) > 1 else ""
        yield f"power{of}: {_line(each)}"
        if noise := _noise(each):
            yield f"noise{of}: {noise}"


def _line(power: PlannedPower) -> str:
    known = power.evidence
    if not power.compares_trainings:
        return f"nothing is trained, so that seeds do not matter; {_by_samples(power, 'conversions')}"
    if power.seeds < 2:
        one = "one seed of each layout cannot tell a difference of trainings from the noise of seeds"
        return f"{one}; uptrain.seed=1,2,3 would; {_by_samples(power, 'checkpoints')}"
    if known is None or not known.freedom:
        return (
            f"what {power.seeds} seeds of each layout tell apart is not known: {_unknown(power, ' with several seeds')}"
        )
    least, rest = known.noise.least_difference(power.seeds), []
    for part in _SMALLER:
        seeds = known.noise.seeds_for(least / part)
        rest.append(f"{_text(power, least / part)} takes {'more samples' if seeds is None else f'{seeds} seeds'}")
    found = f"{power.seeds} seeds of each layout tell apart {_text(power, least)} {_unit(power)}"
    return "; ".join([f"{found} (two-sided 5 %, power 80 %)", *rest])


def _noise(power: PlannedPower) -> str:
    """What is known of it, and from where."""
    known, parts = power.evidence, []
    if known and known.freedom and power.compares_trainings:
        parts.append(f"seeds differ by {_text(power, known.noise.spread)} (standard deviation; {known.source})")
    if known and known.noise.paired is not None:
        bound = "at most " if known.at_most else ""
        error = f"{known.noise.samples:,} samples move a difference by {bound}{_text(power, known.noise.paired)}"
        parts.append(f"{error} (standard error; {known.samples_source})")
    elif parts:
        parts.append("what the choice of samples adds is not known")
    return "; ".join(parts)


def _by_samples(power: PlannedPower, what: str) -> str:
    least = power.evidence.noise.by_samples if power.evidence else None
    if least is None:
        return f"what samples alone tell of two {what} is not known: {_unknown(power)}"
    return f"samples alone tell two {what} apart that differ by {_text(power, least)} {_unit(power)}"


def _unknown(power: PlannedPower, which: str = "") -> str:
    names = ", ".join(dict.fromkeys(task for task, _ in power.wanted.scores))
    return f"the store has no results of {power.wanted.model}{which} by {names}"


def _text(power: PlannedPower, value: float) -> str:
    scale = METRICS[power.metric].scale if power.metric in METRICS else 1.0
    return f"{value * scale:.2g}"


def _unit(power: PlannedPower) -> str:
    if power.metric not in METRICS:
        return power.metric
    own = METRICS[power.metric]
    return f"percentage points of {own.label}" if own.scale != 1 else own.label


def as_json(power: PlannedPower) -> Json:
    """What `plan --json` prints of it. Numbers are in the stored unit (a share for an accuracy)."""
    known = power.evidence
    noise = known.noise if known else None
    spread = noise if known and known.freedom and power.compares_trainings else None
    least = spread.least_difference(power.seeds) if spread and power.seeds > 1 else None
    return {
        "model": power.wanted.model,
        "scores": [list(score) for score in power.wanted.scores],
        "seeds": power.seeds,
        "seed_deviation": spread.spread if spread else None,
        "seed_source": known.source or None if known else None,
        "sample_error": noise.paired if noise else None,
        "sample_source": known.samples_source or None if known else None,
        "least_difference": least,
        "least_by_samples": noise.by_samples if noise else None,
        "seeds_for": _seeds_for(spread, least) if spread and least else [],
        "of_seeds": [
            {"seeds": seeds, "least_difference": spread.least_difference(seeds)} for seeds in _COUNTS if spread
        ],
    }


def _seeds_for(noise: Noise, least: float) -> list[Json]:
    return [{"difference": least / part, "seeds": noise.seeds_for(least / part)} for part in _SMALLER]
