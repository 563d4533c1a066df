"""What a W&B server remembers of runs, and its answers to the GraphQL operations that the wandb client sends.

Answers are chosen by operation name and hold every field that any client asks for. Evidence about the client alone.
"""
# ruff: noqa: N802 (a method answers the operation it is named after)

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlkv.files import Json
from tests.support.wandb_artifacts import Artifacts

ENTITY = "tester"
HISTORY, EVENTS, SUMMARY, LOGS = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json", "output.log"


def timestamp() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1e6) % 10**6:06}Z"


@dataclass
class StoredRun:
    """One run as the server holds it; `lines` are the streamed files by name."""

    entity: str
    project: str
    name: str
    storage_id: str
    shown: Json = field(default_factory=dict)
    config: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    state: str = "running"
    preempting: bool = False
    created: str = field(default_factory=timestamp)
    updated: str = field(default_factory=timestamp)
    lines: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    """Ids of those that it made."""
    inputs: list[str] = field(default_factory=list)
    """Ids of those that it used."""
    _keys: tuple[int, Json] | None = None

    @property
    def history(self) -> list[Json]:
        return [json.loads(line) for line in self.lines.get(HISTORY, [])]

    @property
    def events(self) -> list[Json]:
        return [json.loads(line) for line in self.lines.get(EVENTS, [])]

    def _history_keys(self) -> Json:
        """Worked out anew when there are other lines than before: listings ask for it of every run."""
        count = len(self.lines.get(HISTORY, []))
        if self._keys is None or self._keys[0] != count:
            rows = self.history
            last = max((row["_step"] for row in rows), default=-1)
            self._keys = (count, {"lastStep": last, "keys": {key: {} for row in rows for key in row}})
        return self._keys[1]

    def value(self, key: str) -> Json:
        """A configuration value."""
        return self.config[key]["value"]

    def node(self) -> Json:
        return {
            "id": self.storage_id,
            "name": self.name,
            "projectId": "1",
            "displayName": self.shown.get("displayName") or self.name,
            "state": self.state,
            "config": json.dumps(self.config),
            "summaryMetrics": json.dumps(self.summary),
            "systemMetrics": "{}",
            "group": self.shown.get("groupName"),
            "jobType": self.shown.get("jobType"),
            "tags": self.shown.get("tags") or [],
            "notes": self.shown.get("notes"),
            "description": self.shown.get("description"),
            "sweepName": self.shown.get("sweepName"),
            "commit": None,
            "readOnly": False,
            "createdAt": self.created,
            "heartbeatAt": self.updated,
            "historyLineCount": len(self.lines.get(HISTORY, [])),
            "eventsLineCount": len(self.lines.get(EVENTS, [])),
            "logLineCount": len(self.lines.get(LOGS, [])),
            "historyTail": json.dumps(self.lines.get(HISTORY, [])[-1:]),
            "eventsTail": json.dumps(self.lines.get(EVENTS, [])[-1:]),
            "wandbConfig": json.dumps({"t": 1}),
            "user": {"name": ENTITY, "username": ENTITY},
            "historyKeys": self._history_keys(),
            "fileCount": len(self.files),
            "project": _project(self.entity, self.project),
        }


def _project(entity: str, name: str) -> Json:
    return {"id": f"project-{name}", "name": name, "entity": {"id": entity, "name": entity}}


class Backend(Artifacts):
    """Runs by (entity, project, name), and the operations on them."""

    def __init__(self) -> None:
        self.url = ""
        self.lock = threading.RLock()
        self.runs: dict[tuple[str, str, str], StoredRun] = {}
        self.artifacts: dict[str, Json] = {}
        self.alerts: list[Json] = []
        self.views: dict[str, Json] = {}
        self.operations: list[str] = []

    def run(self, name: str, project: str = "mlkv") -> StoredRun:
        return self.runs[ENTITY, project, name]

    def answer(self, query: str, variables: Json) -> Json:
        found = re.search(r"\b(query|mutation)\s+(\w+)", query)
        operation = found[2] if found else ""
        with self.lock:
            self.operations.append(operation)
            handler: Callable[[Json], Json] | None = getattr(self, f"_{operation}", None)
            if handler is None:
                raise KeyError(f"operation {operation} is not implemented: {query}")
            return handler(variables)

    # Who
    def _Viewer(self, variables: Json) -> Json:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        flags = json.dumps({"code_saving_enabled": False})
        viewer = {"id": "user-1", "entity": ENTITY, "username": ENTITY, "email": "t@example.org", "flags": flags}
        return {"viewer": {**viewer, "name": ENTITY, "teams": teams, "admin": False, "apiKeys": {"edges": []}}}

    _GetViewer = _GetDefaultEntity = _Viewer

    def _ServerFeaturesQuery(self, variables: Json) -> Json:
        return {"serverInfo": {"features": []}}

    # Writing
    def _UpsertBucket(self, variables: Json) -> Json:
        run, inserted = self._upserted(variables)
        for key in ("displayName", "groupName", "jobType", "notes", "description", "tags"):
            if variables.get(key) is not None:
                run.shown[key] = variables[key]
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        if variables.get("summaryMetrics"):
            run.summary = json.loads(variables["summaryMetrics"])
        run.state = variables.get("state") or "running"
        run.updated = timestamp()
        return {"upsertBucket": {"bucket": run.node(), "inserted": inserted}}

    def _upserted(self, variables: Json) -> tuple[StoredRun, bool]:
        for run in self.runs.values():
            if run.storage_id == variables.get("id"):
                return run, False
        name = variables.get("name") or f"made{len(self.runs)}"
        key = (variables.get("entity") or ENTITY, variables.get("project") or "uncategorized", name)
        inserted = key not in self.runs
        run = self.runs.setdefault(key, StoredRun(*key, storage_id=base64.b64encode("/".join(key).encode()).decode()))
        return run, inserted

    def stream(self, key: tuple[str, str, str], body: Json) -> Json:
        """The body of one file_stream request: lines at offsets, sent again after a failure without harm."""
        with self.lock:
            run = self.runs[key]
            for name, part in (body.get("files") or {}).items():
                lines = run.lines.setdefault(name, [])
                lines[part["offset"] : part["offset"] + len(part["content"])] = part["content"]
                if name == SUMMARY:
                    run.summary = json.loads(part["content"][-1])
            run.preempting |= bool(body.get("preempting"))
            if body.get("complete"):
                failed = "preempted" if run.preempting else "failed"
                run.state = "finished" if body.get("exitcode") == 0 else failed
            run.updated = timestamp()
            return {"exitcode": None, "limits": {}}

    def _CreateRunFiles(self, variables: Json) -> Json:
        path = "/".join(variables[key] for key in ("entity", "project", "run"))
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{path}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def upload(self, path: str, content: bytes) -> None:
        entity, project, run, name = path.split("/", 3)
        with self.lock:
            if run == "artifacts":
                self.keep_artifact_file(project, name, content)
            else:
                self.runs[entity, project, run].files[name] = content

    def _NotifyScriptableRunAlert(self, variables: Json) -> Json:
        self.alerts.append(variables)
        return {"notifyScriptableRunAlert": {"success": True}}

    # Saved views of a project's workspace
    def _UpsertView2(self, variables: Json) -> Json:
        known = self.views.get(variables.get("id") or "")
        id = known["id"] if known else f"view-{len(self.views)}"
        self.views[id] = {**variables, "id": id}
        return {"upsertView": {"view": {"id": id, "name": variables["name"]}, "inserted": known is None}}

    def _View(self, variables: Json) -> Json:
        found = [view for view in self.views.values() if view["name"] == variables["viewName"]]
        exists = any((e, p) == (variables["entityName"], variables["name"]) for e, p, _ in self.runs)
        edges = [{"node": {key: view[key] for key in ("id", "displayName", "spec")}} for view in found]
        return {"project": {"allViews": {"edges": edges}} if exists else None}

    # Reading
    def _find(self, variables: Json) -> StoredRun | None:
        name = variables.get("name") if "run" not in variables else variables["run"]
        name = variables.get("runName", name)
        return self.runs.get((variables.get("entity") or ENTITY, variables.get("project") or "", name or ""))

    def _RunResumeStatus(self, variables: Json) -> Json:
        project = variables.get("project") or "uncategorized"
        run = self._find(variables)
        if run:
            run.preempting = False  # taken up again
        bucket = run.node() if run else None
        return {"model": {**_project(variables.get("entity") or ENTITY, project), "bucket": bucket}}

    def _of_run(self, variables: Json, answer: Callable[[StoredRun], Json]) -> Json:
        run = self._find(variables)
        return {"project": {"internalId": "1", "run": answer(run) if run else None}}

    def _Run(self, variables: Json) -> Json:
        return self._of_run(variables, StoredRun.node)

    _RunState = _RunHistoryKeys = _QueryRunInfo = _Run

    def _Runs(self, variables: Json) -> Json:
        wanted = json.loads(variables.get("filters") or "{}")
        of_project = [r for (e, p, _), r in self.runs.items() if (e, p) == (variables["entity"], variables["project"])]
        found = [run for run in of_project if matches(run.node(), wanted)]
        order = variables.get("order") or "+created_at"
        found.sort(key=lambda run: _sortable(_lookup(run.node(), order.lstrip("+-"))), reverse=order.startswith("-"))
        start = int(variables.get("cursor") or 0)
        page = found[start : start + (variables.get("perPage") or 50)]
        edges = [{"node": run.node(), "cursor": str(start + i + 1)} for i, run in enumerate(page)]
        info = {"endCursor": str(start + len(page)), "hasNextPage": start + len(page) < len(found)}
        runs = {"edges": edges, "pageInfo": info}
        exists = bool(of_project) or None
        project = {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": runs}
        return {"project": project if exists else None}

    def _RunParquetHistory(self, variables: Json) -> Json:
        return self._of_run(variables, lambda run: {"parquetHistory": {"parquetUrls": [], "liveData": []}})

    def _HistoryPage(self, variables: Json) -> Json:
        low, high = int(variables["minStep"]), int(variables["maxStep"])
        return self._of_run(variables, lambda run: {"history": _lines(run, lambda row: low <= row["_step"] < high)})

    def _RunFullHistory(self, variables: Json) -> Json:
        return self._of_run(
            variables,
            lambda run: {"history": _lines(run)[-variables["samples"] :], "events": run.lines.get(EVENTS, [])},
        )

    def _RunSampledHistory(self, variables: Json) -> Json:
        """Only rows that have every key."""
        specs = [json.loads(spec) for spec in variables.get("specs") or [variables["spec"]]]
        return self._of_run(
            variables,
            lambda run: {
                "sampledHistory": [
                    [
                        {key: row[key] for key in spec["keys"]}
                        for row in run.history
                        if all(k in row for k in spec["keys"])
                    ][: spec.get("samples", 500)]
                    for spec in specs
                ]
            },
        )

    _SampledHistoryPage = _RunSampledHistory

    def _RunFiles(self, variables: Json) -> Json:
        def answer(run: StoredRun) -> Json:
            nodes = [
                self._file(run, name) for name in variables.get("fileNames") or sorted(run.files) if name in run.files
            ]
            edges = [{"node": node, "cursor": node["name"]} for node in nodes]
            return {
                "fileCount": len(run.files),
                "files": {"edges": edges, "pageInfo": {"hasNextPage": False, "endCursor": ""}},
            }

        return self._of_run(variables, answer)

    def _file(self, run: StoredRun, name: str) -> Json:
        url = f"{self.url}/storage/{run.entity}/{run.project}/{run.name}/{name}"
        content = run.files[name]
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        node = {"id": name, "name": name, "url": url, "directUrl": url, "sizeBytes": len(content), "md5": md5}
        return {**node, "mimetype": "", "updatedAt": run.updated}


def _lines(run: StoredRun, keep: Callable[[Json], bool] = lambda row: True) -> list[str]:
    return [line for line in run.lines.get(HISTORY, []) if keep(json.loads(line))]


# Filters, as the public API takes them: a small part of MongoDB's language

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda value, wanted: value == wanted or (isinstance(value, list) and wanted in value),
    "$ne": lambda value, wanted: value != wanted,
    "$in": lambda value, wanted: any(item in wanted for item in (value if isinstance(value, list) else [value])),
    "$nin": lambda value, wanted: not any(item in wanted for item in (value if isinstance(value, list) else [value])),
    "$regex": lambda value, wanted: isinstance(value, str) and re.search(wanted, value) is not None,
    "$exists": lambda value, wanted: (value is not None) == wanted,
    "$gt": lambda value, wanted: value is not None and value > wanted,
    "$gte": lambda value, wanted: value is not None and value >= wanted,
    "$lt": lambda value, wanted: value is not None and value < wanted,
    "$lte": lambda value, wanted: value is not None and value <= wanted,
}


def matches(node: Json, wanted: Json) -> bool:
    return all(_holds(node, key, condition) for key, condition in wanted.items())


def _holds(node: Json, key: str, condition: Any) -> bool:
    if key == "$and":
        return all(matches(node, each) for each in condition)
    if key == "$or":
        return any(matches(node, each) for each in condition)
    conditions = condition if isinstance(condition, dict) else {"$eq": condition}
    return all(_COMPARE[operator](_lookup(node, key), value) for operator, value in conditions.items())


_NAMES = {
    "created_at": "createdAt",
    "heartbeat_at": "heartbeatAt",
    "display_name": "displayName",
    "job_type": "jobType",
    "sweep": "sweepName",
}


def _lookup(node: Json, key: str) -> Any:
    """A field of a run by the name that filters and orders use: state, config.uptrain.lr, summary_metrics.loss."""
    head, _, rest = key.partition(".")
    if head not in ("config", "summary_metrics", "summaryMetrics"):
        return node.get(_NAMES.get(key, key))
    value = json.loads(node["config" if head == "config" else "summaryMetrics"])
    for part in rest.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value["value"] if isinstance(value, dict) and "value" in value else value


def _sortable(value: Any) -> tuple[bool, Any]:
    return (value is not None, value if value is not None else 0)
