"""The estimate of every score in every row of the results: from samples where there are any, else from standard errors.

Tables, bars and fronts all take the errors of rows from here, so that no two of them disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from analysis.data.frame import Row
from analysis.data.metrics import METRICS, Metric
from analysis.data.numbers import on_axis
from analysis.data.replicates import differ, mean_of
from analysis.data.samples import Samples
from analysis.statistics import estimate
from analysis.statistics.estimate import Estimate


@dataclass(frozen=True)
class Scored:
    """A variant's value of one (task, metric), and the step that recorded it."""

    value: float
    stderr: float | None
    step: str | None
    task: str
    metric: str


Cells = Mapping[tuple[str, str], Scored]
"""By variant and column (`task.metric`)."""


@dataclass(eq=False)
class Estimates:
    """Estimates, computed when they are first needed. `members` are the rows of the variants behind each row; a row's
    `quality` is the column `axis`, or the accuracy, whose columns are `parts`."""

    members: Mapping[str, Sequence[Row]]
    cells: Cells
    axis: str
    parts: Sequence[str]
    samples: Samples | None = None
    _found: dict[tuple[str, str], Estimate | None] = field(default_factory=dict)
    _read: dict[tuple[str, str], Estimate] = field(default_factory=dict)
    _spreads: dict[str, list[Estimate]] = field(default_factory=dict)

    def select(self, variants: Iterable[str]) -> Estimates:
        """Those of these rows alone. Only the samples that were read are shared: an error that is borrowed from the
        seeds of other rows depends on which rows there are."""
        members = {name: rows for name, rows in self.members.items() if name in set(variants)}
        return replace(self, members=members, _found={}, _spreads={})

    def of(self, row: Row, score: str) -> Estimate | None:
        """Of a score (a column of the results) in a row; None where there is no value."""
        if score == "quality" and self.axis == "accuracy":
            score = self.axis
        key = row["variant"], score
        if key not in self._found:
            self._found[key] = self._of_row(row, score)
        return self._found[key]

    def metric(self, score: str) -> Metric | None:
        """None where it is not known which direction is better."""
        source = self.axis if score == "quality" else score
        return METRICS.get(source.rpartition(".")[2])

    def is_paired(self, rows: Sequence[Row], score: str) -> bool:
        """Whether any two rows were scored on the same samples."""
        found = [set(estimate.influence) for row in rows if (estimate := self.of(row, score))]
        return sum(map(len, found)) > len(set().union(*found))

    def freedom(self, row: Row, score: str) -> float:
        """Degrees of freedom of the standard error that is printed with a score."""
        if (merged := self._merged(row, score)) > 1:
            return merged - 1.0
        if differ(values := [seed[score] for seed in self._seeds(row, score)]):
            return len(values) - 1.0
        own = self.of(row, score)
        return (
            min((len(influence) - 1.0 for influence in own.influence.values()), default=math.inf) if own else math.inf
        )

    def _seeds(self, row: Row, score: str) -> list[Row]:
        return [seed for seed in self.members[row["variant"]] if seed[score] is not None]

    def _merged(self, row: Row, score: str) -> int:
        """The number of seeds in a row whose single seeds are not known, as it was read from a file; else 0."""
        seeds = row["seeds"] if score == "quality" else row[f"{score}_seeds"]
        return seeds if seeds is not None and seeds > len(self.members[row["variant"]]) else 0

    def _of_row(self, row: Row, score: str) -> Estimate | None:
        seeds = self._seeds(row, score)
        if row[score] is None or not seeds:
            return None
        if (merged := self._merged(row, score)) > 1:
            return Estimate(row[score], row[f"{score}_stderr"], merged - 1)
        found = [self._of_variant(seed, score) for seed in seeds]
        if len(found) == 1 < len(self.members[row["variant"]]):
            return estimate.borrow(found[0], self._repeated(score))
        if differ([seed[score] for seed in seeds]):
            return estimate.of_seeds(row[score], row[f"{score}_stderr"], found)
        # Seeds that agree to the last digit have a spread of zero, which is no estimate of the noise of training: the
        # error of their evaluations is all that is known.
        if len(found) == 1 or any(one.influence for one in found):
            return estimate.average(found)
        return Estimate(row[score], row[f"{score}_stderr"])

    def _repeated(self, score: str) -> list[Estimate]:
        """The estimates of all rows with several seeds that have a spread."""
        if score not in self._spreads:
            several = [[s for s in seeds if s[score] is not None] for seeds in self.members.values() if len(seeds) > 1]
            values = [(seeds, own) for seeds in several if len(seeds) > 1 and differ(own := [s[score] for s in seeds])]
            self._spreads[score] = [
                estimate.of_seeds(*mean_of(own), [self._of_variant(seed, score) for seed in seeds])
                for seeds, own in values
            ]
        return self._spreads[score]

    def _of_variant(self, row: Row, score: str) -> Estimate:
        if score == "quality":
            score = self.axis
        if score != "accuracy":
            return self._of_cell(row, score)
        if any((row["variant"], part) not in self.cells for part in self.parts):
            return Estimate(row["accuracy"], row["accuracy_stderr"])
        mean = estimate.average([self._of_cell(row, part) for part in self.parts])
        return Estimate(row["accuracy"], mean.error, influence=mean.influence)

    def _of_cell(self, row: Row, column: str) -> Estimate:
        key = row["variant"], column
        if key not in self._read:
            self._read[key] = self._of_scored(self.cells[key])
        return self._read[key]

    def _of_scored(self, cell: Scored) -> Estimate:
        found = self.samples.outcomes(cell.step, cell.task, cell.metric) if self.samples and cell.step else None
        if found is None or len(found.units) < 2:
            return Estimate(cell.value, cell.stderr)
        return estimate.of_samples(cell.value, found.parts, found.weights, found.samples_digest)


def of_speed(row: Row) -> Estimate:
    """The decode speed in octaves, lower being faster, with the spread of the repeats of its measurement."""
    speed, error, repeats = row["tokens_per_second"], row["tokens_per_second_stderr"], row["tokens_per_second_n"]
    relative = None if error is None else error / speed / math.log(2)
    relative = relative if on_axis(relative) else None
    freedom = repeats - 1.0 if relative is not None and repeats and repeats > 1 else math.inf
    return Estimate(-math.log2(speed), relative, freedom)
