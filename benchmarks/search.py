"""Which sampler finds the front of a table of layouts with the fewest trials: each searches it many times, for nothing.

The table is a set of analysis/reference/layout_scores.csv, where every layout of a space is trained and scored already;
a trial is a look into it. The space is the one that a line of that set leaves open: which layers own keys and values (a
choice without order), and how many heads each has (numbers in order). All searches are `mlkv search`'s own
(sweeps/search/study.py), one trial at a time, with seeds 0, 1, 2, …

What is compared is the hypervolume of bytes (log2) by bits per byte, as a share of what the whole table covers, after
equal numbers of trials: the mean over the runs with its 95 % interval.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import get_args

from analysis.data import reference
from analysis.statistics.pareto import hypervolume
from benchmarks.turns import arguments, circumstances, report
from sweeps.planning.grammar import Choice, Grid
from sweeps.planning.search_config import Sampler
from sweeps.search.space import Point, Space
from sweeps.search.study import Observation, Study

SHARES = (0.07, 0.125, 0.25)
"""Trials that are compared, as shares of the table."""
LEAST = 20
"""Layouts of a table at least: of fewer, chance finds most of the front."""
Scores = Mapping[Point, tuple[float, float]]


@dataclass(frozen=True)
class ScoreTable:
    """The layouts of a set: each point of the space that there is → log2 bytes per token and bits per byte."""

    space: Space
    scores: Scores

    @classmethod
    def of(cls, name: str, model: str | None = None) -> ScoreTable:
        """Raises SystemExit for a set that is not there, or too small to compare samplers by."""
        rows = reference.read("layout_scores")
        found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for row in rows:
            if row["set"] == name and row["seed"] and model in (None, row["model"]):
                each = row["kv_heads"].split()
                own_heads = row["kv_heads"] if len(set(each)) > 1 else each[0]
                cost = math.log2(float(row["kv_bytes_per_token"]))
                found[row["sources"], own_heads].append((cost, float(row["bits_per_byte"])))
        if len(found) < LEAST:
            names = ", ".join(sorted({row["set"] for row in rows}))
            raise SystemExit(
                f"{name}: {len(found)} layouts, and samplers are compared by {LEAST} or more (sets: {names})"
            )
        sources, heads = (sorted({key[i] for key in found}, key=_order) for i in (0, 1))
        axes: list[list[Choice]] = [[(f"sources={each}",) for each in sources], [(f"heads={each}",) for each in heads]]
        scores: dict[Point, tuple[float, float]] = {
            (sources.index(own), heads.index(count)): (each[0][0], fmean(score for _, score in each))
            for (own, count), each in found.items()
        }
        return cls(Space.of(Grid([], axes, [])), scores)

    def covered(self, points: Iterable[Point]) -> float:
        """The hypervolume of some points, as a share of the whole table's."""
        costs, scores = zip(*self.scores.values(), strict=True)
        corner = (max(costs), max(scores))
        whole = hypervolume(costs, scores, corner, higher_is_better=False)
        own = [self.scores[point] for point in points if point in self.scores]
        part = hypervolume([a for a, _ in own], [b for _, b in own], corner, higher_is_better=False)
        return part / whole


def _order(text: str) -> tuple[int, list[int]]:
    numbers = [int(number) for number in text.split()]
    return len(set(numbers)), numbers


def searched(table: ScoreTable, sampler: Sampler, seed: int, counts: Sequence[int]) -> list[float]:
    """The share of the table's hypervolume that a search covers after so many trials each."""
    study, history = Study(table.space, sampler, seed, 2), list[Observation]()
    tried: list[Point] = []
    shares = []
    for count in counts:
        while len(tried) < count and (point := study.ask(history)) is not None:
            possible = point in table.scores
            history.append(Observation(point, table.scores.get(point), impossible=not possible))
            tried += [point] if possible else []
        shares.append(table.covered(tried))
    return shares


def interval(values: Sequence[float]) -> dict[str, float]:
    """The mean with its 95 % interval."""
    mean = fmean(values)
    half = 1.96 * stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.inf
    return {"mean": mean, "low": mean - half, "high": mean + half}


def simulate(
    table: ScoreTable, samplers: Sequence[Sampler], runs: Mapping[str, int], keep: Path | None, seconds: float
) -> dict[str, list[list[float]]]:
    """By sampler, a row of shares for each run. keep: a file of the runs so far, which are not simulated again."""
    counts = [max(1, round(share * len(table.scores))) for share in SHARES]
    found: dict[str, list[list[float]]] = {sampler: [] for sampler in samplers}
    size = len(table.scores)
    for line in keep.read_text().splitlines() if keep and keep.exists() else ():
        row = json.loads(line)
        if row["layouts"] == size and row["sampler"] in found:
            found[row["sampler"]].append(row["shares"])
    until = time.monotonic() + seconds
    for sampler in samplers:
        for seed in range(len(found[sampler]), runs[sampler]):
            if time.monotonic() > until:
                raise SystemExit(f"{sampler}: {seed} of {runs[sampler]} runs; the same line goes on")
            shares = searched(table, sampler, seed, counts)
            found[sampler].append(shares)
            if keep:
                with keep.open("a") as file:
                    file.write(json.dumps({"layouts": size, "sampler": sampler, "seed": seed, "shares": shares}) + "\n")
    return {sampler: rows[: runs[sampler]] for sampler, rows in found.items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--set", default="ground_truth", help="a set of layout_scores.csv (default: ground_truth)")
    parser.add_argument("--model", help="only the layouts of this base (default: all of the set)")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--slow-runs", type=int, help="of gp, which takes seconds for a run (default: --runs)")
    parser.add_argument("--samplers", nargs="+", choices=get_args(Sampler), default=list(get_args(Sampler)))
    parser.add_argument("--keep", type=Path, help="a file of runs, with which the same line goes on")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long, with --keep")
    given, where = parser.parse_args(), circumstances()
    table = ScoreTable.of(given.set, given.model)
    runs = dict.fromkeys(given.samplers, given.runs) | {"grid": 1}  # which no seed changes
    runs |= {"gp": given.slow_runs} if given.slow_runs else {}
    found = simulate(table, given.samplers, runs, given.keep, given.seconds)
    counts = [max(1, round(share * len(table.scores))) for share in SHARES]
    numbers: dict[str, object] = {"set": given.set, "layouts": len(table.scores), "trials": counts}
    print(f"{given.set}: {len(table.scores)} layouts; share of the table's hypervolume after so many trials")
    print(f"{'sampler':<10} runs " + " ".join(f"{count:>24} trials" for count in counts))
    for sampler, rows in found.items():
        each = [interval(column) if len(rows) > 1 else {"mean": column[0]} for column in zip(*rows, strict=True)]
        numbers[sampler] = {"runs": len(rows), "shares": each}
        cells = [f"{e['mean']:.3f}" + (f" [{e['low']:.3f}, {e['high']:.3f}]" if "low" in e else "") for e in each]
        print(f"{sampler:<10} {len(rows):>4} " + " ".join(f"{cell:>31}" for cell in cells))
    if "random" in found:
        middle = SHARES.index(0.125)
        chance = fmean(row[middle] for row in found["random"])
        numbers["gain_over_random"] = _gains(found, len(counts))
        numbers["over_random"] = {name: fmean(row[middle] for row in rows) / chance for name, rows in found.items()}
    report("search", where, numbers, given.save)


def _gains(found: Mapping[str, Sequence[Sequence[float]]], counts: int) -> dict[str, list[dict[str, float]]]:
    """How much more each sampler covers than random search with the same seed, in pairs."""
    pairs = {
        sampler: [[a[i] - b[i] for a, b in zip(rows, found["random"], strict=False)] for i in range(counts)]
        for sampler, rows in found.items()
        if sampler not in ("random", "grid")
    }
    return {sampler: [interval(column) for column in columns] for sampler, columns in pairs.items()}


if __name__ == "__main__":
    main()
