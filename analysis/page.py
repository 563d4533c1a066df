"""What the report page says, worked out from the store; templates/report.html only sets it.

Everything here is plain data. Names, reasons and log lines come from users and are escaped by the template.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from analysis import frame
from analysis.cloud import clouds
from analysis.gather import Steps
from analysis.metrics import METRICS
from analysis.plot import Plot, lay_out
from analysis.results import Shown, other_scores, shown_scores
from analysis.sources import Source
from analysis.tables import Sheet, sheet
from mlkv.layout import KVLayout
from sweeps.store import SavedSweep, Store

Json = dict[str, Any]
KINDS = ("corpus", "base", "convert", "uptrain", "evaluate", "measure")
LOG_LINES = 12
_NOTES = {"untouched": "the base as it was", "mha": "the base, trained on equally"}


@dataclass(frozen=True)
class Failure:
    step: str
    label: str
    state: str
    reason: str
    variants: list[str]
    log: list[str]
    log_link: str | None


@dataclass(frozen=True)
class KindProgress:
    kind: str
    states: dict[str, int]
    device_seconds: float
    wall_seconds: float

    @property
    def total(self) -> int:
        return sum(self.states.values())

    @property
    def done(self) -> int:
        return self.states.get("DONE", 0)


@dataclass(frozen=True)
class Page:
    name: str
    number: int
    created: str
    command: str
    sheet: Sheet
    variants: list[str]
    plots: list[Plot]
    progress: list[KindProgress]
    failures: list[Failure]
    common: list[tuple[str, str]]
    provenance: list[tuple[str, list[tuple[str, int]]]]
    details: list[Json]

    @property
    def steps(self) -> int:
        return sum(kind.total for kind in self.progress)

    @property
    def done(self) -> int:
        return sum(kind.done for kind in self.progress)

    @property
    def states(self) -> dict[str, int]:
        """How many distinct steps stand in each state."""
        return dict(sum((Counter(kind.states) for kind in self.progress), Counter[str]()))

    @property
    def device_hours(self) -> float:
        return sum(kind.device_seconds for kind in self.progress) / 3600

    @property
    def finished(self) -> int:
        return sum(state == "DONE" for state in self.sheet.states)


def page(store: Store, source: Source, out_dir: Path) -> Page:
    """The page of a sweep; links lead from `out_dir` to the store's log files."""
    sweep, steps, pivot = source.sweep, source.steps, source.variants
    if sweep is None or steps is None:
        raise ValueError(f"{source.name}: only a sweep has a page")
    plan = sweep.plan
    configs = [flatten(variant["config"]) for variant in sweep.variants]
    common = shared_items(configs)
    links = Links(store, out_dir)
    return Page(
        name=sweep.name,
        number=sweep.number,
        created=plan["created"],
        command=" ".join(plan.get("command", [])),
        sheet=sheet(pivot),
        variants=[variant["variant"] for variant in sweep.variants],
        plots=[plot for cloud in clouds(pivot) if (plot := lay_out(cloud))],
        progress=[_progress(kind, plan["steps"], steps) for kind in KINDS],
        failures=list(_failures(plan["steps"], steps, links)),
        common=sorted(common.items()),
        provenance=provenance(record for step in plan["steps"] if (record := steps.record(step))),
        details=_details(sweep, configs, common, steps, pivot, links),
    )


class Links:
    """Where steps keep their files, seen from the report's directory."""

    def __init__(self, store: Store, out_dir: Path) -> None:
        self._store, self._out_dir = store, out_dir.absolute()

    def step(self, step_id: str) -> str:
        return self._link(self._store.step(step_id).path)

    def log(self, step_id: str) -> tuple[str | None, list[str]]:
        """The directory of the last attempt's logs and their last lines."""
        attempt = self._store.step(step_id).attempt()
        if attempt is None:
            return None, []
        return self._link(attempt.path), attempt.log_tail(LOG_LINES)

    def _link(self, path: Path) -> str:
        return quote(Path(os.path.relpath(path, self._out_dir)).as_posix())


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """A nested config as dotted keys and printed values: `uptrain.lr` → `0.001`."""
    if not isinstance(config, Mapping) or not config:
        return {prefix: "" if config is None else str(config)} if prefix else {}
    return {
        key: value
        for name, inner in config.items()
        for key, value in flatten(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def shared_items(configs: list[dict[str, str]]) -> dict[str, str]:
    """What all configs agree on."""
    if not configs:
        return {}
    shared = set(configs[0].items())
    for config in configs[1:]:
        shared &= config.items()
    return dict(shared)


def _progress(kind: str, planned: Json, steps: Steps) -> KindProgress:
    ids = [step for step, plan in planned.items() if plan["kind"] == kind]
    records = [record for step in ids if (record := steps.record(step))]
    return KindProgress(
        kind=kind,
        states=dict(Counter(steps.standing(step)[0] for step in ids)),
        device_seconds=sum(record.get("device_seconds") or 0.0 for record in records),
        wall_seconds=sum(record.get("wall_seconds") or 0.0 for record in records),
    )


def _failures(planned: Json, steps: Steps, links: Links) -> Iterator[Failure]:
    for step, plan in planned.items():
        state, reason = steps.standing(step)
        if state in ("FAILED", "LOST"):
            link, log = links.log(step)
            yield Failure(step, plan["label"], state, reason or "", plan["variants"], log, link)


def provenance(records: Iterable[Json]) -> list[tuple[str, list[tuple[str, int]]]]:
    """What made the finished steps: for each fact its values, the commonest first, with how many steps have it."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        facts = {"code": record.get("code"), "host": record.get("host"), "device": record.get("device")}
        for name, value in {**facts, **(record.get("versions") or {})}.items():
            if value:
                counts.setdefault(name, Counter())[str(value)] += 1
    return [(name, values.most_common()) for name, values in counts.items()]


def _details(
    sweep: SavedSweep,
    configs: list[dict[str, str]],
    common: dict[str, str],
    steps: Steps,
    pivot: pd.DataFrame,
    links: Links,
) -> list[Json]:
    """What the page shows when a variant is chosen."""
    rows = {row["variant"]: row for row in frame.records(pivot)}
    scores = [*shown_scores(pivot), *other_scores(pivot)]
    return [
        {
            "variant": variant["variant"],
            "note": _NOTES.get(variant["baseline"], ""),
            "family": variant["family"],
            "layout": _layout(variant).draw(),
            "facts": _facts(variant, rows[variant["variant"]]),
            "scores": [_score(rows[variant["variant"]], score) for score in scores],
            "overrides": [f"{key}={value}" for key, value in variant["overrides"].items()],
            "config": sorted(f"{key} = {value}" for key, value in config.items() - common.items()),
            "steps": [_step(kind, task, step, steps, links) for kind, task, step in variant_steps(variant)],
        }
        for variant, config in zip(sweep.variants, configs, strict=True)
    ]


def _layout(variant: Json) -> KVLayout:
    layout = variant["layout"]
    return KVLayout(tuple(layout["kv_source_layers"]), tuple(layout["kv_heads"]), layout["heads"])


def _score(row: Json, score: Shown) -> list[str]:
    """Label, printed value, and why there is none."""
    value, metric = row[score.column], METRICS.get(score.metric)
    if value is None:
        return [score.label, "", row[f"{score.column}_missing"]]
    return [score.label, metric.text(value, row[f"{score.column}_stderr"]) if metric else f"{value:.4g}", ""]


def _facts(variant: Json, row: Json) -> list[list[str]]:
    facts = [
        ["KV heads in all", f"{variant['budget']:,}"],
        ["KV bytes per token", f"{variant['kv_bytes_per_token']:,}"],
        ["as measured", _number(row["measured_bytes_per_token"])],
        ["fastest decode", f"{speed} tokens/s" if (speed := _number(row["tokens_per_second"])) else ""],
        ["parameters", f"{variant['parameters']:,}" if variant["parameters"] else ""],
        ["device time", duration(row["device_seconds"])],
    ]
    return [fact for fact in facts if fact[1]]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def variant_steps(variant: Json) -> Iterator[tuple[str, str | None, str]]:
    """(kind, task, step id) of every step of a variant."""
    for kind in KINDS:
        step = variant["steps"].get(kind)
        if kind == "evaluate":
            yield from ((kind, task, id) for task, id in (step or {}).items())
        elif step:
            yield kind, None, step


def _step(kind: str, task: str | None, step: str, steps: Steps, links: Links) -> Json:
    state, reason = steps.standing(step)
    return {
        "kind": f"{kind} {task}" if task else kind,
        "id": step,
        "state": state,
        "reason": reason or "",
        "time": duration((steps.record(step) or {}).get("wall_seconds")),
        "files": "" if state in ("PENDING", "BLOCKED") else links.step(step),
    }


def duration(seconds: float | None) -> str:
    """`12 s`, `3.4 min`, `2.1 h`; empty where nothing is known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
