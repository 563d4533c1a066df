"""How much seeds and samples blur the scores of one model and task, from the store's finished results; else how much
seeds do, from the reference data.

Without pandas: `mlkv plan` reads it. The model of the errors is that of estimate.of_seeds and estimate.contrast.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from analysis.data import reference, replicates
from analysis.statistics.power import Noise
from sweeps.store.errors import StoreError
from sweeps.store.schema import VariantRow
from sweeps.store.store import SavedSweep, Store

if TYPE_CHECKING:
    from analysis.statistics.estimate import Estimate

ENOUGH = 30
"""Degrees of freedom of a standard deviation: more sweeps are not read for a better one."""
MOST_SWEEPS = 20
"""The newest ones, of which it is looked for."""
_REFERENCE_SCORE = ("bits_per_byte", "bits_per_byte")
Score = tuple[str, str]
"""(task, metric)."""


@dataclass(frozen=True)
class Wanted:
    """Whose noise is asked for. scores: whose mean is the quality axis. recipes: of uptraining, as `recipe_key` writes
    them; none where nothing is trained. limit: the most samples of a task that are planned."""

    model: str
    scores: tuple[Score, ...]
    recipes: frozenset[str]
    limit: int | None = None


@dataclass(frozen=True)
class Evidence:
    """The noise that was found, and where. freedom: of its standard deviation between seeds; 0: it is not known.
    source, samples_source: where the two parts of the noise are from; empty where they are not known. at_most: the
    part of the samples has some of the seeds' in it, as no seeds were scored on them."""

    noise: Noise
    freedom: int
    source: str
    samples_source: str = ""
    at_most: bool = False


@dataclass
class _Found:
    """Sums over the layouts of sweeps, of one kind of recipe. squares: degrees of freedom times variance between seeds;
    overlaps: the same of the variance that seeds' answers to single samples give it. pairs, paired: how many pairs of
    layouts, and the sum of the variances of their differences over samples without what more seeds would lessen. limit:
    to how many samples the evaluations were cut."""

    freedom: int = 0
    squares: float = 0.0
    overlaps: float = 0.0
    layouts: int = 0
    sweeps: dict[str, None] = field(default_factory=dict)
    pairs: int = 0
    paired: float = 0.0
    samples: int = 0
    limit: int | None = None
    paired_in: dict[str, None] = field(default_factory=dict)


def recipe_key(uptrain: Mapping[str, Any] | None) -> str:
    """Equal for trainings that differ in their seed alone."""
    return json.dumps({key: value for key, value in (uptrain or {}).items() if key != "seed"}, sort_keys=True)


def of_store(store: Store, wanted: Wanted) -> Evidence | None:
    """From the newest sweeps: of the same recipe, or of any other where that has no seeds. None where nothing is
    known."""
    same, other = _Found(), _Found()
    for saved in _newest(store):
        _add_sweep(saved, store, wanted, same, other)
        if same.freedom >= ENOUGH:
            break
    spread, paired = same if same.freedom else other, same if same.pairs else other
    if not (spread.freedom or paired.pairs):
        return None
    found = _evidence(spread, paired, "" if spread is same else " with other recipes")
    return replace(found, noise=found.noise.with_samples(_planned_samples(wanted.limit, paired)))


def _planned_samples(limit: int | None, found: _Found) -> int:
    """How many of the samples that were found a plan has, or how many more; where those were all, there are no more."""
    was_cut = found.limit is not None and found.limit <= found.samples
    return limit if limit is not None and (limit < found.samples or was_cut) else found.samples


def _newest(store: Store) -> Iterator[SavedSweep]:
    names = sorted(store.sweep_names(), key=lambda name: -store.sweep_path(name).stat().st_mtime)
    for name in names[:MOST_SWEEPS]:
        with suppress(StoreError):  # `mlkv ls` says what is wrong with it
            yield store.sweep(name)


def _add_sweep(saved: SavedSweep, store: Store, wanted: Wanted, same: _Found, other: _Found) -> None:
    own = [row for row in saved.variants if _is_wanted(row, wanted)]
    names = replicates.groups(own)
    layouts: dict[tuple[bool, str], list[VariantRow]] = defaultdict(list)
    for row in own:
        is_same = (recipe_key(row.config.get("uptrain")) if row.steps.uptrain else None) in (wanted.recipes or {None})
        layouts[is_same, names.get(row.variant, row.variant)].append(row)
    for is_same, found in ((True, same), (False, other)):
        seeds = (rows for (recipe, _), rows in layouts.items() if recipe == is_same)
        scored = [[each for row in rows if (each := score_of(row, store, wanted.scores))] for rows in seeds]
        _add_layouts([each for each in scored if each], found, f"sweep {saved.name}")
        if any(scored) and own:
            found.limit = (own[0].config.get("evaluate") or {}).get("limit")


def _is_wanted(row: VariantRow, wanted: Wanted) -> bool:
    scored = all(task in row.steps.evaluate for task, _ in wanted.scores)
    alike = row.model == wanted.model and bool(row.steps.uptrain) == bool(wanted.recipes)
    return scored and alike and row.baseline != "untouched"


def score_of(
    row: VariantRow, store: Store, scores: Sequence[Score], steps: Mapping[str, str] | None = None
) -> Estimate | None:
    """The mean of a variant's scores; None where one is not there yet. steps: by task, other steps than those that
    score the variant as it is in the end."""
    steps = row.steps.evaluate if steps is None else steps
    parts = [_part(steps.get(task), store, metric) for task, metric in scores]
    known = [part for part in parts if part]
    if not known or len(known) < len(parts):
        return None
    from analysis.statistics import estimate

    return estimate.average(known)


def _part(step_id: str | None, store: Store, metric: str) -> Estimate | None:
    if step_id is None:
        return None
    step = store.step(step_id)
    try:
        record = step.record()
    except StoreError:
        return None
    rows = [row for row in record.metrics if row.metric == metric and row.subtask is None] if record else []
    if not rows or rows[0].value is None:
        return None
    from analysis.statistics import estimate
    from mlkv.evaluate import outcomes

    with suppress(ValueError):  # a file that is cut off: `mlkv status --verify` says so
        own = outcomes.read(step.out, metric)
        if own is not None and len(own.units) > 1:
            return estimate.of_samples(rows[0].value, own.parts, own.weights, own.samples_digest)
    return estimate.Estimate(rows[0].value, rows[0].stderr)


def _add_layouts(layouts: Sequence[Sequence[Estimate]], found: _Found, source: str) -> None:
    """Adds the seeds of each layout, and the samples that layouts share."""
    from analysis.statistics import estimate

    means: list[Estimate] = []
    for seeds in layouts:
        n, values = len(seeds), [seed.value for seed in seeds]
        if n == 1 or not replicates.differ(values):
            means.append(seeds[0])
            continue
        mean = estimate.of_seeds(*replicates.mean_of(values), seeds)
        means.append(mean)
        found.freedom += n - 1
        found.squares += (n - 1) * n * (mean.error or 0.0) ** 2
        found.overlaps += (n - 1) * n * mean.overlap
        found.layouts += 1
        found.sweeps[source] = None
    _add_samples(means, found, source)


def _add_samples(means: Sequence[Estimate], found: _Found, source: str) -> None:
    """What the choice of samples gives the difference of two layouts: the mean over all pairs of those that were scored
    on the same samples, as the interaction of layouts and samples in an analysis of variance."""
    import numpy as np

    of_samples: dict[tuple[str, ...], list[Estimate]] = defaultdict(list)
    for mean in means:
        if mean.influence:
            of_samples[tuple(sorted(mean.influence))].append(mean)
    for names, own in of_samples.items():
        if (count := len(own)) < 2:
            continue
        variance = 0.0
        for name in names:
            influence_VN = np.stack([each.influence[name] for each in own])
            n = influence_VN.shape[1]
            around_VN = influence_VN - influence_VN.mean(0)
            variance += 2 * float((around_VN**2).sum()) * n / (n - 1) / (count - 1)
            found.samples = max(found.samples, n)
        pairs = count * (count - 1) // 2
        overlap = 2 * math.fsum(each.overlap for each in own) / count
        found.pairs += pairs
        found.paired += pairs * max(0.0, variance - overlap)
        found.paired_in[source] = None


def _evidence(spread: _Found, paired: _Found, recipe: str) -> Evidence:
    of_one = spread.overlaps / spread.freedom if spread.freedom else 0.0
    variance = paired.paired / paired.pairs if paired.pairs else None
    noise = Noise(
        spread=math.sqrt(spread.squares / spread.freedom) if spread.freedom else 0.0,
        paired=None if variance is None else math.sqrt(variance),
        one_seed=None if variance is None else math.sqrt(variance + 2 * of_one),
        samples=paired.samples,
    )
    seeds = f"{_count(spread.layouts, 'layout')} with several seeds{recipe} in {_names(spread.sweeps)}"
    pairs = f"{_count(paired.pairs, 'pair')} of layouts in {_names(paired.paired_in)}"
    return Evidence(
        noise,
        spread.freedom,
        source=seeds if spread.freedom else "",
        samples_source=pairs if paired.pairs else "",
        at_most=bool(paired.pairs) and not paired.freedom,
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def _names(sources: Iterable[str]) -> str:
    return ", ".join(sources)


def of_reference(wanted: Wanted) -> Evidence | None:
    """The spread of seeds in analysis/reference/layout_scores.csv: of this model, or of any other. None for another
    score than its own."""
    if wanted.scores != (_REFERENCE_SCORE,):
        return None
    layouts: dict[tuple[str, ...], dict[str, dict[str, str]]] = defaultdict(dict)
    for line in reference.read("layout_scores"):
        if line["seed"]:
            key = ("model", "baseline", "sources", "kv_heads", "tokens")
            # Sets share what they trained alike: it is one training.
            layouts[tuple(line[column] for column in key)].setdefault(line["seed"], line)
    repeated = [[*lines.values()] for lines in layouts.values() if len(lines) > 1]
    own = [lines for lines in repeated if lines[0]["model"] == wanted.model]
    lines_of = own or repeated
    if not lines_of:
        return None
    freedom = sum(len(lines) - 1 for lines in lines_of)
    scores = [[float(line["bits_per_byte"]) for line in lines] for lines in lines_of]
    squares = math.fsum((len(own) - 1) * len(own) * replicates.mean_of(own)[1] ** 2 for own in scores)
    sets = _names(dict.fromkeys(f"published/{lines[-1]['set']}" for lines in lines_of))
    models = sorted({lines[0]["model"] for lines in lines_of})
    largest = max(int(lines[0]["parameters"]) for lines in lines_of)
    model = f"{_names(models)}, {largest / 1e6:.1f} M parameters"
    other = "" if own else ", another model" if len(models) == 1 else ", other models"
    source = f"{_count(len(lines_of), 'layout')} with several seeds in {sets} ({model}{other})"
    return Evidence(Noise(math.sqrt(squares / freedom)), freedom, source)


def evidence(store: Store, wanted: Wanted) -> Evidence | None:
    """From the store, its spread of seeds from the reference data where the store has none; None where nothing is
    known."""
    found = of_store(store, wanted)
    if (found and found.freedom) or not wanted.recipes:
        return found
    other = of_reference(wanted)
    if found is None or other is None:
        return other or found
    noise = replace(found.noise, spread=other.noise.spread)
    return replace(found, noise=noise, freedom=other.freedom, source=other.source)
