"""Reads a project's runs back through W&B's public API: a page of runs at a time, histories side by side.

What was fetched is kept by (run, when it last changed), so that asking again costs the listing alone. A request that
fails is tried again; the server's word on when (429, Retry-After) is the client's to keep.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from analysis.wandb_runs import LoggedRun

if TYPE_CHECKING:
    import wandb

Json = dict[str, Any]
Report = Callable[[int, int], None]
"""Called with how many runs are there and how many there will be."""
T = TypeVar("T")
PAGE, ROWS, AT_ONCE, TRIES = 200, 10_000, 8, 5
_AXES = {"train/*": "train/global_step"}


class WandbReadError(ValueError):
    """W&B could not be read; one line that says why."""


def read_project(
    path: str,
    filters: Mapping[str, Any] | None = None,
    *,
    histories: bool = True,
    cache: Path | None = None,
    report: Report = lambda done, of: None,
    timeout: int = 30,
) -> list[LoggedRun]:
    """The runs of `entity/project` (or `project` of the default entity) that match W&B's `filters`, oldest first.

    `cache`: a directory to keep histories in. Raises WandbReadError.
    """
    import wandb

    try:
        listed = _tried(lambda: list(_listed(wandb.Api(timeout=timeout), path, filters or {})))
    except Exception as error:  # the client raises its own, requests' and protobuf's errors
        raise WandbReadError(f"W&B project {path}: {' '.join(str(error).split())[:300]}") from None
    runs = [_described(each) for each in listed]
    if histories:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            fetched = pool.map(lambda each: _tried(lambda: _history(each, cache)), listed)
            for done, (run, rows) in enumerate(zip(runs, _checked(path, fetched), strict=True), 1):
                run.rows = rows
                report(done, len(runs))
    return runs


def read_sweep(path: str, sweep: str, **how: Any) -> list[LoggedRun]:
    """The runs of a sweep's variants and of the steps they name, without histories unless asked for."""
    how = {"histories": False, **how}
    variants = read_project(path, {"group": sweep, "jobType": "variant"}, **how)
    steps = sorted({id for run in variants for id in run.config.get("mlkv", {}).get("steps", {})})
    pages = [steps[i : i + PAGE] for i in range(0, len(steps), PAGE)]
    return [*variants, *(run for page in pages for run in read_project(path, {"name": {"$in": page}}, **how))]


def _checked(path: str, fetched: Iterator[list[Json]]) -> Iterator[list[Json]]:
    while True:
        try:
            yield next(fetched)
        except StopIteration:
            return
        except Exception as error:
            raise WandbReadError(f"W&B project {path}: {' '.join(str(error).split())[:300]}") from None


def _listed(api: wandb.Api, path: str, filters: Mapping[str, Any]) -> Iterator[Any]:
    """Configuration and summary come with the page."""
    yield from api.runs(path, filters=dict(filters), per_page=PAGE, order="+created_at", lazy=False)


def _tried(ask: Callable[[], T]) -> T:
    for attempt in range(TRIES):
        try:
            return ask()
        except ValueError:
            raise  # there is no such project: asking again does not make it
        except Exception:
            if attempt == TRIES - 1:
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
        tags=tuple(run.tags),
        config=dict(run.config),
        summary=summary,
        axes=dict(axes),
        state=run.state,
    )


# Histories


def _history(run: Any, cache: Path | None) -> list[Json]:
    if not run.historyLineCount:
        return []
    kept = cache / _name(run) if cache else None
    if kept and kept.exists():
        rows: list[Json] = json.loads(kept.read_text(encoding="utf-8"))
        return rows
    rows = list(run.scan_history(page_size=ROWS, use_cache=False))
    if kept:
        _keep(kept, rows)
    return rows


def _name(run: Any) -> str:
    told = json.dumps([run.entity, run.project, run.id, run.heartbeatAt, run.historyLineCount])
    return f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.json"


def _keep(path: Path, rows: list[Json]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}")
    beside.write_text(json.dumps(rows), encoding="utf-8")
    beside.replace(path)
