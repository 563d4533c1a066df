"""The trials of a search: points that a sampler asked for, each with its variants, as the journal has them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mlkv.layout_rules import SEARCHED
from sweeps.planning.compose import Composer
from sweeps.planning.config import Config
from sweeps.planning.grammar import grid_of
from sweeps.planning.plan import Plan, Planner
from sweeps.planning.resolve import Resolver
from sweeps.planning.variant import Variant
from sweeps.planning.variants import ImpossibleLayoutError, layout_count
from sweeps.search.space import LayoutNumber, Listed, Point, Space
from sweeps.search.study import Observation, Study
from sweeps.store.errors import UserError
from sweeps.store.journal import SearchJournal
from sweeps.store.schema import TrialRow

MAX_IMPOSSIBLE = 300
"""Points in a row that are no new trial, before a search of a space without end gives up."""
MAX_COUNTED = 200
"""Points at most whose layouts are counted before a search begins."""
Ids = tuple[tuple[str, ...], ...]
"""The steps of each of a trial's variants."""


@dataclass(frozen=True)
class Trial:
    """A point of the space. `variants`: of each rung, the shortest first; one where there are no rungs."""

    number: int
    point: Point
    variants: tuple[Variant, ...]

    @property
    def ids(self) -> Ids:
        return _ids(self.variants)


Values = Mapping[int, tuple[float, ...] | None]
"""Trial → its objectives; None: it failed. Trials that are not in here have none yet."""


class Search:
    """What was chosen so far, and what is chosen next. Plans, and writes the journal; runs nothing."""

    def __init__(
        self, composer: Composer, resolver: Resolver, arguments: Sequence[str], journal: SearchJournal | None = None
    ) -> None:
        """journal: what a search that goes on chose before. Raises UserError for what is wrong with the line."""
        self._planner, self._arguments, self._journal = Planner(composer, resolver), list(arguments), journal
        space = Space.of(grid_of(composer, arguments, search=True))
        self.config = self._check_ends(space)
        self.space = Space((*space.fixed,), (*space.dimensions, *self._several(space, resolver)))
        search = self.config.search
        self._study = Study(self.space, search.sampler, search.seed, len(search.objectives))
        self.trials: list[Trial] = []
        self.left_out = 0
        """Trials of earlier lines that are no points of this one's space."""
        self._points: list[tuple[Point, int | None]] = []
        """Every point that was chosen, with its trial; None: it is impossible."""
        self._last = 0
        self.impossible = ""
        """Why the last point that could not be was none; empty where all could."""
        self._baselines: list[Variant] = []
        for row in journal.rows() if journal else []:
            self._replay(row)

    @property
    def exhausted(self) -> bool:
        """Whether every point of a finite space was chosen."""
        return self.space.size is not None and len({point for point, _ in self._points}) >= self.space.size

    def ask(self, values: Values) -> Trial | None:
        """The next trial, which is in the journal when this returns; None where there is no other.

        Raises UserError where the sampler finds no variant in a space without end, and for what is wrong with a
        point's values."""
        reason = ""
        for _ in itertools.repeat(None) if self.space.size is not None else range(MAX_IMPOSSIBLE):
            point = self._study.ask(self._history(values))
            if point is None:
                return None
            found = self._variants(point)
            if isinstance(found, str):
                self.impossible = reason = found
                self._note(TrialRow(trial=None, point=self.space.texts(point), impossible=found), point, None)
                continue
            known = next((trial for trial in self.trials if trial.ids == _ids(found)), None)
            trial = Trial(known.number if known else self._last + 1, point, found)
            steps = [list(ids) for ids in trial.ids]
            self._note(TrialRow(trial=trial.number, point=self.space.texts(point), steps=steps), point, trial.number)
            if known is None:
                self._add(trial)
                return trial
            reason = f"trial {known.number} has the same steps"
        raise UserError(f"search: {MAX_IMPOSSIBLE} points in a row are no new trial (the last: {reason})")

    def check_first(self) -> None:
        """Plan one point. Raises UserError for what is wrong with all points, as a file that is missing."""
        self._variants(next(_ends(self.space)))

    def plan(self) -> Plan:
        """The plan of all trials so far, with the baselines of the first. Raises UserError."""
        variants = [*self._baselines, *(variant for trial in self.trials for variant in trial.variants)]
        return replace(self._planner.plan(self.config, variants, self._arguments), command="search")

    def _history(self, values: Values) -> list[Observation]:
        return [
            Observation(point, None if trial is None else values.get(trial), trial is None or _failed(values, trial))
            for point, trial in self._points
        ]

    def _note(self, row: TrialRow, point: Point, trial: int | None) -> None:
        if self._journal:
            self._journal.append([row])
        self._points.append((point, trial))

    def _add(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._last = max(self._last, trial.number)
        if len(self.trials) == 1:
            own = self._planned(trial.point, baselines=False)
            both = self._planned(trial.point, baselines=True)
            self._baselines = both[: len(both) - len(own)]

    def _replay(self, row: TrialRow) -> None:
        """Take a row of the journal; its variants are planned anew, as the line may have changed since."""
        self._last = max(self._last, row.trial or 0)
        point = self.space.read(row.point)
        if point is None:
            self.left_out += row.trial is not None
            return
        found = self._variants(point)
        if isinstance(found, str) or row.trial is None:
            self._points += [(point, None)] if isinstance(found, str) else []
            return
        known = next((trial for trial in self.trials if trial.ids == _ids(found)), None)
        taken = row.trial in {trial.number for trial in self.trials}
        number = known.number if known else self._last + 1 if taken else row.trial
        self._points.append((point, number))
        if known is None:
            self._add(Trial(number, point, found))

    def _variants(self, point: Point) -> tuple[Variant, ...] | str:
        """The variants of a point; or why there are none."""
        try:
            planned = self._planned(point, baselines=False)
        except ImpossibleLayoutError as error:
            return str(error)
        except UserError as error:
            if str(error).startswith("layout"):  # of the configuration itself
                return str(error)
            raise
        layouts = list(dict.fromkeys(variant.layout for variant in planned))
        if not layouts:
            return "sweep.filter leaves nothing of it"
        last = self.space.dimensions[-1] if self.space.dimensions else None
        chosen = layouts[last.chosen(point[-1], len(layouts)) if isinstance(last, LayoutNumber) else 0]
        return tuple(variant for variant in planned if variant.layout == chosen)

    def _planned(self, point: Point, *, baselines: bool) -> list[Variant]:
        varying = self.space.varying(point)
        return self._planner.variants([*self.space.fixed, *varying], varying, baselines=baselines)[1]

    def _check_ends(self, space: Space) -> Config:
        """The configuration of the first point whose layout can be. Raises UserError for values that no configuration
        can have, at either end of each dimension."""
        found: Config | None = None
        fault: UserError | None = None
        for point in _ends(space):
            try:
                config, _ = self._planner.config([*space.fixed, *space.varying(point)])
                found = found or config
            except UserError as error:
                if not str(error).startswith("layout"):
                    raise
                fault = fault or error
        if found is None:
            raise fault or UserError("search: the line leaves nothing open")
        return found

    def _several(self, space: Space, resolver: Resolver) -> list[LayoutNumber]:
        """One more dimension where some points leave several layouts."""
        count = 1
        for point in _layouts(space):
            try:
                config, _ = self._planner.config([*space.fixed, *space.varying(point)])
            except UserError:
                continue
            if config.layout.pattern == SEARCHED:
                raise UserError(
                    f"layout.pattern = {SEARCHED}: a search chooses layouts itself, and waits for nothing that a rule "
                    "reads; list patterns, or run the line as `mlkv sweep`"
                )
            count = max(count, layout_count(resolver, config))
        return [LayoutNumber(count)] if count > 1 else []


def _ids(variants: Sequence[Variant]) -> Ids:
    return tuple(tuple(step.id for step in variant.steps) for variant in variants)


def _failed(values: Values, trial: int) -> bool:
    return trial in values and values[trial] is None


def _first(space: Space) -> list[float]:
    return [d.interval.low if not isinstance(d, Listed | LayoutNumber) else 0 for d in space.dimensions]


def _ends(space: Space) -> Iterator[Point]:
    """The first point, and those with one dimension at each other value of its list, or at its interval's end."""
    first = _first(space)
    yield tuple(first)
    for place, dimension in enumerate(space.dimensions):
        others: Sequence[float] = (
            range(1, dimension.size) if isinstance(dimension, Listed | LayoutNumber) else [dimension.interval.high]
        )
        for value in others:
            yield (*first[:place], value, *first[place + 1 :])


def _layouts(space: Space) -> Iterator[Point]:
    """Points with different layouts: all of them, or as many as are counted, evenly over the space."""
    columns: list[Sequence[float]] = []
    for dimension, first in zip(space.dimensions, _first(space), strict=True):
        of_layout = any(key.partition(".")[0] in ("layout", "model") for key in dimension.name.split())
        size = dimension.size if of_layout else 1
        start = int(first)
        columns.append([first] if not size or size == 1 else range(start, start + size))
    total = 1
    for column in columns:
        total *= len(column)
    step = -(-total // MAX_COUNTED)
    yield from itertools.islice(itertools.product(*columns), 0, None, step)
