"""A sweep's dashboard online: one saved view of the project's workspace, made through W&B's own package.

The panels are those of docs/wandb.md, where the same view is described for making it by hand. Needs `wandb-workspaces`
(`pip install mlkv[workspaces]`), which is imported here alone.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sweeps.store.errors import UserError
from sweeps.tracking.mirror import redacted

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

    from sweeps.store.store import SavedSweep
    from sweeps.tracking.target import TrackingConfig

PACKAGE = "wandb_workspaces"
COLUMNS = ("state", "steps_done", "steps_total", "accuracy", "quality")


def save(saved: SavedSweep, config: TrackingConfig, higher_is_better: bool) -> str:
    """Make or renew the sweep's view; its address. Raises UserError without the package, the server or the project."""
    if find_spec(PACKAGE) is None:
        raise UserError(
            "wandb-workspaces is not installed: pip install wandb-workspaces, or see docs/wandb.md, Looking"
        )
    import wandb

    try:
        entity = config.entity or str(wandb.Api().default_entity)
        view = _known(entity, config.project, _name(saved.name))
        workspace = make(saved.name, entity, config.project, higher_is_better)
        workspace._internal_name, workspace._internal_id = _name(saved.name), view
        workspace.save()
        return str(workspace.url)
    except Exception as error:  # the client raises its own, requests' and protobuf's errors
        raise UserError(f"W&B project {config.path}: {redacted(error)}") from None


def _name(sweep: str) -> str:
    """In the form that W&B gives to views; always the same, so that saving again renews it."""
    return f"nw-{hashlib.sha256(sweep.encode()).hexdigest()[:11]}-v"


def _known(entity: str, project: str, name: str) -> str:
    """The id of a view that is there already; empty where there is none."""
    from wandb_workspaces.workspaces import internal

    try:
        return internal.View.from_name(entity, project, name).id
    except ValueError as error:
        if "not found in project" in str(error):
            return ""
        raise


def make(sweep: str, entity: str, project: str, higher_is_better: bool) -> Workspace:
    """The runs of the sweep's variants: what each costs and what it is worth, how it trained, how far it is."""
    from wandb_workspaces import workspaces as ws

    quality, progress = _panels(higher_is_better)
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


def _panels(higher_is_better: bool) -> tuple[list[Any], list[Any]]:
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
