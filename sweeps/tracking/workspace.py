"""A sweep's dashboard in W&B: a saved view of the project's workspace, made through the package wandb-workspaces.

docs/wandb.md describes how to make the same view by hand. The package is optional (`pip install mlkv[workspaces]`) and
imported here alone.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sweeps.store.errors import UserError
from sweeps.tracking.environment import clean_own_environment
from sweeps.tracking.mirror import redacted

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

    from sweeps.store.store import SavedSweep
    from sweeps.tracking.target import TrackingConfig

PACKAGE = "wandb_workspaces"
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
        workspace = make(saved.name, entity, config.project, higher_is_better)
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


def make(sweep: str, entity: str, project: str, higher_is_better: bool) -> Workspace:
    """A view of the runs of the sweep's variants: quality against cost, training curves, memory, and progress."""
    from wandb_workspaces import workspaces as ws

    quality, progress = _make_panels(higher_is_better)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=sweep,
        sections=[
            ws.Section(name="Results", panels=quality, is_open=True),
            ws.Section(name="Queue", panels=progress, is_open=True),
        ],
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == sweep, ws.Metric("JobType") == "variant"),
            pinned_columns=[f"summary:{name}" for name in COLUMNS],
        ),
    )


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
