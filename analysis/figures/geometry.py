"""Where an axis begins and ends and what its ticks say, in the figures and in the page's plot. Numbers alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from analysis.data.numbers import LARGEST, on_axis, on_log_axis

T = TypeVar("T")

LINEAR_MARGIN = 0.08
"""Of a linear axis beyond its values, as a share of their range."""
MARKER_ROOM, NAME_ROOM = 1.25, 1.5
"""Factors of a logarithmic axis beyond its values: where markers have to fit, and where names do too."""
_LOG_MARGIN = 0.05
"""The same as a share of the octaves: over many octaves a factor is narrower than a marker."""
_LEAST_OCTAVE = -1070.0
"""Of the least float that is above zero, with some digits."""
_LONGEST_NUMBER = 16
"""Letters."""
_MOST_REMARKS = 4
_LEAST_WIDTH = 1e-9
"""Of a linear axis, as a share of its values: closer numbers have no different places on a screen."""


@dataclass(frozen=True)
class Tick:
    value: float
    text: str


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`, linear or logarithmic. Ticks are chosen here and not by matplotlib, whose choice
    depends on the resolution: the labels, and with them the layout, would differ from one file format to the next."""

    low: float
    high: float
    ticks: list[Tick]
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies: 0 at `low`, 1 at `high`."""
        low, high, at = (math.log2(v) if self.log else v for v in (self.low, self.high, value))
        return (at - low) / (high - low)

    def value(self, share: float) -> float:
        """The inverse of `share`."""
        if self.log:
            low, high = math.log2(self.low), math.log2(self.high)
            return float(2.0 ** (low + (high - low) * share))
        return self.low + (self.high - self.low) * share


ChooseTicks = Callable[[float, float, int], Sequence[float]]
"""At most so many ticks from a low to a high value."""


def linear_scale(values: Iterable[float], most: int = 7, margin: float = LINEAR_MARGIN) -> Scale:
    """A linear axis around the values that have a place on it. Of equal values the margin is a share of them, so that
    the axis has a width."""
    low, high = _ends(filter(on_axis, values), 0.0)
    size = max(abs(low), abs(high))
    room = max(margin * (high - low), _LEAST_WIDTH * size) if high > low else 0.05 * size
    room = max(room, 1 / LARGEST) if size else 1.0
    ticks, digits = nice_ticks(low - room, high + room, most - 1)
    return Scale(low - room, high + room, [Tick(tick, number_text(tick, digits)) for tick in ticks])


def score_scale(scores: Iterable[tuple[float, float | None]]) -> Scale:
    """A linear axis around scores and their error bars; an unknown error has no bar."""
    return linear_scale(
        end for score, error in scores for end in (score - (error or 0.0), score, score + (error or 0.0))
    )


def count_scale(last: float, most: int = 5) -> Scale:
    """A linear axis from 0 to `last` (at least 1), with whole numbers as ticks. The margin holds the marker of an
    unfinished run."""
    last = max(last, 1.0)
    ticks = [tick for tick in nice_ticks(0, last, most - 1)[0] if abs(tick - round(tick)) < 1e-6]
    return Scale(0.0, last * 1.02, [Tick(tick, number_text(tick)) for tick in ticks])


def log_scale(
    values: Iterable[float],
    choose: ChooseTicks,
    most: int = 6,
    room: float = MARKER_ROOM,
    text: Callable[[float], str] | None = None,
) -> Scale:
    """A logarithmic axis around the values that have a place on it, or around 1 without one; `room` is the least factor
    beyond them."""
    low, high = _ends(filter(on_log_axis, values), 1.0)
    margin = max(math.log2(room), _LOG_MARGIN * (math.log2(high) - math.log2(low)))
    # In octaves, as the ratio of two floats may be none.
    low, high = 2.0 ** max(math.log2(low) - margin, _LEAST_OCTAVE), 2.0 ** (math.log2(high) + margin)
    ticks = [Tick(tick, (text or number_text)(tick)) for tick in choose(low, high, most)]
    return Scale(low, high, ticks, log=True)


def _ends(values: Iterable[float], otherwise: float) -> tuple[float, float]:
    known = list(values) or [otherwise]
    return min(known), max(known)


def not_drawn(values: Iterable[tuple[str, float | None]]) -> list[str]:
    """A remark on values, each with its noun, that an axis has no place for: `not drawn: 2 peaks of 0`. Empty without
    any."""
    found = Counter((noun, None if value is None else f"{value:.4g}") for noun, value in values)
    parts = [
        f"{times:,} {noun if times == 1 else _plural(noun)} {'without a number' if text is None else f'of {text}'}"
        for (noun, text), times in found.most_common(_MOST_REMARKS)
    ]
    more = ["…"] if len(found) > _MOST_REMARKS else []
    return [f"not drawn: {', '.join([*parts, *more])}"] if parts else []


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def number_text(value: float, digits: int | None = None) -> str:
    """`4,096`, `0.5`, `−2.0`: with `digits` decimals, or as many as the number has; `1e+50` where that is too long for
    a tick. The minus sign is as wide as a digit."""
    text = f"{value:,.12g}" if digits is None else f"{value:,.{digits}f}"
    if len(text) > _LONGEST_NUMBER:
        text = f"{value:.3g}"
    return text.replace("-", "−") if value < 0 else text


def byte_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of two from `low` to `high` (both above 0.5), thinned evenly to at most `most`."""
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    stride = max(1, math.ceil((last - first + 1) / most))
    return [float(2**power) for power in range(first, last + 1, stride)]


def nice_ticks(low: float, high: float, about: int = 6) -> tuple[list[float], int]:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high`, and the decimals they need."""
    rough = (high - low) / about
    power = math.floor(math.log10(rough))
    step = next(m * 10.0**power for m in (1, 2, 5, 10) if m * 10.0**power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)], max(0, -math.floor(math.log10(step) + 1e-9))


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers from `low` to `high` (both above 0) for a logarithmic axis: the densest of 1-2-5,
    1-3 and powers of ten that fits; multiples of a round step where the axis spans less than that."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**power for power in decades for m in steps if low <= m * 10.0**power <= high]
        if len(ticks) < 3:
            return nice_ticks(low, high, max(3, most - 2))[0]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def zero_and_one(low: float, high: float) -> list[Tick]:
    """Two ticks for an axis too narrow for more: zero, and a round number on its longer side. The axis has to contain
    zero."""
    side = high if high >= -low else low
    power = math.floor(math.log10(abs(side)))
    digit = int(abs(side) / 10.0**power + 1e-9)
    # 1, 2 or 5 is easier to read, but must not be so close to zero that the two labels touch.
    rounder = next(m for m in (5, 2, 1) if m <= digit)
    far = rounder * 10.0**power >= 0.25 * (high - low)
    value = math.copysign((rounder if far else digit) * 10.0**power, side)
    return [Tick(0.0, "0"), Tick(value, number_text(value, max(0, -power)))]


def distinct(values: Sequence[float], least_ratio: float = 1.2) -> list[float]:
    """Of values in rising order those that are `least_ratio` apart, whose labels have room on a logarithmic axis; the
    largest is one of them."""
    chosen = list(values[-1:])
    for value in reversed(values[:-1]):
        if chosen[-1] / value >= least_ratio:
            chosen.append(value)
    return chosen[::-1]


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, first and last among them."""
    if len(items) <= most:
        return list(items)
    if most < 2:
        return list(items[:most])
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
