"""What a layout is expected to cost in quality: a law over sets of evidence, with an interval, and its test.

The relative loss of a layout against a reference of its set is a · (g(layout) - g(reference)), where
g = w · h^p + (1 - w) · l^p, with `h` the logarithm of query heads per KV head and `l` that of layers per owner: it
grows with each halving of either. `w` and `p` are the same for all sets, chosen by the error of rows that are left out
one by one; `a` is a model's own and varies around a mean over models (random effects, DerSimonian and Laird 1986),
which is what is expected of a model that nothing is known of. Where owners sit is no part of it: it is in what is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from analysis.statistics.evidence import EvidenceSet, Kind, Size

POWERS = (1.0, 1.5, 2.0)
WEIGHTS = tuple(i / 10 for i in range(1, 10))
LARGER = 10.0
"""Times the largest model of the evidence: beyond it a prediction is called extrapolated."""
_FEWEST = 3
"""Degrees of freedom of a spread that is a model's own; rows of a set that choose `w` and `p`."""
_LEAST, _ROUNDING = 1e-18, 1e-9
"""A variance, and a difference of logarithms, below which they are rounding."""


@dataclass(frozen=True)
class Form:
    """`w` and `p`."""

    weight: float
    power: float

    def __call__(self, size: Size) -> float:
        return (
            self.weight * max(size.heads, 0.0) ** self.power + (1 - self.weight) * max(size.layers, 0.0) ** self.power
        )

    def above(self, size: Size, reference: Size) -> float:
        return self(size) - self(reference)


@dataclass(frozen=True)
class Prediction:
    """The expected relative loss with its 95 % interval. rows, sets: what it is from. own: the set of the same model
    whose rows it leans on. extrapolated: the model is more than LARGER times the largest of them. beyond: it shares
    more than any of them."""

    value: float
    low: float
    high: float
    rows: int
    sets: tuple[str, ...]
    own: str | None
    extrapolated: bool
    beyond: bool = False


@dataclass(frozen=True)
class _Variance:
    value: float
    freedom: int


@dataclass(frozen=True)
class _Scale:
    """`a` of some sets of one model, by least squares through their references: g² and (y - a g)² summed over rows."""

    value: float
    weight: float
    squares: float
    freedom: int

    @classmethod
    def of(cls, sets: Sequence[EvidenceSet], form: Form) -> _Scale:
        pairs = [(form.above(row.size, each.reference), row.loss) for each in sets for row in each.rows]
        weight = math.fsum(g * g for g, _ in pairs)
        value = math.fsum(g * y for g, y in pairs) / weight if weight else 0.0
        left = math.fsum((y - value * g) ** 2 for g, y in pairs)
        return cls(value, weight, left, len(pairs) - 1)

    def around(self, otherwise: _Variance | None) -> _Variance:
        """The variance of rows around the law; of too few rows that of other models."""
        if self.freedom < _FEWEST and otherwise:
            return otherwise
        return _Variance(max(self.squares / max(self.freedom, 1), _LEAST), max(self.freedom, 1))


@dataclass(frozen=True)
class _Population:
    """Of the scales of models: mean, its variance, variance between models, degrees of freedom; and the variance of
    rows around the law."""

    mean: float
    error: float
    between: float
    freedom: int
    around: _Variance

    @classmethod
    def of(cls, scales: Sequence[_Scale]) -> _Population | None:
        """None without a model that lost or gained anything."""
        scales = [scale for scale in scales if scale.weight]
        if not scales:
            return None
        spread = [scale.squares / scale.freedom for scale in scales if scale.freedom > 0]
        freedom = max(sum(max(scale.freedom, 0) for scale in scales), 1)
        around = _Variance(max(math.fsum(spread) / max(len(spread), 1), _LEAST), freedom)  # each model counts once
        precise = [scale.weight / scale.around(around).value for scale in scales]
        values, total = [scale.value for scale in scales], math.fsum(precise)
        mean = math.fsum(w * a for w, a in zip(precise, values, strict=True)) / total
        excess = math.fsum(w * (a - mean) ** 2 for w, a in zip(precise, values, strict=True)) - (len(scales) - 1)
        spare = total - math.fsum(w * w for w in precise) / total
        # One model says nothing of the spread of models: it is taken to be as large as what that one lost.
        between = max(0.0, excess / spare) if len(scales) > 1 else mean**2
        weights = [1 / (between + 1 / w) for w in precise]
        mean = math.fsum(w * a for w, a in zip(weights, values, strict=True)) / math.fsum(weights)
        return cls(mean, 1 / math.fsum(weights), between, max(len(scales) - 1, 1), around)


class Law:
    """Fitted to sets of evidence of any kind."""

    def __init__(self, sets: Iterable[EvidenceSet]) -> None:
        self.sets = [each for each in sets if any(row.size != each.reference for row in each.rows)]
        self.form = best_form(self.sets)
        self._populations: dict[tuple[str, ...], _Population | None] = {}

    def scale(self, each: EvidenceSet) -> float:
        """`a` of a set by its own rows alone: how much its layouts lost for what they share."""
        return _Scale.of([each], self.form).value

    def predict(
        self, size: Size, reference: Size, kind: Kind, parameters: float, own: EvidenceSet | None = None
    ) -> Prediction | None:
        """Of a layout against `reference`, the base's own; `own` is a set of the same model, whose other sets are left
        out. None without a set of this kind."""
        own = own if own in self.sets else None
        others = [each for each in self.sets if each.kind == kind and not (own and each.group == own.group)]
        known = [*others, *([own] if own else [])]
        if not known:
            return None
        scale, of_scale, of_rows = self._scale(own, self._population(others))
        g = self.form.above(size, reference)
        value = max(scale, 0.0) * g
        reach = _reach([_Variance(g * g * of_scale.value, of_scale.freedom), of_rows]) if g else 0.0
        return Prediction(
            value,
            value - reach,
            value + reach,
            rows=sum(len(each.rows) for each in known),
            sets=tuple(dict.fromkeys(each.name for each in known)),
            own=own.name if own else None,
            extrapolated=parameters > LARGER * max(each.parameters for each in known),
            beyond=_is_beyond(size, [row.size for each in known for row in each.rows]),
        )

    def _population(self, sets: Sequence[EvidenceSet]) -> _Population | None:
        """Of the models of these sets, which are all sets of a kind of theirs."""
        groups = tuple(dict.fromkeys(each.group for each in sets))
        key = *groups, *{each.kind: None for each in sets}
        if key not in self._populations:
            scales = [_Scale.of([each for each in sets if each.group == group], self.form) for group in groups]
            self._populations[key] = _Population.of(scales)
        return self._populations[key]

    def _scale(self, own: EvidenceSet | None, population: _Population | None) -> tuple[float, _Variance, _Variance]:
        """Mean and variance of `a`, and the variance of rows around the law: of the model's own rows, drawn towards the
        mean of other models; without rows of its own that mean."""
        if own is None:
            assert population, "some set is known"
            spread = population.between + population.error
            return population.mean, _Variance(spread, population.freedom), population.around
        scale = _Scale.of([own], self.form)
        around = scale.around(population.around if population else None)
        variance = around.value / scale.weight if scale.weight else math.inf
        if population is None:
            return scale.value, _Variance(variance, around.freedom), around
        precise, prior = 1 / max(variance, _LEAST), 1 / max(population.between + population.error, _LEAST)
        mean = (precise * scale.value + prior * population.mean) / (precise + prior)
        freedom = around.freedom if precise > prior else population.freedom
        return mean, _Variance(1 / (precise + prior), freedom), around


def _is_beyond(size: Size, known: Sequence[Size]) -> bool:
    """Whether it has fewer heads per owner, or fewer owners, than any."""
    most = max(each.heads for each in known), max(each.layers for each in known)
    return size.heads > most[0] + _ROUNDING or size.layers > most[1] + _ROUNDING


def _reach(variances: Sequence[_Variance]) -> float:
    """Half the 95 % interval of a sum, with Welch and Satterthwaite's degrees of freedom."""
    from analysis.statistics.estimate import t_quantile

    total = math.fsum(each.value for each in variances)
    if not 0 < total < math.inf:
        return total
    shares = math.fsum((each.value / total) ** 2 / each.freedom for each in variances)
    return t_quantile(max(1 / shares, 1.0)) * math.sqrt(total)


def best_form(sets: Sequence[EvidenceSet]) -> Form:
    """The one with the least error on rows that are left out one by one, relative to their set's losses, in the mean
    over models."""
    enough = [each for each in sets if len(each.rows) > _FEWEST] or list(sets)
    groups = [[each for each in enough if each.group == group] for group in dict.fromkeys(e.group for e in enough)]
    forms = [Form(weight, power) for power in POWERS for weight in WEIGHTS]

    def error(form: Form) -> float:
        return math.fsum(math.fsum(_log_error(each, form) for each in own) / len(own) for own in groups)

    return min(forms, key=error)


def _log_error(evidence: EvidenceSet, form: Form) -> float:
    pairs = [(form.above(row.size, evidence.reference), row.loss) for row in evidence.rows]
    square, product = math.fsum(g * g for g, _ in pairs), math.fsum(g * y for g, y in pairs)
    left = [y - g * (product - g * y) / (square - g * g) for g, y in pairs if square > g * g]
    size = math.fsum(y * y for _, y in pairs)
    return math.log(max(math.fsum(each * each for each in left), 1e-18) / max(size, 1e-18)) if left else 0.0


@dataclass(frozen=True)
class LeftOut:
    """A row that is predicted from the others: without itself, and without all rows of its model."""

    set: str
    kind: Kind
    row: str
    loss: float
    without_row: Prediction | None
    without_model: Prediction | None


def leave_out(sets: Sequence[EvidenceSet]) -> list[LeftOut]:
    """Every row of every set, the law fitted anew each time; other models' layouts that were trained briefly are not
    among its evidence."""
    found = []
    for each in sets:
        others = [other for other in sets if other.group != each.group and not other.brief]
        siblings = [other for other in sets if other.group == each.group and other is not each]
        of_others = Law(others)
        for row in each.rows:
            rest = replace(each, rows=tuple(other for other in each.rows if other is not row))
            own = rest if rest.rows else next(iter(siblings), None)
            law = Law([*others, *siblings, rest])
            size, to, kind, parameters = row.size, each.reference, each.kind, each.parameters
            without_row = law.predict(size, to, kind, parameters, own)
            without_model = of_others.predict(size, to, kind, parameters)
            found.append(LeftOut(each.name, kind, row.name, row.loss, without_row, without_model))
    return found


@dataclass(frozen=True)
class Summary:
    """Of the predictions of a set's rows. losses: the root mean square of what rows lost. error, covered, reach: of
    the predictions, root mean square of what they are off, the share of rows in their intervals, and half the mean
    length of these; None where there is no evidence."""

    set: str
    kind: Kind
    rows: int
    losses: float
    without_row: tuple[float, float, float] | None
    without_model: tuple[float, float, float] | None


def summaries(left_out: Sequence[LeftOut]) -> list[Summary]:
    """By set."""
    names = dict.fromkeys((each.set, each.kind) for each in left_out)
    return [
        _summary(name, kind, [each for each in left_out if (each.set, each.kind) == (name, kind)])
        for name, kind in names
    ]


def _summary(name: str, kind: Kind, rows: Sequence[LeftOut]) -> Summary:
    return Summary(
        name,
        kind,
        len(rows),
        math.sqrt(math.fsum(row.loss**2 for row in rows) / len(rows)),
        _errors([(row.without_row, row.loss) for row in rows]),
        _errors([(row.without_model, row.loss) for row in rows]),
    )


def _errors(pairs: Sequence[tuple[Prediction | None, float]]) -> tuple[float, float, float] | None:
    known = [(found, loss) for found, loss in pairs if found]
    if not known:
        return None
    n = len(known)
    error = math.sqrt(math.fsum((found.value - loss) ** 2 for found, loss in known) / n)
    covered = sum(found.low <= loss <= found.high for found, loss in known) / n
    return error, covered, math.fsum((found.high - found.low) / 2 for found, _ in known) / n
