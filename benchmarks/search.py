"""Which sampler finds the front of a table of layouts with the fewest trials: each searches it many times, for nothing.

A table is a set of analysis/reference/layout_scores.csv, where every layout of a space is trained and scored already;
a trial is a look into it. The space is the one that a line of that set leaves open: which layers own keys and values (a
choice without order), and how many heads each has (numbers in order). All searches are `mlkv search`'s own
(sweeps/search/study.py), one trial at a time, with seeds 0, 1, 2, …

What is compared is the hypervolume of bytes (log2) by bits per byte, as a share of what the whole table covers, after
equal costs: the mean over the runs with its 95 % interval. A cost of one is that of one layout that is converted,
trained and scored. `halved` are searches by `uptrain.rungs=[0,43] stopping=halving`, which score every layout that
they ask for before any training, and train the third of them that looks best.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import cast, get_args

from analysis.data import reference
from analysis.statistics.pareto import hypervolume
from benchmarks.turns import arguments, circumstances, report
from sweeps.planning.grammar import Choice, Grid
from sweeps.planning.search_config import Sampler
from sweeps.planning.stopping_config import StoppingConfig
from sweeps.search.space import Point, Space
from sweeps.search.stopping import Place, RungScore, Verdict, decide
from sweeps.search.study import Observation, Study

HALVED = ("tpe", "random")
"""Samplers that are simulated with that rule too."""
SETS = ("ground_truth", "ground_truth_recall")
SHARES = (0.07, 0.125, 0.25)
"""Trials that are compared, as shares of the table."""
ETA = StoppingConfig().eta
"""Of so many layouts that are scored untrained, a halved search trains one."""
UNTRAINED = 0.26
"""What converting a layout and scoring it cost of what it costs to train and score it too, on the two bases of the
table: 0.9 and 2.4 s of 12.9. On models whose training takes hours it is nearly nothing."""
LEAST = 20
"""Layouts of a table at least: of fewer, chance finds most of the front."""
Scores = Mapping[Point, tuple[float, float]]


@dataclass(frozen=True)
class ScoreTable:
    """The layouts of a set: each point of the space that there is → log2 bytes per token and bits per byte. untrained:
    the same before any training; empty where it was not scored."""

    name: str
    space: Space
    scores: Scores
    untrained: Scores

    @classmethod
    def of(cls, name: str, model: str | None = None) -> ScoreTable:
        """Raises SystemExit for a set that is not there, or too small to compare samplers by."""
        rows = reference.read("layout_scores")
        found: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
        for row in rows:
            if row["set"] == name and row["seed"] and model in (None, row["model"]):
                each = row["kv_heads"].split()
                own_heads = row["kv_heads"] if len(set(each)) > 1 else each[0]
                cost = math.log2(float(row["kv_bytes_per_token"]))
                numbers = cost, float(row["bits_per_byte"]), float(row["converted"] or "nan")
                found[row["sources"], own_heads].append(numbers)
        if len(found) < LEAST:
            names = ", ".join(sorted({row["set"] for row in rows}))
            raise SystemExit(
                f"{name}: {len(found)} layouts, and samplers are compared by {LEAST} or more (sets: {names})"
            )
        sources, heads = (sorted({key[i] for key in found}, key=_order) for i in (0, 1))
        axes: list[list[Choice]] = [[(f"sources={each}",) for each in sources], [(f"heads={each}",) for each in heads]]
        scores: dict[Point, tuple[float, float]] = {}
        untrained: dict[Point, tuple[float, float]] = {}
        for (own, count), each_seed in found.items():
            point = sources.index(own), heads.index(count)
            cost, _, converted = each_seed[0]
            scores[point], untrained[point] = (cost, fmean(score for _, score, _ in each_seed)), (cost, converted)
        known = all(math.isfinite(score) for _, score in untrained.values())
        return cls(name, Space.of(Grid([], axes, [])), scores, untrained if known else {})

    @property
    def costs(self) -> list[int]:
        """At which searches are compared."""
        return [max(1, round(share * len(self.scores))) for share in SHARES]

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


Progress = Iterator[tuple[float, Sequence[Point]]]
"""After each step of a search: what it has cost so far, and the layouts that it has trained."""


def plain(table: ScoreTable, study: Study) -> Progress:
    """Every layout that is asked for is trained."""
    history, trained = list[Observation](), list[Point]()
    while (point := study.ask(history)) is not None:
        possible = point in table.scores
        history.append(Observation(point, table.scores.get(point), impossible=not possible))
        trained += [point] if possible else []
        yield len(trained), trained


def halved(table: ScoreTable, study: Study) -> Progress:
    """Every layout that is asked for is scored untrained, and the best go on, as `decide` has it."""
    asked, trained, spent, more = list[Point](), list[Point](), 0.0, True
    begun: set[Place] = set()
    while True:
        by_rung = table.untrained, table.scores
        scores = [RungScore(trial, rung, by_rung[rung][asked[trial]]) for trial, rung in begun]
        decisions = decide(scores, begun, (0, 1), ETA, more=more)
        best = next((trial for trial, decision in decisions.items() if decision.verdict is Verdict.GO_ON), None)
        if best is not None:
            begun.add((best, 1))
            trained.append(asked[best])
            spent += 1 - UNTRAINED
        elif not more:
            return
        elif (point := study.ask([_known(table, each, trained) for each in asked])) is None:
            more = False
        else:
            asked.append(point)
            if point in table.scores:
                begun.add((len(asked) - 1, 0))
                spent += UNTRAINED
        yield spent, trained


def _known(table: ScoreTable, point: Point, trained: Sequence[Point]) -> Observation:
    scores = table.scores if point in trained else table.untrained
    return Observation(point, scores.get(point), impossible=point not in table.scores)


def covered(table: ScoreTable, progress: Progress, costs: Sequence[int]) -> list[float]:
    """The share of the table's hypervolume that a search covers for each of these costs."""
    shares: list[float] = []
    before = 0.0
    for spent, trained in progress:
        while spent > costs[len(shares)]:
            shares.append(before)
            if len(shares) == len(costs):
                return shares
        before = table.covered(trained)
        if spent == costs[-1]:
            break
    return [*shares, *[before] * (len(costs) - len(shares))]


def searched(table: ScoreTable, name: str, seed: int, costs: Sequence[int]) -> list[float]:
    """`covered` by a search of that name: a sampler, or `SAMPLER halved`."""
    sampler, _, rule = name.partition(" ")
    study = Study(table.space, cast("Sampler", sampler), seed, 2)
    return covered(table, (halved if rule else plain)(table, study), costs)


def interval(values: Sequence[float]) -> dict[str, float]:
    """The mean with its 95 % interval."""
    mean = fmean(values)
    half = 1.96 * stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.inf
    return {"mean": mean, "low": mean - half, "high": mean + half}


def simulate(
    table: ScoreTable, searches: Sequence[str], runs: Mapping[str, int], keep: Path | None, until: float
) -> dict[str, list[list[float]]]:
    """By search, a row of shares for each run. keep: a file of the runs so far, which are not simulated again. until:
    by the clock `time.monotonic`."""
    found: dict[str, list[list[float]]] = {name: [] for name in searches}
    of = {"set": table.name, "layouts": len(table.scores)}
    for line in keep.read_text().splitlines() if keep and keep.exists() else ():
        row = json.loads(line)
        if row.items() >= of.items() and row["search"] in found:
            found[row["search"]].append(row["shares"])
    for name in searches:
        for seed in range(len(found[name]), runs[name]):
            if time.monotonic() > until:
                raise SystemExit(f"{table.name}, {name}: {seed} of {runs[name]} runs; the same line goes on")
            shares = searched(table, name, seed, table.costs)
            found[name].append(shares)
            if keep:
                with keep.open("a") as file:
                    file.write(json.dumps({**of, "search": name, "seed": seed, "shares": shares}) + "\n")
    return {name: rows[: runs[name]] for name, rows in found.items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sets", nargs="+", default=SETS, help=f"of layout_scores.csv (default: {' '.join(SETS)})")
    parser.add_argument("--model", help="only the layouts of this base (default: all of a set)")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--slow-runs", type=int, help="of gp, which takes seconds for a run (default: --runs)")
    parser.add_argument("--samplers", nargs="+", choices=get_args(Sampler), default=list(get_args(Sampler)))
    parser.add_argument("--keep", type=Path, help="a file of runs, with which the same line goes on")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long, with --keep")
    given, where = parser.parse_args(), circumstances()
    runs = {"grid": 1, "gp": given.slow_runs or given.runs}  # no seed changes a grid
    until = time.monotonic() + given.seconds
    numbers: dict[str, object] = {}
    for name in given.sets:
        table = ScoreTable.of(name, given.model)
        both = [each for each in given.samplers if each in HALVED and table.untrained]
        searches = [*given.samplers, *(f"{each} halved" for each in both)]
        wanted = {each: runs.get(each, given.runs) for each in searches}
        numbers[name] = _shown(table, simulate(table, searches, wanted, given.keep, until))
    report("search", where, numbers, given.save)


def _shown(table: ScoreTable, found: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, object]:
    """Print a row for each search; the numbers of them."""
    counts = table.costs
    numbers: dict[str, object] = {"layouts": len(table.scores), "trials": counts}
    print(f"{table.name}: {len(table.scores)} layouts; share of the table's hypervolume after so many trials")
    print(f"{'search':<13} runs " + " ".join(f"{count:>24} trials" for count in counts))
    for name, rows in found.items():
        each = [interval(column) if len(rows) > 1 else {"mean": column[0]} for column in zip(*rows, strict=True)]
        numbers[name] = {"runs": len(rows), "shares": each}
        cells = [f"{e['mean']:.3f}" + (f" [{e['low']:.3f}, {e['high']:.3f}]" if "low" in e else "") for e in each]
        print(f"{name:<13} {len(rows):>4} " + " ".join(f"{cell:>31}" for cell in cells))
    if "random" in found:
        middle = SHARES.index(0.125)
        chance = fmean(row[middle] for row in found["random"])
        numbers["gain_over_random"] = _gains(found, len(counts))
        numbers["over_random"] = {name: fmean(row[middle] for row in rows) / chance for name, rows in found.items()}
    return numbers


def _gains(found: Mapping[str, Sequence[Sequence[float]]], counts: int) -> dict[str, list[dict[str, float]]]:
    """How much more each search covers than random search with the same seed, in pairs."""
    pairs = {
        name: [[a[i] - b[i] for a, b in zip(rows, found["random"], strict=False)] for i in range(counts)]
        for name, rows in found.items()
        if name not in ("random", "grid")
    }
    return {name: [interval(column) for column in columns] for name, columns in pairs.items()}


if __name__ == "__main__":
    main()
