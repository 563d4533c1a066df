"""Which differences of two layouts so many seeds and samples tell apart, and how many seeds a smaller one needs.

The test is the one of estimate.difference: Welch's t over the seeds of two layouts that are scored on the same samples.
Its error is √(2 s² / n + v): `s` is the standard deviation between the `n` seeds of one layout, and `v` the part of the
paired variance over samples that more seeds do not lessen. Power is exact where `v` is zero or its samples are many
(noncentral t), and by Welch and Satterthwaite's degrees of freedom in between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LEVEL, POWER = 0.95, 0.8
"""Of the two-sided test, and with what probability it finds the difference."""
MOST_SEEDS = 1000
"""Nobody trains more."""


@dataclass(frozen=True)
class Noise:
    """What blurs the difference of two layouts, in the unit of the score.

    spread: standard deviation between seeds of one layout; 0 where nothing is trained. paired: standard error that the
    choice of samples gives the difference, however many seeds there are; None where it is not known, and then it counts
    as 0. one_seed: that of two single checkpoints, whose answers to single samples depend on their seeds too. samples:
    how many there are.
    """

    spread: float
    paired: float | None = None
    one_seed: float | None = None
    samples: int = 0

    def error(self, seeds: int) -> tuple[float, float]:
        """The standard error of the difference of two layouts with so many seeds each, and its degrees of freedom.
        Raises ValueError for one seed where there is a spread: nothing then tells how large it is."""
        if self.spread and seeds < 2:
            raise ValueError(f"seeds = {seeds}: a spread needs at least two")
        of_seeds, of_samples = 2 * self.spread**2 / seeds, (self.paired or 0.0) ** 2
        total = of_seeds + of_samples
        if not total:
            return 0.0, math.inf
        shares = 2 * (of_seeds / 2 / total) ** 2 / max(seeds - 1, 1)
        shares += (of_samples / total) ** 2 / max(self.samples - 1, 1)
        return math.sqrt(total), 1 / shares

    def least_difference(self, seeds: int) -> float:
        """The smallest that is found with this power."""
        return least_difference(*self.error(seeds))

    @property
    def by_samples(self) -> float | None:
        """The smallest difference of two single checkpoints that their samples tell; None where nothing is known."""
        return None if self.one_seed is None else least_difference(self.one_seed, self.samples - 1.0)

    def with_samples(self, samples: int) -> Noise:
        """The same with another number of samples of the same kind."""
        if not self.samples or samples == self.samples:
            return self
        factor = math.sqrt(self.samples / samples)
        paired, one_seed = (None if error is None else factor * error for error in (self.paired, self.one_seed))
        return Noise(self.spread, paired, one_seed, samples)

    def seeds_for(self, difference: float) -> int | None:
        """The fewest seeds that find such a difference; None where even many more do not."""
        low, high = 1, 2
        while self.least_difference(high) > difference:
            low, high = high, 2 * high
            if low > MOST_SEEDS:
                return None
        while high - low > 1:  # more seeds never find less
            middle = (low + high) // 2
            low, high = (low, middle) if self.least_difference(middle) <= difference else (middle, high)
        return high


def power(difference: float, error: float, freedom: float) -> float:
    """The probability that a two-sided t-test finds a true difference, by the noncentral t."""
    from scipy.special import nctdtr, stdtrit

    if not error:
        return 1.0
    least = stdtrit(freedom, (1 + LEVEL) / 2)
    return float(1 - nctdtr(freedom, difference / error, least) + nctdtr(freedom, difference / error, -least))


def least_difference(error: float, freedom: float) -> float:
    """The difference that is found with the power POWER."""
    if not error:
        return 0.0
    low, high = 0.0, 1.0
    while power(high, 1.0, freedom) < POWER:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, 1.0, freedom) >= POWER else (middle, high)
    return high * error
