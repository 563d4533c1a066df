"""Which trials are trained on from a rung: asynchronous successive halving (Li et al. 2020, arXiv 1810.05934). Pure.

Of n scores at a rung, the best n/eta go on, as soon as they are known to be: nobody waits for the whole rung. A trial
that is not among them waits, as more scores at its rung make room for more, and is stopped once no more can come.

With several objectives the better trial is the one that fewer fronts dominate, and within a front the one whose
neighbours are further away (NSGA-II's crowding distance, Deb et al. 2002): both ends of a front come first, that of
the last objective before the others.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

Place = tuple[int, int]
"""A trial and a rung, which are counted from 0."""


@dataclass(frozen=True)
class RungScore:
    """What a trial reached at a rung. `objectives`: each the smaller the better. One that is infinite or not a number,
    as of a training that diverged, makes the trial worse than all others, and it does not go on."""

    trial: int
    rung: int
    objectives: tuple[float, ...]

    @property
    def usable(self) -> bool:
        return all(map(math.isfinite, self.objectives))


class Verdict(StrEnum):
    GO_ON = "go on"
    WAIT = "wait"
    STOP = "stop"


@dataclass(frozen=True)
class Decision:
    verdict: Verdict
    reason: str
    """In one line."""


def decide(
    scores: Collection[RungScore],
    begun: Collection[Place],
    lengths: Sequence[int],
    eta: int,
    *,
    more: bool,
) -> dict[int, Decision]:
    """What happens to each trial whose score at the rung that it reached is known, and that has not begun the next.

    begun: the rungs that were begun, of trials that have not failed. lengths: those of the rungs, in steps of the
    training. more: whether trials may come that have not begun. The decisions do not depend on the order of `scores`
    and `begun`, and hold for what had arrived: what goes on once stays so by being in `begun` from then on.
    """
    scored = {(score.trial, score.rung): score for score in scores}
    decisions: dict[int, Decision] = {}
    for rung, length in enumerate(lengths[:-1]):
        here = [score for score in scored.values() if score.rung == rung]
        more = more or any(place[1] == rung and place not in scored for place in begun)
        order = ranked(here)
        places = len(here) // eta if more else max(1, len(here) // eta)
        places = min(places, sum(score.usable for score in here))
        when = f"after {length} steps" if length else "before any training"
        for position, trial in enumerate(order):
            if (trial, rung + 1) in begun or (trial, rung + 1) in scored:
                continue
            words = f"{_ordinal(position + 1)} of {len(here)} {when}: {_number(places)} on"
            if position < places:
                decisions[trial] = Decision(Verdict.GO_ON, words)
            elif not scored[trial, rung].usable:
                decisions[trial] = Decision(Verdict.STOP, f"no finite score {when}")
            else:
                decisions[trial] = Decision(Verdict.WAIT if more else Verdict.STOP, words)
        # Whoever goes on from here, or may do so yet, comes to the next rung.
        more = more or any(trial in decisions and decisions[trial].verdict is Verdict.GO_ON for trial in order)
    return decisions


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"{number}{ending}"


def _number(places: int) -> str:
    return f"{places} goes" if places == 1 else f"{places} go"


def ranked(scores: Iterable[RungScore]) -> list[int]:
    """The trials of a rung, the best first; of two that are equal the earlier one."""
    given = sorted(scores, key=lambda score: score.trial)
    left = {score.trial: score.objectives for score in given if score.usable}
    order: list[int] = []
    while left:
        front = [trial for trial, own in left.items() if not any(_dominates(other, own) for other in left.values())]
        distances = _crowding({trial: left[trial] for trial in front})
        order += sorted(front, key=lambda trial: (-distances[trial], left[trial][::-1], trial))
        left = {trial: own for trial, own in left.items() if trial not in distances}
    return order + [score.trial for score in given if not score.usable]


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _crowding(front: Mapping[int, tuple[float, ...]]) -> dict[int, float]:
    """How far apart the neighbours of each are, in shares of the front's extent, summed over the objectives; infinite
    at its ends. Of equal trials the first has that distance, and the others come behind the whole front."""
    first: dict[tuple[float, ...], int] = {}
    for trial, point in front.items():
        first.setdefault(point, trial)
    distances = dict.fromkeys(front, -1.0) | dict.fromkeys(first.values(), 0.0)
    for objective in range(len(next(iter(first)))):
        points = sorted(first, key=lambda point: point[objective])
        for end in (points[0], points[-1]):
            distances[first[end]] = math.inf
        extent = points[-1][objective] - points[0][objective]
        if 0 < extent < math.inf:
            for before, own, after in zip(points, points[1:], points[2:], strict=False):
                distances[first[own]] += (after[objective] - before[objective]) / extent
    return distances
