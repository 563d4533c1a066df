"""What the page's script is given: the table's rows, the plots' points and all about each variant, typed here and
turned into JSON once (analysis/page/report.py).

The script builds what a reader looks at, so that a page of thousands of variants opens as fast as one of nine. What
there are thousands of is a NamedTuple, which JSON writes as an array without names; everything else is an object.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from analysis.data import replicates, signatures
from analysis.data.frame import Row
from analysis.data.gather import Steps
from analysis.data.metrics import METRICS
from analysis.data.units import duration
from analysis.figures.difference import panels
from analysis.figures.pareto_data import pareto_data_of_scores
from analysis.page.plot import FRAME, Frame, layout_plot
from analysis.page.plot_json import PlotJson, difference_json, pareto_json
from analysis.statistics.columns import BASELINES
from analysis.statistics.compare import add_intervals
from analysis.statistics.estimate import p_text
from analysis.statistics.results import Results
from analysis.statistics.scores import ScoreColumn, other_scores, shown_scores
from analysis.tables.columns import printed_error
from analysis.tables.table import Cell, Table
from sweeps.store.schema import PlanFile, VariantRow
from sweeps.store.states import StepState
from sweeps.store.store import SavedSweep, Store

LOG_LINES = 12
BASELINE_NOTES = {"untouched": "the base, not trained further", "mha": "the base, trained as long as the variants"}
_NOT_STARTED = (StepState.PENDING, StepState.BLOCKED, StepState.STOPPED)


class CellJson(NamedTuple):
    """`number` is what the column is sorted by; `missing` says why there is none."""

    text: str
    number: float | None
    best: int
    missing: str


class FactJson(NamedTuple):
    name: str
    value: str


class ScoreJson(NamedTuple):
    """`name` of the score, or of the seed that has it; `missing` says why there is no value."""

    name: str
    value: str
    missing: str


class StepNameJson(NamedTuple):
    name: str
    id: str


class StepJson(NamedTuple):
    """`files` and `run` are links, empty where there is nothing to see yet."""

    state: str
    reason: str
    time: str
    files: str
    run: str


@dataclass(frozen=True)
class VariantJson:
    """`overrides` and `config` are lines `key=value`; of several seeds those that all of them share."""

    variant: str
    note: str
    family: str
    layout: str
    facts: list[FactJson]
    scores: list[ScoreJson]
    overrides: list[str]
    steps: list[StepNameJson]
    seeds: list[ScoreJson]
    config: list[str]


@dataclass(frozen=True)
class PageJson:
    """`rows` are the table's, `variants` say all about each of them, in the same order; `unit` is what a row is."""

    frame: Frame
    headers: list[str]
    rows: list[list[str | CellJson]]
    states: list[str]
    baselines: list[str | None]
    plots: list[PlotJson]
    unit: str
    variants: list[VariantJson]
    steps: dict[str, StepJson]


class Links:
    """Where steps keep their files, seen from the report's directory, and where W&B shows their runs."""

    def __init__(self, store: Store, sweep: SavedSweep, out_dir: Path) -> None:
        self._store = store
        self._root = str(store.root)
        self._from = quote(Path(os.path.relpath(store.root, out_dir.absolute())).as_posix())
        self._runs = _runs_address(sweep.plan)

    def step(self, step_id: str) -> str:
        return self._link(self._store.step(step_id).path)

    def run(self, step_id: str) -> str:
        """The step's run on W&B; empty where the sweep is not mirrored there, or its entity is not known."""
        return f"{self._runs}/{step_id}" if self._runs else ""

    def log(self, step_id: str) -> tuple[str | None, list[str]]:
        """The directory of the last attempt's logs and their last lines."""
        attempt = self._store.step(step_id).attempt()
        if attempt is None:
            return None, []
        return self._link(attempt.path), attempt.log_tail(LOG_LINES)

    def _link(self, path: Path) -> str:
        return self._from + quote(path.as_posix().removeprefix(self._root))


def _runs_address(plan: PlanFile) -> str:
    """Where W&B shows the sweep's runs, as `tracking` says (sweeps.tracking.target.TrackingConfig)."""
    tracking = plan.tracking or {}
    entity, project = tracking.get("entity"), tracking.get("project")
    if tracking.get("mode") != "online" or not entity or not project:
        return ""
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").replace("://api.wandb.ai", "://wandb.ai")
    return f"{server.rstrip('/')}/{quote(entity)}/{quote(project)}/runs"


def page_json(
    sweep: SavedSweep, steps: Steps, results: Results, table: Table, configs: list[list[str]], links: Links
) -> PageJson:
    """Everything; `configs` are the lines of each variant's configuration that not all variants share. Seeds of one
    layout are one entry, as in tables and figures."""
    planned = {id for variant in sweep.variants for _, _, id in variant.steps.each()}
    plots = [difference_json(panel) for panel in panels(results)]
    plots += [pareto_json(plot) for data in pareto_data_of_scores(results) if (plot := layout_plot(data))]
    variants = _variants(sweep, results, configs)
    return PageJson(
        frame=FRAME,
        headers=table.headers,
        rows=[[_cell(cell) for cell in row] for row in table.rows],
        states=table.states,
        baselines=table.baselines,
        plots=plots,
        unit="variants" if len(variants) == len(sweep.variants) else "layouts",
        variants=variants,
        steps={id: _step(id, steps, links) for id in sorted(planned)},
    )


def _cell(cell: Cell) -> str | CellJson:
    """The text alone where there is no more to say."""
    if cell.number is None and not cell.missing and not cell.best:
        return cell.text
    return CellJson(cell.text, cell.number, int(cell.best), cell.missing or "")


def _variants(sweep: SavedSweep, results: Results, configs: list[list[str]]) -> list[VariantJson]:
    """An entry per row of the results, in their order."""
    row_names, behind = replicates.groups(sweep.variants), dict[str, list[tuple[VariantRow, list[str]]]]()
    for variant, config in zip(sweep.variants, configs, strict=True):
        behind.setdefault(row_names.get(variant.variant, variant.variant), []).append((variant, config))
    scores, estimates = [*shown_scores(results), *other_scores(results)], results.estimates
    rows = results.rows()
    for score in scores:
        if f"{score.column}_high" not in results.frame:
            add_intervals(rows, score.column, estimates)
    return [
        _variant(
            row,
            [variant for variant, _ in behind[row["variant"]]],
            scores,
            _seeds(estimates.members[row["variant"]], scores),
            _in_all([config for _, config in behind[row["variant"]]]),
        )
        for row in rows
    ]


def _variant(
    row: Row, seeds: list[VariantRow], scores: list[ScoreColumn], seed_scores: list[ScoreJson], config: list[str]
) -> VariantJson:
    first = seeds[0]
    return VariantJson(
        variant=row["variant"],
        note=BASELINE_NOTES.get(first.baseline or "", ""),
        family=first.family,
        layout=first.layout.draw(),
        facts=[*_facts(first, row), *_differences(row, scores)],
        scores=[_score(score.label, row, score) for score in scores],
        overrides=_in_all([[f"{key}={value}" for key, value in seed.overrides.items()] for seed in seeds]),
        steps=_steps(seeds),
        seeds=seed_scores,
        config=config,
    )


def _in_all(lists: list[list[str]]) -> list[str]:
    """What all lists have."""
    return [line for line in lists[0] if all(line in other for other in lists[1:])]


def _steps(seeds: list[VariantRow]) -> list[StepNameJson]:
    """Every step, each once; the name of a step that not all seeds share says whose it is."""
    users: dict[str, list[VariantRow]] = {}
    for seed in seeds:
        for id in seed.steps.ids:
            users.setdefault(id, []).append(seed)
    names: dict[str, StepNameJson] = {}
    continued = {id for seed in seeds for id in seed.steps.earlier or ()}
    for seed in seeds:
        for kind, task, id in seed.steps.each():
            whose = [] if len(users[id]) == len(seeds) else [_seed(users[id])]
            before = "shorter" if id in continued else None
            names.setdefault(id, StepNameJson(" ".join(filter(None, [before, kind, task, *whose])), id))
    return list(names.values())


def _seed(seeds: list[VariantRow]) -> str:
    """`uptrain.seed=1`: what distinguishes the seed from the others."""
    own = [f"{key}={value}" for seed in seeds for key, value in seed.overrides.items() if key in replicates.SEEDS]
    return " ".join(dict.fromkeys(own)) or seeds[0].variant


def _seeds(rows: Sequence[Row], scores: list[ScoreColumn]) -> list[ScoreJson]:
    """The main score of each of several seeds."""
    return [_score(row["variant"], row, scores[0]) for row in rows] if len(rows) > 1 and scores else []


def _score(name: str, row: Row, score: ScoreColumn) -> ScoreJson:
    value, metric = row[score.column], METRICS.get(score.metric)
    if value is None:
        return ScoreJson(name, "", row[f"{score.column}_missing"])
    return ScoreJson(name, metric.text(value, printed_error(row, score.column)) if metric else f"{value:.4g}", "")


def _facts(variant: VariantRow, row: Row) -> list[FactJson]:
    chance = row["front_probability"]
    facts = [
        FactJson("KV heads in all", f"{variant.budget:,}"),
        FactJson("KV bytes per token", f"{variant.kv_bytes_per_token:,}"),
        FactJson("cache", variant.cache or ""),
        FactJson("as measured", _number(row["measured_bytes_per_token"])),
        FactJson("fastest decode", f"{speed} tokens/s" if (speed := _number(row["tokens_per_second"])) else ""),
        FactJson("measured on", row["machine"] or ""),
        FactJson("approximate", row.get("approximate") or ""),
        *(FactJson(f"{sign.word} {sign.subject}", sign.why) for sign in signatures.split(row.get("signatures"))),
        FactJson("parameters", f"{variant.parameters:,}" if variant.parameters else ""),
        FactJson("device time", duration(row["device_seconds"])),
        FactJson("on the front", "" if chance is None else f"{100 * chance:.0f} %"),
    ]
    return [fact for fact in facts if fact.value]


def _differences(row: Row, scores: list[ScoreColumn]) -> list[FactJson]:
    """From each baseline in the main score, with the p-value that is corrected for all rows."""
    metric = METRICS.get(scores[0].metric) if scores else None
    facts = []
    for baseline in BASELINES:
        value, p = row[f"quality_vs_{baseline}"], row[f"quality_vs_{baseline}_p"]
        if metric and value is not None and row[baseline] != row["variant"]:
            chance = "" if p is None else f" ({p_text(p)})"
            facts.append(FactJson(f"{scores[0].label} − {row[baseline]}", f"{metric.difference(value)}{chance}"))
    return facts


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _step(id: str, steps: Steps, links: Links) -> StepJson:
    (state, reason), record = steps.state_of(id), steps.record(id)
    started = state not in _NOT_STARTED
    return StepJson(
        state=state,
        reason=reason or "",
        time=duration(record.wall_seconds if record else None),
        files=links.step(id) if started else "",
        run=links.run(id) if started else "",
    )
