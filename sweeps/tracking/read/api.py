"""Reads a project's runs through W&B's public API: a page of runs per request, several histories at once.

Histories are cached by run and by when it last changed, so that reading a project again costs the list of runs alone. A
request that fails is repeated here; where the server limits the rate (429, Retry-After), wandb's client waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from mlkv.files import Json
from sweeps.steps.registry import axis_of
from sweeps.tracking.environment import clean_own_environment
from sweeps.tracking.read.cache import HistoryCache
from sweeps.tracking.read.runs import LoggedRun, planned

Report = Callable[[str, int, int], None]
"""Called with what is being read (`runs`, `histories`), how many were read and how many there are."""
Wanted = Callable[[LoggedRun], bool]
T = TypeVar("T")
RUNS_PER_PAGE, ROWS_PER_PAGE, MAX_CONNECTIONS, MAX_TRIES = 200, 10_000, 8, 5


class WandbReadError(ValueError):
    """W&B could not be read; one line that says why."""


def all_runs(run: LoggedRun) -> bool:
    return True


def unfinished(run: LoggedRun) -> bool:
    """A step that is running: its summary has no scores yet, so its history is needed to show how far it is."""
    return run.summary.get("state") == "RUNNING"


def no_runs(run: LoggedRun) -> bool:
    return False


class Project:
    """One W&B project. Every method raises WandbReadError.

    path: `entity/project`, or `project` of the default entity.
    cache: a directory for fetched histories; None: they are fetched each time.
    timeout: seconds for one request.
    """

    def __init__(
        self, path: str, *, cache: Path | None = None, report: Report = lambda what, done, of: None, timeout: int = 30
    ) -> None:
        clean_own_environment()
        import wandb

        self.path, self._report = path, report
        self.fetched = self.cached = 0
        """Histories that came from the server, and from the cache."""
        self._cache = HistoryCache(cache) if cache else None
        self._api = self._request(lambda: wandb.Api(timeout=timeout))

    def runs(self, filters: Mapping[str, Any] | None = None, histories: Wanted = all_runs) -> list[LoggedRun]:
        """The runs that match W&B's `filters`, oldest first, with the histories that are wanted."""
        listed = self._request(lambda: list(self._listed(filters or {})))
        runs = [_logged_run(each) for each in listed]
        selected = [(run, each) for run, each in zip(runs, listed, strict=True) if histories(run)]
        with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
            started = [(run, pool.submit(self._history, each)) for run, each in selected]
            for done, (run, rows) in enumerate(started, 1):
                run.rows, fetched = self._request(rows.result, tries=1)
                self.fetched += fetched
                self.cached += bool(run.rows) and not fetched
                self._report("histories", done, len(started))
        return runs

    def sweep(self, name: str, histories: Wanted = unfinished) -> list[LoggedRun]:
        """The runs of a sweep's variants, then those of the steps that they name."""
        variants = self.runs({"group": name, "jobType": "variant"}, no_runs)
        steps = sorted({id for run in variants for id in planned(run).get("steps", {})})
        pages = [steps[i : i + RUNS_PER_PAGE] for i in range(0, len(steps), RUNS_PER_PAGE)]
        return [*variants, *(run for page in pages for run in self.runs({"name": {"$in": page}}, histories))]

    def _listed(self, filters: Mapping[str, Any]) -> Iterator[Any]:
        """W&B's run objects, oldest first. `lazy=False`: configuration and summary come with the page of runs; else the
        client would request them for each run."""
        options: Json = {"per_page": RUNS_PER_PAGE, "order": "+created_at", "lazy": False, "include_sweeps": False}
        runs = self._api.runs(self.path, filters=dict(filters), **options)
        for done, run in enumerate(runs, 1):
            yield run
            self._report("runs", done, len(runs))

    def _history(self, run: Any) -> tuple[list[Json], bool]:
        """The run's rows, and whether the server was asked for them: not where it has none, or the cache has them."""
        if not run.historyLineCount:
            return [], False
        key = (self._api.settings["base_url"], run.entity, run.project, run.id)
        changed = f"{run.heartbeatAt} {run.historyLineCount}"
        cached = self._cache.read(key, changed) if self._cache else None
        if cached is not None:
            return cached, False
        rows = _with_retries(lambda: list(run.scan_history(page_size=ROWS_PER_PAGE, use_cache=False)), MAX_TRIES)
        if self._cache:
            self._cache.write(key, changed, rows)
        return rows, True

    def _request(self, call: Callable[[], T], tries: int = MAX_TRIES) -> T:
        """The result of `call`, which is tried again; any failure becomes a WandbReadError."""
        try:
            return _with_retries(call, tries)
        except Exception as error:  # the client raises its own, requests' and protobuf's errors
            raise WandbReadError(f"W&B project {self.path}: {' '.join(str(error).split())[:300]}") from None


def _with_retries(call: Callable[[], T], tries: int) -> T:
    from wandb.errors import UsageError

    for attempt in range(tries):
        try:
            return call()
        except (ValueError, UsageError):
            raise  # no such project, or no key: another try would not change that
        except Exception:
            if attempt == tries - 1:
                raise
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


def _logged_run(run: Any) -> LoggedRun:
    summary = {key: value for key, value in dict(run.summary_metrics).items() if key != "_wandb"}
    kind = run.job_type or ""
    axis = axis_of(kind or "uptrain")
    return LoggedRun(
        id=run.id,
        name=run.name or "",
        project=run.project,
        entity=run.entity,
        job_type=kind,
        group=run.group or "",
        sweep=run.sweep_name or "",
        tags=tuple(run.tags),
        config=dict(run.config),
        summary=summary,
        axes={f"{axis.prefix}/*": axis.name},
        state=run.state,
    )
