"""What is known of the cost of layouts: rows of a base and a layout with the relative loss of quality, in sets of one
model and recipe, from published figures, the reference data and the finished trainings of a store.

Without pandas. Rows of a set share a reference: the base's own layout, trained equally, or the layout with most heads.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Literal

from analysis.data import reference
from analysis.data.metrics import METRICS
from analysis.statistics.noise import Score, recipe_key, score_of
from mlkv.layout import KVLayout
from sweeps.store.errors import StoreError
from sweeps.store.schema import VariantRow
from sweeps.store.store import SavedSweep, Store

Kind = Literal["loss", "accuracy"]
PUBLISHED_AXES: dict[str, tuple[str, str, str, float]] = {
    "mlkv": ("", "accuracy", "pythia-160m-deduped", 162e6),
    "cla-1b": ("validation", "perplexity", "cla-1b", 1e9),
    "cla-1b-tuned": ("validation", "perplexity", "cla-1b", 1e9),
    "cla-3b-tuned": ("validation", "perplexity", "cla-3b", 3e9),
    "cla-3b-second": ("wikitext", "perplexity", "cla-3b", 3e9),
    "study-1b": ("mean_of_8", "acc", "", 1.1e9),
}
"""Task and metric of each published set, and its model as conf/model calls it, with its parameters; those that the
papers round are as they are called."""
_BASE_TOKENS = {"tiny": 819_199.0, "embedded_recall": 16_383_991.0, "embedded_recall-8": 16_383_991.0}
"""What the bases of analysis/reference/layout_scores.csv were trained on."""
LEAST_SHARE = 0.01
"""Of what its base was trained on: layouts that saw less are still on their way, and what they have lost says little of
what they will lose. The published uptrainings take 2 to 5 %."""
_REFERENCES = {"cla-1b-tuned": "H128-MQA", "cla-3b-tuned": "H128-MQA", "cla-3b-second": "H64-MQA"}
"""Where no row is the base's own."""


@dataclass(frozen=True)
class Size:
    """How much of its own a model keeps: logarithms of query heads per KV head of an owner, and of layers per owner."""

    heads: float
    layers: float

    @classmethod
    def of(cls, layout: KVLayout) -> Size:
        """Keys and values that are apart count as the mean of both."""
        parts = (layout.keys, layout.values)
        heads = sum(sum(part.kv_heads) for part in parts) / sum(part.kv_layers for part in parts)
        owners = sum(part.kv_layers for part in parts) / 2
        return cls(math.log(layout.heads / heads), math.log(layout.layers / owners))


@dataclass(frozen=True)
class Row:
    """A layout's relative loss of quality against the reference of its set: of a loss (a perplexity's logarithm), how
    much larger it is; of an accuracy, how much smaller."""

    name: str
    size: Size
    loss: float


@dataclass(frozen=True)
class EvidenceSet:
    """Rows of one model and recipe. model: as conf/model calls it; empty where it has no such name. how: what was
    trained, in words. tokens: of uptraining, where known; share: over those of the base. recovered: the share of what
    conversion lost that they gave back, the median over layouts."""

    name: str
    kind: Kind
    model: str
    parameters: float
    reference: Size
    rows: tuple[Row, ...]
    how: str = ""
    tokens: float | None = None
    recovered: float | None = None
    share: float | None = None

    @property
    def brief(self) -> bool:
        """Whether its layouts were trained too little to count as evidence for other models."""
        return self.share is not None and self.share < LEAST_SHARE

    @property
    def group(self) -> str:
        """Sets of one model are no independent evidence: they have one name here."""
        return self.model or self.name


def published_sets() -> list[EvidenceSet]:
    """Of analysis/reference."""
    return [*(_published(name) for name in PUBLISHED_AXES), *_of_layout_scores()]


def _published(name: str) -> EvidenceSet:
    task, metric, model, parameters = PUBLISHED_AXES[name]
    layouts = {row["variant"]: row for row in reference.read("layouts") if row["set"] == name and row["layers"]}
    values = {
        row["variant"]: float(row["value"])
        for row in reference.read("figures")
        if (row["set"], row["task"], row["metric"]) == (name, task, metric) and row["variant"] in layouts
    }
    own = _REFERENCES.get(name) or next(key for key, row in layouts.items() if row["baseline"])
    sizes = {key: _printed_size(row) for key, row in layouts.items()}
    rows = (Row(key, sizes[key], _loss(metric, value, values[own])) for key, value in values.items() if key != own)
    how = "uptrained" if name == "mlkv" else "trained from random weights"
    return EvidenceSet(f"published/{name}", _kind(metric), model, parameters, sizes[own], tuple(rows), how)


def _printed_size(row: Mapping[str, str]) -> Size:
    numbers = {key: int(row[key]) for key in ("heads", "kv_heads", "layers", "kv_layers")}
    return Size(math.log(numbers["heads"] / numbers["kv_heads"]), math.log(numbers["layers"] / numbers["kv_layers"]))


def _kind(metric: str) -> Kind:
    return "accuracy" if METRICS[metric].higher_is_better else "loss"


def _loss(metric: str, value: float, base: float) -> float:
    if "perplexity" in metric:
        return math.log(value) / math.log(base) - 1
    return 1 - value / base if METRICS[metric].higher_is_better else value / base - 1


def _of_layout_scores() -> Iterator[EvidenceSet]:
    sets: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for line in reference.read("layout_scores"):
        if line["tokens"]:
            sets[line["set"], line["model"], line["tokens"]].append(line)
    for (name, model, tokens), lines in sets.items():
        bases = [line for line in lines if line["baseline"] == "mha"]
        if not bases:
            continue
        heads = max(map(int, bases[0]["kv_heads"].split()))
        scores: dict[KVLayout, list[float]] = defaultdict(list)
        for line in lines:
            sources, own = (tuple(map(int, line[key].split())) for key in ("sources", "kv_heads"))
            scores[KVLayout(sources, own, heads)].append(float(line["bits_per_byte"]))
        base = next(layout for layout in scores if layout.budget == layout.layers * heads)
        yield EvidenceSet(
            f"published/{name}",
            "loss",
            model,
            float(bases[0]["parameters"]),
            Size.of(base),
            _rows_of(scores, base, "bits_per_byte"),
            "convert.merge=svd uptrain.teacher=base",
            float(tokens),
            _recovered_lines(lines),
            float(tokens) / _BASE_TOKENS[model] if model in _BASE_TOKENS else None,
        )


def _recovered_lines(lines: Sequence[Mapping[str, str]]) -> float | None:
    """Each line against the base trained on with its seed, and before that against the base."""
    bases = {line["seed"]: line for line in lines if line["baseline"] == "mha" and line["converted"]}
    gaps = [
        tuple(float(line[key]) - float(bases[line["seed"]][key]) for key in ("converted", "bits_per_byte"))
        for line in lines
        if not line["baseline"] and line["converted"] and line["seed"] in bases
    ]
    return _recovered((before, after) for before, after in gaps)


def _recovered(gaps: Iterable[tuple[float, float]]) -> float | None:
    """The median share of gaps above zero, before and after, that is closed."""
    shares = [1 - after / before for before, after in gaps if before > 0]
    return median(shares) if shares else None


def _rows_of(scores: Mapping[KVLayout, Sequence[float]], base: KVLayout, metric: str) -> tuple[Row, ...]:
    means = {layout: math.fsum(own) / len(own) for layout, own in scores.items()}
    return tuple(
        Row(f"{layout.draw()}", Size.of(layout), _loss(metric, mean, means[base]))
        for layout, mean in means.items()
        if layout != base
    )


def store_sets(store: Store) -> list[EvidenceSet]:
    """Of every sweep's trained variants: those of one model, recipe and cache, against the base's own layout that was
    trained equally. Damaged sweeps are left out; `mlkv ls` says what is wrong with them."""
    found: list[EvidenceSet] = []
    for name in store.sweep_names():
        with suppress(StoreError):
            found += _of_sweep(store.sweep(name), store)
    return found


def _of_sweep(saved: SavedSweep, store: Store) -> Iterator[EvidenceSet]:
    plan = saved.plan
    scores: list[Score] = [plan.axis] if plan.axis and plan.axis[0] != "accuracy" else plan.accuracy
    metrics = {metric for _, metric in scores}
    if not scores or not metrics <= METRICS.keys() or (len(scores) > 1 and _kind(scores[0][1]) == "loss"):
        return
    groups: dict[tuple[str | None, ...], list[VariantRow]] = defaultdict(list)
    for row in saved.variants:
        if row.steps.uptrain and row.layout.latent is None:
            groups[row.model, row.steps.base, row.cache, _training(row)].append(row)
    for rows in groups.values():
        values: dict[KVLayout, list[float]] = defaultdict(list)
        for row in rows:
            if (score := score_of(row, store, scores)) is not None:
                values[row.layout].append(score.value)
        base = next((row.layout for row in rows if row.baseline == "mha" and row.layout in values), None)
        if base is None or len(values) < 2:
            continue
        metric, tokens = scores[0][1], _tokens([row.steps.uptrain for row in rows], store)
        of_base = _tokens([rows[0].steps.base], store)
        yield EvidenceSet(
            f"sweep {saved.name}",
            _kind(metric),
            rows[0].model or "",
            float(max(row.parameters for row in rows)),
            Size.of(base),
            _rows_of(values, base, metric),
            _how(rows[0]),
            tokens,
            _recovered_rows(rows, store, scores) if _kind(metric) == "loss" else None,
            tokens / of_base if tokens and of_base else None,
        )


def _recovered_rows(rows: Sequence[VariantRow], store: Store, scores: Sequence[Score]) -> float | None:
    """Of losses that were scored after conversion too, each against the base's own layout of its seed."""
    found = {row.variant: (row, both) for row in rows if (both := _both(row, store, scores))}
    bases = {_seed(row): both for row, both in found.values() if row.baseline == "mha"}
    gaps = [
        (both[0] - bases[_seed(row)][0], both[1] - bases[_seed(row)][1])
        for row, both in found.values()
        if row.baseline is None and _seed(row) in bases
    ]
    return _recovered(gaps)


def _seed(row: VariantRow) -> int | None:
    seed: int | None = (row.config.get("uptrain") or {}).get("seed")
    return seed


def _both(row: VariantRow, store: Store, scores: Sequence[Score]) -> tuple[float, float] | None:
    """A variant's score after conversion and after uptraining; None where one is not there."""
    before, after = score_of(row, store, scores, row.steps.converted or {}), score_of(row, store, scores)
    return (before.value, after.value) if before and after else None


def _training(row: VariantRow) -> str:
    convert = {key: value for key, value in (row.config.get("convert") or {}).items() if key != "seed"}
    return f"{recipe_key(row.config.get('uptrain'))} {recipe_key(convert)}"


def _how(row: VariantRow) -> str:
    """`convert.merge=svd uptrain.teacher=base uptrain.lr=0.0003`: what tells recipes apart most."""
    convert, uptrain = (row.config.get(key) or {} for key in ("convert", "uptrain"))
    if convert.get("start") == "scratch":
        return "trained from random weights"
    words = {"convert.merge": convert.get("merge"), "uptrain.teacher": uptrain.get("teacher")}
    words["uptrain.lr"] = uptrain.get("lr")
    return " ".join(f"{key}={value}" for key, value in words.items() if value is not None)


def _tokens(trainings: Iterable[str | None], store: Store) -> float | None:
    """Of training steps, as a record of one of them has it."""
    for id in trainings:
        with suppress(StoreError):
            record = store.step(id).record() if id else None
            for metric in record.metrics if record else ():
                if metric.metric == "tokens" and metric.value is not None:
                    return metric.value
    return None
