"""What a sampler asks for next, by what is known so far: optuna's, by ask and tell.

A study is made anew for each question, from the history alone, and the sampler's random numbers come from its seed and
the length of the history. So the same history leads to the same point, whether a driver was killed in between or not.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeps.planning.search_config import Sampler
from sweeps.search.space import MAX_LISTED, Dimension, LayoutNumber, Point, Range, Space

if TYPE_CHECKING:
    import optuna

STARTUP_TRIALS = 5
"""Points at random before a sampler has enough to learn from."""
POPULATION = 8
"""Trials of a generation of NSGA-II. optuna's 50 would be most searches' whole budget, spent at random."""
REPEATS = {"gp": 1}
"""How often a sampler is asked before the nearest new point is taken for one that was tried already: 3 times, or so
often; what Gaussian processes ask for hardly depends on chance, and takes half a second."""


@dataclass(frozen=True)
class Observation:
    """What is known of a point. `objectives`: each the smaller the better; None: not yet. `impossible`: there is no
    such variant, or it failed."""

    point: Point
    objectives: tuple[float, ...] | None = None
    impossible: bool = False


class Study:
    """Asks for the points of a space."""

    def __init__(self, space: Space, sampler: Sampler, seed: int, objectives: int) -> None:
        """objectives: their number. Raises UserError for a grid over an interval, which has no end."""
        self._space, self._sampler, self._seed, self._objectives = space, sampler, seed, objectives
        if sampler == "grid":
            space.check_listed("search.sampler = grid")

    def ask(self, history: Sequence[Observation]) -> Point | None:
        """A point that was not tried yet; None where all of a finite space were."""
        tried, size = {observed.point for observed in history}, self._space.size
        if size is not None and len(tried) >= size:
            return None
        if self._sampler == "grid":
            return next(point for point in self._space.points() if point not in tried)
        for attempt in range(REPEATS.get(self._sampler, 3)):
            point = self._suggested(history, attempt)
            if point not in tried:
                return point
        return self._nearest(point, tried, self._random(history, -1)) if size is not None else point

    def _random(self, history: Sequence[Observation], attempt: int) -> random.Random:
        return random.Random(f"{self._seed} {len(history)} {attempt}")

    def _nearest(self, point: Point, tried: Collection[Point], numbers: random.Random) -> Point:
        """The point nearest to one that was tried already, of those that were not."""
        size = self._space.size or 0
        while size > MAX_LISTED:  # nearly all of these were not
            drawn = tuple(float(_drawn(dimension, numbers)) for dimension in self._space.dimensions)
            if drawn not in tried:
                return drawn
        new = [other for other in self._space.points() if other not in tried]
        return min(new, key=lambda other: (self._space.distance(point, other), numbers.random()))

    def _suggested(self, history: Sequence[Observation], attempt: int) -> Point:
        import optuna
        from optuna.exceptions import ExperimentalWarning

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            for category in (ExperimentalWarning, FutureWarning, UserWarning):
                warnings.simplefilter("ignore", category)
            sampler = self._made(self._random(history, attempt).getrandbits(32))
            study = optuna.create_study(sampler=sampler, directions=["minimize"] * self._objectives)
            distributions = {str(i): _distribution(d) for i, d in enumerate(self._space.dimensions)}
            worst = _worst(history) or (0.0,) * self._objectives
            for number, observed in enumerate(history):
                _add(study, number, observed, distributions, worst)
            suggested = study.ask(distributions).params
        values = zip(self._space.dimensions, (float(suggested[name]) for name in distributions), strict=True)
        return tuple(d.rounded(value) if isinstance(d, Range) else value for d, value in values)

    def _made(self, seed: int) -> optuna.samplers.BaseSampler:
        from optuna import samplers

        if self._sampler == "tpe":
            return samplers.TPESampler(
                n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True, seed=seed
            )
        if self._sampler == "nsga2":
            return samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
        if self._sampler == "gp":
            return samplers.GPSampler(n_startup_trials=STARTUP_TRIALS, deterministic_objective=True, seed=seed)
        return samplers.RandomSampler(seed=seed)


def is_known(observed: Observation) -> bool:
    """Whether it has values, and all of them are numbers."""
    return not observed.impossible and observed.objectives is not None and all(map(math.isfinite, observed.objectives))


def _worst(history: Sequence[Observation]) -> tuple[float, ...]:
    """Of each objective, the worst value that is known."""
    known = [observed.objectives for observed in history if observed.objectives is not None and is_known(observed)]
    return tuple(map(max, zip(*known, strict=True)))


def _add(
    study: optuna.Study,
    number: int,
    observed: Observation,
    distributions: dict[str, optuna.distributions.BaseDistribution],
    worst: tuple[float, ...],
) -> None:
    """Add a trial to the study. What is impossible has the worst values there are, and violates a constraint."""
    from optuna.distributions import FloatDistribution
    from optuna.samplers import NSGAIISampler
    from optuna.trial import TrialState, create_trial

    impossible = observed.impossible or (observed.objectives is not None and not is_known(observed))
    values = worst if impossible else observed.objectives
    params = {
        name: value if isinstance(distribution, FloatDistribution) else int(value)
        for (name, distribution), value in zip(distributions.items(), observed.point, strict=True)
    }
    # NSGA-II notes a trial's generation when it is asked for the trial, and can do so only before the trial has ended.
    sampler = study.sampler if isinstance(study.sampler, NSGAIISampler) else None
    study.add_trial(
        create_trial(
            state=TrialState.RUNNING if values is None or sampler else TrialState.COMPLETE,
            params=params,
            distributions=distributions,
            values=None if sampler else values,
            constraints={} if values is None else {"possible": 1.0 if impossible else -1.0},
        )
    )
    if sampler and values is not None:
        sampler.get_trial_generation(study, study.get_trials(deepcopy=False)[-1])
        study.tell(number, values)


def _distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Range):
        interval = dimension.interval
        if interval.whole:
            return IntDistribution(int(interval.low), int(interval.high), log=interval.log)
        return FloatDistribution(interval.low, interval.high, log=interval.log)
    if isinstance(dimension, LayoutNumber) or dimension.ordered:
        return IntDistribution(0, dimension.size - 1)
    return CategoricalDistribution(range(dimension.size))


def _drawn(dimension: Dimension, numbers: random.Random) -> int:
    first = int(dimension.interval.low) if isinstance(dimension, Range) else 0
    return numbers.randrange(first, first + (dimension.size or 1))
