"""What the report page's script is handed: the table's rows, the plots' points and all about each variant, as JSON.

The script builds what is looked at from it, so that a page of thousands of variants opens as fast as one of nine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from analysis.data import replicates
from analysis.data.frame import Row
from analysis.data.gather import Steps
from analysis.data.metrics import METRICS
from analysis.data.units import duration
from analysis.figures.cloud import MEMORY, clouds
from analysis.page.plot import Mark, Plot, lay_out
from analysis.statistics.compare import add_intervals
from analysis.statistics.results import Results
from analysis.statistics.scores import ScoreColumn, other_scores, shown_scores
from analysis.tables.columns import printed_error
from analysis.tables.table import Cell, Table
from mlkv.layout import KVLayout
from sweeps.store.store import SavedSweep, Store

Json = dict[str, Any]
KINDS = ("corpus", "base", "convert", "uptrain", "evaluate", "measure")
LOG_LINES = 12
NOTES = {"untouched": "the base as it was", "mha": "the base, trained on equally"}
CERTAIN = "Filled: on the front with a probability of 95 % or more. Hollow: noise leaves it open. Faint: dominated."
BARE = "Filled: on the front by the numbers alone, as not every error is known. Faint: dominated."
_NEVER_BEGUN = ("PENDING", "BLOCKED")


class Links:
    """Where steps keep their files, seen from the report's directory, and where W&B shows their runs."""

    def __init__(self, store: Store, sweep: SavedSweep, out_dir: Path) -> None:
        self._store = store
        self._root = str(store.root)
        self._from = quote(Path(os.path.relpath(store.root, out_dir.absolute())).as_posix())
        self._runs = _runs_address(sweep.plan.get("tracking") or {})

    def step(self, step_id: str) -> str:
        return self._link(self._store.step(step_id).path)

    def run(self, step_id: str) -> str:
        """The step's run on W&B; empty where the sweep is not mirrored there, or the entity is not told."""
        return f"{self._runs}/{step_id}" if self._runs else ""

    def log(self, step_id: str) -> tuple[str | None, list[str]]:
        """The directory of the last attempt's logs and their last lines."""
        attempt = self._store.step(step_id).attempt()
        if attempt is None:
            return None, []
        return self._link(attempt.path), attempt.log_tail(LOG_LINES)

    def _link(self, path: Path) -> str:
        return self._from + quote(path.as_posix().removeprefix(self._root))


def _runs_address(tracking: Mapping[str, Any]) -> str:
    if tracking.get("mode") != "online" or not tracking.get("entity"):
        return ""
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").replace("://api.wandb.ai", "://wandb.ai")
    return f"{server.rstrip('/')}/{quote(tracking['entity'])}/{quote(tracking['project'])}/runs"


def data(
    sweep: SavedSweep, steps: Steps, results: Results, printed: Table, configs: list[list[str]], links: Links
) -> Json:
    """Everything; `configs` are the lines of each variant's configuration that not all variants share. Seeds of one
    layout are one entry, as in tables and figures."""
    planned = {id for variant in sweep.variants for _, _, id in variant_steps(variant)}
    return {
        "headers": printed.headers,
        "rows": [[_cell(cell) for cell in row] for row in printed.rows],
        "states": printed.states,
        "baselines": printed.baselines,
        "plots": [_plot(plot) for cloud in clouds(results) if (plot := lay_out(cloud))],
        "unit": "variants" if len(results.frame) == len(sweep.variants) else "layouts",
        "variants": _variants(sweep, results, configs),
        "steps": {id: _step(id, steps, links) for id in sorted(planned)},
    }


def _cell(cell: Cell) -> str | list[Any]:
    """The text alone, or with the number that it is sorted by, whether it is the best, and why there is none."""
    if cell.number is None and not cell.missing and not cell.best:
        return cell.text
    return [cell.text, cell.number, int(cell.best), cell.missing or ""]


def _plot(plot: Plot) -> Json:
    return {
        "label": plot.cloud.label,
        "axis": plot.cloud.axis_label,
        "cost": MEMORY.label,
        "reading": CERTAIN if any(mark.point.chance is not None for mark in plot.marks) else BARE,
        "x": [[round(x, 1), text] for x, text in plot.x_ticks],
        "y": [[round(y, 1), text] for y, text in plot.y_ticks],
        "front": [[*(round(at, 1) for at in line), int(undecided)] for *line, undecided in plot.front],
        "levels": [[round(mark.y, 1), mark.point.baseline] for mark in plot.marks if mark.point.baseline],
        "families": [[f.name, f.colour, f.dark, f.shape, round(100 * f.coverage)] for f in plot.families],
        "marks": [_mark(mark) for mark in plot.marks],
    }


def _mark(mark: Mark) -> list[Any]:
    """Variant, place, error bar, family, standing, value and cost, who dominates it, chance, and its label's place."""
    point, label = mark.point, mark.label
    return [
        point.variant,
        round(mark.x, 1),
        round(mark.y, 1),
        [round(end, 1) for end in mark.bar] if mark.bar else None,
        point.family or "?",
        "untouched" if point.baseline == "untouched" else point.standing,
        point.x,
        point.y,
        point.dominated_by or "",
        None if point.chance is None else round(point.chance, 3),
        [round(label.x, 1), round(label.y, 1), label.anchor] if label else None,
    ]


def _variants(sweep: SavedSweep, results: Results, configs: list[list[str]]) -> list[Json]:
    """An entry per row of the results, in its order."""
    called, behind = replicates.groups(sweep.variants), dict[str, list[tuple[Json, list[str]]]]()
    for variant, config in zip(sweep.variants, configs, strict=True):
        name = str(variant["variant"])
        behind.setdefault(called.get(name, name), []).append((variant, config))
    scores, estimates = [*shown_scores(results), *other_scores(results)], results.estimates
    rows, members = results.rows(), estimates.members
    for score in scores:
        if f"{score.column}_high" not in results.frame:
            add_intervals(rows, score.column, estimates)
    return [
        {
            **_entry(row, [variant for variant, _ in behind[row["variant"]]], scores),
            "seeds": _seeds(members[row["variant"]], scores),
            "config": _in_all([config for _, config in behind[row["variant"]]]),
        }
        for row in rows
    ]


def _entry(row: Row, seeds: list[Json], scores: list[ScoreColumn]) -> Json:
    first = seeds[0]
    return {
        "variant": row["variant"],
        "note": NOTES.get(first["baseline"], ""),
        "family": first["family"],
        "layout": _layout(first).draw(),
        "facts": _facts(first, row),
        "scores": [_score(row, score) for score in scores],
        "overrides": _in_all([[f"{key}={value}" for key, value in seed["overrides"].items()] for seed in seeds]),
        "steps": _steps(seeds),
    }


def _in_all(lists: list[list[str]]) -> list[str]:
    """What all lists have."""
    return [line for line in lists[0] if all(line in other for other in lists[1:])]


def _steps(seeds: list[Json]) -> list[list[str]]:
    """Name and id of every step, each once; where seeds have their own, the name says whose it is."""
    users: dict[str, list[Json]] = {}
    for seed in seeds:
        for _, _, id in variant_steps(seed):
            users.setdefault(id, []).append(seed)
    found: dict[str, list[str]] = {}
    for seed in seeds:
        for kind, task, id in variant_steps(seed):
            whose = [] if len(users[id]) == len(seeds) else [_seed(users[id])]
            found.setdefault(id, [" ".join(filter(None, [kind, task, *whose])), id])
    return list(found.values())


def _seed(seeds: list[Json]) -> str:
    """`uptrain.seed=1`: what tells the seed from the others."""
    told = [f"{key}={value}" for seed in seeds for key, value in seed["overrides"].items() if key in replicates.SEEDS]
    return " ".join(dict.fromkeys(told)) or str(seeds[0]["variant"])


def _seeds(rows: Sequence[Row], scores: list[ScoreColumn]) -> list[list[str]]:
    """The main score of each of several seeds, and why there is none."""
    return [[row["variant"], *_score(row, scores[0])[1:]] for row in rows] if len(rows) > 1 and scores else []


def _layout(variant: Json) -> KVLayout:
    return KVLayout.from_dict(variant["layout"])


def _score(row: Json, score: ScoreColumn) -> list[str]:
    """Label, printed value, and why there is none."""
    value, metric = row[score.column], METRICS.get(score.metric)
    if value is None:
        return [score.label, "", row[f"{score.column}_missing"]]
    return [score.label, metric.text(value, printed_error(row, score.column)) if metric else f"{value:.4g}", ""]


def _facts(variant: Json, row: Json) -> list[list[str]]:
    chance = row["front_probability"]
    facts = [
        ["KV heads in all", f"{variant['budget']:,}"],
        ["KV bytes per token", f"{variant['kv_bytes_per_token']:,}"],
        ["as measured", _number(row["measured_bytes_per_token"])],
        ["fastest decode", f"{speed} tokens/s" if (speed := _number(row["tokens_per_second"])) else ""],
        ["measured on", row["machine"] or ""],
        ["parameters", f"{variant['parameters']:,}" if variant["parameters"] else ""],
        ["device time", duration(row["device_seconds"])],
        ["on the front", "" if chance is None else f"{100 * chance:.0f} %"],
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


def _step(id: str, steps: Steps, links: Links) -> list[str]:
    """State, reason, time, and the links to its files and to its run."""
    state, reason = steps.standing(id)
    begun = state not in _NEVER_BEGUN
    time = duration((steps.record(id) or {}).get("wall_seconds"))
    return [state, reason or "", time, links.step(id) if begun else "", links.run(id) if begun else ""]
