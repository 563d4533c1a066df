"""Reads a project's runs back through W&B's public API: a page of runs at a time, histories side by side.

What was fetched is kept by (run, when it last changed), so that asking again costs the listing alone. A request that
fails is tried again; the server's word on when (429, Retry-After) is the client's to keep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sweeps.tracking.read.cache import HistoryCache
from sweeps.tracking.read.runs import LoggedRun, planned

Json = dict[str, Any]
Report = Callable[[str, int, int], None]
"""Called with what is being read (`runs`, `histories`), how many are there and how many there will be."""
Wanted = Callable[[LoggedRun], bool]
T = TypeVar("T")
PAGE, ROWS, AT_ONCE, TRIES = 200, 10_000, 8, 5
_AXES = {"train/*": "train/global_step"}


class WandbReadError(ValueError):
    """W&B could not be read; one line that says why."""


def every(run: LoggedRun) -> bool:
    return True


def unfinished(run: LoggedRun) -> bool:
    """A step's run of which only the history tells how far it is."""
    return run.summary.get("state") == "RUNNING"


def none(run: LoggedRun) -> bool:
    return False


class Project:
    """`entity/project`, or `project` of the default entity. Every method raises WandbReadError.

    `cache`: a directory to keep histories in.
    """

    def __init__(
        self, path: str, *, cache: Path | None = None, report: Report = lambda what, done, of: None, timeout: int = 30
    ) -> None:
        import wandb

        self.path, self._report = path, report
        self.fetched = self.kept = 0
        """Histories that the server was asked for, and that it was not."""
        self._cache = HistoryCache(cache) if cache else None
        self._api = self._asked(lambda: wandb.Api(timeout=timeout))

    def runs(self, filters: Mapping[str, Any] | None = None, histories: Wanted = every) -> list[LoggedRun]:
        """The runs that match W&B's `filters`, oldest first, with the histories that are wanted."""
        listed = self._asked(lambda: list(self._listed(filters or {})))
        runs = [_described(each) for each in listed]
        wanted = [(run, each) for run, each in zip(runs, listed, strict=True) if histories(run)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = [(run, pool.submit(self._history, each)) for run, each in wanted]
            for done, (run, rows) in enumerate(found, 1):
                run.rows, fetched = self._asked(rows.result, tries=1)
                self.fetched += fetched
                self.kept += bool(run.rows) and not fetched
                self._report("histories", done, len(found))
        return runs

    def sweep(self, name: str, histories: Wanted = unfinished) -> list[LoggedRun]:
        """The runs of a sweep's variants and of the steps they name."""
        variants = self.runs({"group": name, "jobType": "variant"}, none)
        steps = sorted({id for run in variants for id in planned(run).get("steps", {})})
        pages = [steps[i : i + PAGE] for i in range(0, len(steps), PAGE)]
        return [*variants, *(run for page in pages for run in self.runs({"name": {"$in": page}}, histories))]

    def _listed(self, filters: Mapping[str, Any]) -> Iterator[Any]:
        """Configuration and summary come with the page."""
        how: Json = {"per_page": PAGE, "order": "+created_at", "lazy": False, "include_sweeps": False}
        found = self._api.runs(self.path, filters=dict(filters), **how)
        for done, run in enumerate(found, 1):
            yield run
            self._report("runs", done, len(found))

    def _history(self, run: Any) -> tuple[list[Json], bool]:
        """The run's rows, and whether they were fetched; not where there are none, or where they are kept."""
        if not run.historyLineCount:
            return [], False
        key = (self._api.settings["base_url"], run.entity, run.project, run.id)
        changed = f"{run.heartbeatAt} {run.historyLineCount}"
        kept = self._cache.read(key, changed) if self._cache else None
        if kept is not None:
            return kept, False
        rows = _tried(lambda: list(run.scan_history(page_size=ROWS, use_cache=False)), TRIES)
        if self._cache:
            self._cache.keep(key, changed, rows)
        return rows, True

    def _asked(self, ask: Callable[[], T], tries: int = TRIES) -> T:
        try:
            return _tried(ask, tries)
        except Exception as error:  # the client raises its own, requests' and protobuf's errors
            raise WandbReadError(f"W&B project {self.path}: {' '.join(str(error).split())[:300]}") from None


def _tried(ask: Callable[[], T], tries: int) -> T:
    from wandb.errors import UsageError

    for attempt in range(tries):
        try:
            return ask()
        except (ValueError, UsageError):
            raise  # no such project, no key: asking again does not make it
        except Exception:
            if attempt == tries - 1:
                raise
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


def _described(run: Any) -> LoggedRun:
    summary = {key: value for key, value in dict(run.summary_metrics).items() if key != "_wandb"}
    kind = run.job_type or ""
    axes = _AXES if kind in ("base", "uptrain", "") else {f"{kind}/*": f"{kind}/row"}
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
        axes=dict(axes),
        state=run.state,
    )
