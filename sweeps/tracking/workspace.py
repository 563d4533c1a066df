"""A sweep's dashboard in W&B: a saved view of the project's workspace, made through the package wandb-workspaces.

docs/wandb.md describes how to make the same view by hand. The package is optional (`pip install mlkv[workspaces]`) and
imported here alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mlkv.files import Json
from sweeps.store.errors import UserError
from sweeps.tracking.environment import clean_own_environment
from sweeps.tracking.mirror import redacted
from sweeps.tracking.read.runs import number

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

    from sweeps.store.schema import VariantRow
    from sweeps.store.store import SavedSweep
    from sweeps.tracking.target import TrackingConfig

PACKAGE = "wandb_workspaces"
DECADE = 10.0
COLUMNS = ("state", "steps_done", "steps_total", "accuracy", "quality")


def save(saved: SavedSweep, config: TrackingConfig, higher_is_better: bool) -> str:
    """Make or renew the sweep's view; returns its address. Raises UserError where the package, the server or the
    project is missing."""
    if find_spec(PACKAGE) is None:
        raise UserError(
            "wandb-workspaces is not installed: pip install wandb-workspaces, or see docs/wandb.md, Looking"
        )
    clean_own_environment()
    import wandb

    try:
        entity = config.entity or str(wandb.Api().default_entity)
        view = _existing_id(entity, config.project, _view_name(saved.name))
        workspace = make(saved, entity, config.project, higher_is_better)
        workspace._internal_name, workspace._internal_id = _view_name(saved.name), view
        workspace.save()
        return str(workspace.url)
    except Exception as error:  # the client raises its own, requests' and protobuf's errors
        raise UserError(f"W&B project {config.path}: {redacted(error)}") from None


def _view_name(sweep: str) -> str:
    """A name of the form that W&B gives to views; always the same for a sweep, so that saving again renews its view."""
    return f"nw-{hashlib.sha256(sweep.encode()).hexdigest()[:11]}-v"


def _existing_id(entity: str, project: str, name: str) -> str:
    """The id of the sweep's view if it has one, else an empty string."""
    from wandb_workspaces.workspaces import internal

    try:
        return internal.View.from_name(entity, project, name).id
    except ValueError as error:
        if "not found in project" in str(error):
            return ""
        raise


def make(saved: SavedSweep, entity: str, project: str, higher_is_better: bool) -> Workspace:
    """A view of the runs of the sweep's variants: quality against cost and against what was swept, training curves,
    memory, and progress."""
    from wandb_workspaces import workspaces as ws

    quality, progress = _make_panels(higher_is_better)
    if keys := swept_keys(saved.variants):
        quality.insert(1, _make_coordinates(keys, higher_is_better))
    return ws.Workspace(
        entity=entity,
        project=project,
        name=saved.name,
        sections=[
            ws.Section(name="Results", panels=quality, is_open=True),
            ws.Section(name="Queue", panels=progress, is_open=True),
        ],
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == saved.name, ws.Metric("JobType") == "variant"),
            pinned_columns=[f"summary:{name}" for name in COLUMNS],
        ),
    )


def swept_keys(variants: Sequence[VariantRow]) -> dict[str, list[Any]]:
    """The keys of the runs' configuration in which the points of the sweep differ → their values. A group of which an
    option was chosen is a mapping there: a layout is told by its family, any other by its name, if it has one."""
    named = dict.fromkeys(key.lstrip("+").partition("@")[0] for row in variants for key in row.overrides)
    found: dict[str, list[Any]] = {}
    for key in named:
        for path in (key, f"{key}.name"):
            if key == "layout":
                path, values = "family", [row.family for row in variants]
            else:
                values = [_value(row.config, path) for row in variants]
            if any(value is not None and not isinstance(value, dict) for value in values):
                found[path] = values
                break
    return found


def _value(config: Json, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _make_coordinates(keys: dict[str, list[Any]], higher_is_better: bool) -> Any:
    """Parallel coordinates: a line per variant over the keys and the quality, the best at the top."""
    from wandb_workspaces.reports import v2 as panels

    swept = [
        panels.ParallelCoordinatesPlotColumn(metric=panels.Config(path), display_name=path, log=_spans(values))
        for path, values in keys.items()
    ]
    quality = panels.ParallelCoordinatesPlotColumn(
        metric=panels.SummaryMetric("quality"), display_name="quality", inverted=not higher_is_better
    )
    return panels.ParallelCoordinatesPlot(title="Quality over what was swept", columns=[*swept, quality])


def _spans(values: list[Any]) -> bool:
    """Whether these are numbers of several orders of magnitude, which only a logarithmic axis tells apart."""
    numbers = [value for each in values if (value := number(each)) is not None]
    return len(numbers) == len(values) and min(numbers) > 0 and max(numbers) >= DECADE * min(numbers)


def _make_panels(higher_is_better: bool) -> tuple[list[Any], list[Any]]:
    from wandb_workspaces.reports import v2 as panels

    pareto = panels.ScatterPlot(
        title="Pareto: quality against KV bytes per token",
        x=panels.Config("kv_bytes_per_token"),
        y=panels.SummaryMetric("quality"),
        log_x=True,
        running_ymax=higher_is_better,
        running_ymin=not higher_is_better,
        legend_template="${run:displayName}",
    )
    loss = panels.LinePlot(
        title="Loss by variant", x="train/global_step", y=["train/loss"], legend_template="${run:displayName}"
    )
    memory = panels.LinePlot(
        title="Memory against batch size",
        x="memory/batch",
        y=["memory/cache_bytes"],
        log_x=True,
        log_y=True,
        legend_template="${run:displayName}",
    )
    queue = panels.BarPlot(title="Steps done", metrics=["steps_done"], orientation="h")
    total = panels.ScalarChart(title="Steps done in all", metric="steps_done", groupby_aggfunc="sum")
    planned = panels.ScalarChart(title="Steps planned in all", metric="steps_total", groupby_aggfunc="sum")
    return [pareto, loss, memory], [queue, total, planned, panels.RunComparer(diff_only=True)]
