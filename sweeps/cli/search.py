"""The subcommand that searches: it chooses what to try next, runs it, and shows the best so far."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.cli.console import make_console
from sweeps.cli.options import PlanOptions, argument
from sweeps.cli.run import draw_results, mirror, print_end
from sweeps.cli.selection import queue_answers
from sweeps.cli.wandb import Announcement
from sweeps.store.errors import NOT_DONE, OK, UserError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from analysis.data.metrics import Metric
    from sweeps.dispatch.search_loop import Driver, Jobs, Source
    from sweeps.planning.config import ClusterConfig, Config
    from sweeps.planning.plan import Plan
    from sweeps.search.trials import Search
    from sweeps.store.store import SavedSweep, Store


ON_SLURM = 8
"""Trials at a time in a queue, where nothing else is said."""


@dataclass(frozen=True)
class DrivenOptions(PlanOptions):
    """Of subcommands that may decide while they run."""

    foreground: bool = argument(
        "on SLURM, drive a search, or a sweep with a stopping rule, from here and not by a job of its own",
        "--foreground",
        action="store_true",
    )


def search(options: DrivenOptions) -> int:
    """Until nothing is left to do; the same line goes on with what an earlier one left."""
    from sweeps.planning.compose import Composer
    from sweeps.planning.overruled import overruled
    from sweeps.planning.resolve import Resolver
    from sweeps.search.trials import Search
    from sweeps.store.store import Store

    console, store = make_console(), Store.open(options.store)
    composer, resolver = Composer(options.config_dir), Resolver(store)
    wanted = Search(composer, resolver, options.overrides)
    config = _checked(wanted)  # before anything is written
    for note in overruled(composer, wanted.space.fixed, options.overrides):
        console.print(note, style="yellow", highlight=False, markup=False)
    store.check_sweep_name(config.name)
    if config.cluster.name == "slurm" and not options.foreground:
        return queue_driver(console, store, "search", config, options)
    with store.journal(config.name) as journal:
        found = Search(composer, resolver, options.overrides, journal)
        return _drive(console, store, found, config, list(options.overrides), begins(config, found))


def driven_sweep(console: Console, store: Store, planned: Plan, options: DrivenOptions) -> int:
    """A sweep with a stopping rule or a budget: its points are the trials."""
    from sweeps.search.points import Points

    config = planned.config
    if not config.evaluate.axis and not config.evaluate.accuracy:  # budgets need no score
        config = replace(config, search=replace(config.search, objectives=("kv_bytes_per_token",)))
    if config.cluster.name == "slurm" and not options.foreground:
        return queue_driver(console, store, "sweep", config, options, planned)
    with store.journal(planned.name):
        return _drive(console, store, Points(planned), config, list(options.overrides), "")


def command_line(command: str, store: Store, options: PlanOptions) -> list[str]:
    """The line as it can be run in a job."""
    places = ["--store", str(store.root.absolute())]
    places += ["--config-dir", str(options.config_dir.absolute())] if options.config_dir else []
    return [*command.split(), *places, *options.overrides]


def queue_driver(
    console: Console,
    store: Store,
    command: str,
    config: Config,
    options: DrivenOptions,
    planned: Plan | None = None,
) -> int:
    """Queue the job that drives it, and leave. planned: all of it, where that is known: it can be seen before it is
    begun, and what its nodes cannot reach is fetched."""
    from sweeps.dispatch.queue_status import JobStatus, driver_job
    from sweeps.dispatch.search_job import submit_driver
    from sweeps.dispatch.search_loop import freeze_as_driven
    from sweeps.worker.fetch import fetch_inputs

    with queue_answers():
        there = driver_job(config.name, store)
    if there is None or not there.live:
        if planned:
            freeze_as_driven(planned, store, list(options.overrides))
        if planned and config.cluster.offline and not fetch_inputs(planned.steps, store, console):
            return NOT_DONE
    line = command_line(f"{command} --foreground", store, options)
    job = submit_driver(config.name, line, config.cluster, store)
    done = f"{job} drives it already" if isinstance(job, JobStatus) else f"job {job} drives it"
    console.print(f"{done}; `mlkv status {config.name}` shows what it has begun", highlight=False)
    return OK


def _checked(found: Search) -> Config:
    """The configuration. Raises UserError for what is wrong with the line."""
    from sweeps.search.objectives import Objectives

    config = found.config
    Objectives.of(config, score_metric(config).higher_is_better)
    if found.space.size is None and not config.stopping.active:
        raise UserError("search: the line has intervals, so nothing ends it; set stopping.trials=N")
    found.check_first()
    return config


def _drive(console: Console, store: Store, found: Source, config: Config, arguments: list[str], begins: str) -> int:
    from sweeps.dispatch import search_job
    from sweeps.dispatch.search_loop import LOOK_SECONDS, drive
    from sweeps.dispatch.submit import LocalSearchJobs

    queued = config.cluster.name == "slurm"
    jobs = search_job.SlurmSearchJobs(config.cluster, store) if queued else LocalSearchJobs(config.cluster, store)
    driver = _driver(found, config, store, jobs, arguments)
    view = SearchView(console, store, driver, config)
    if begins:
        console.print(begins, highlight=False)
    try:
        with view, search_job.warned() if search_job.in_job() else nullcontext():
            look_seconds = search_job.LOOK_SECONDS if queued else LOOK_SECONDS
            ended = drive(driver, jobs, view.watch, look_seconds)
    except search_job.Warned as warning:
        console.print(f"{warning}: the job goes back into the queue", highlight=False)
        return search_job.INTERRUPTED
    finally:
        jobs.close()
    saved = driver.saved
    if saved is None:
        raise UserError(f"search: no point is possible: {found.impossible or 'it was cancelled'}")
    failed = print_end(console, driver.graph, store, saved)
    console.print(view.table())
    console.print(view.ended(ended), highlight=False)
    mirror(console, store, saved)
    if search_job.in_job():
        return OK  # the job has done its work, whatever became of the steps
    drawn = draw_results(console, store, saved, Path(config.reports) / config.name)
    return NOT_DONE if failed or not drawn else OK


def _driver(found: Source, config: Config, store: Store, jobs: Jobs, arguments: list[str]) -> Driver:
    from sweeps.dispatch.search_loop import Driver
    from sweeps.planning.freeze import freeze
    from sweeps.search.objectives import Objectives

    begun = list[int]()

    def frozen(plan: Plan) -> SavedSweep:
        saved = freeze(plan, store, arguments)
        if not begun:
            saved.clear_cancel()
        begun.append(saved.number)
        return saved

    return Driver(
        found,
        Objectives.of(config, score_metric(config).higher_is_better),
        store,
        jobs,
        frozen,
        concurrent=config.search.concurrent or _concurrent(config.cluster),
        stopping=config.stopping,
    )


def _concurrent(cluster: ClusterConfig) -> int:
    """Trials at a time."""
    from sweeps.dispatch.grouping import slots_of

    return ON_SLURM if cluster.name == "slurm" else slots_of(cluster)


def score_metric(config: Config) -> Metric:
    """What the score of a search is. Raises UserError for a metric whose direction nobody knows."""
    from analysis.data.metrics import metric
    from sweeps.cli.sources import one_line

    axis = config.evaluate.axis
    with one_line():
        return metric(axis[1] if axis else "accuracy")


def begins(config: Config, found: Search) -> str:
    size = found.space.size
    points = f"{size:,} points" if size is not None else "a space without end"
    names = ", ".join(dimension.name for dimension in found.space.dimensions) or "nothing is left open"
    so_far = f"; {len(found.trials)} trials so far" if found.trials else ""
    left = f", {found.left_out} of earlier lines are no points of it" if found.left_out else ""
    return f"{config.name}: {points} ({names}), sampler {config.search.sampler}{so_far}{left}"


class SearchView:
    """What a person sees of a search: the running steps, the best trials so far, and how much is left."""

    def __init__(self, console: Console, store: Store, driver: Driver, config: Config) -> None:
        from sweeps.cli.progress import Progress
        from sweeps.dispatch.grouping import slots_of

        self._console, self._store, self._driver, self._config = console, store, driver, config
        self._metric = score_metric(config)
        self._progress = Progress(console, {}, store, slots_of(config.cluster), below=self.table)
        self._printed: set[int] = set()
        self._announce: Callable[[], None] | None = None

    def __enter__(self) -> SearchView:
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.watch()
        self._progress.__exit__(*error)

    def watch(self) -> None:
        saved = self._driver.saved
        if saved is None:
            return
        self._progress.show(self._driver.graph, saved.plan.stopped)
        self._progress()
        if self._announce is None:
            self._announce = Announcement(self._console, self._store, saved)
        self._announce()
        ended = {number for number in self._driver.values if number not in {t.number for t in self._driver.running}}
        for number in sorted(ended - self._printed):
            self._console.print(self._line(number), highlight=False)
            self._printed.add(number)

    def ended(self, whole: bool) -> str:
        why = self._driver.no_more if whole else "it was cancelled; the same line goes on"
        return f"{self._config.name} has ended: {why}. {self._counts()}"

    def table(self) -> RenderableType:
        """The front so far."""
        from rich.table import Table

        table = Table(title=self._counts(), title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 1))
        for name in self._driver.objectives.names:
            table.add_column(self._heading(name), justify="right", no_wrap=True)
        table.add_column("front so far")
        table.add_column("trial", justify="right")
        for row in self._driver.front():
            table.add_row(*self._cells(row.values), row.label, str(row.trial))
        return table

    def _heading(self, name: str) -> str:
        headings = {"kv_bytes_per_token": "bytes/token ↓", "decode_ms": "ms/token ↓"}
        return headings.get(name) or f"{self._metric.label} {self._metric.arrow}"

    def _cells(self, values: list[float]) -> list[str]:
        texts = {"kv_bytes_per_token": "{:,.0f}".format, "decode_ms": "{:.3g}".format, "score": self._metric.text}
        return [texts[name](value) for name, value in zip(self._driver.objectives.names, values, strict=True)]

    def _line(self, number: int) -> str:
        """One that a trial leaves when it ends."""
        values = self._driver.values[number]
        label = self._driver.label(number)
        if values is None:
            return f"trial {number}: {label}: failed; `mlkv why {self._config.name} '{label}'` says why"
        cells = self._cells(self._driver.objectives.shown(values))
        named = [
            f"{self._heading(name)[:-2]} {cell}"
            for name, cell in zip(self._driver.objectives.names, cells, strict=True)
        ]
        return f"trial {number}: {label}: {', '.join(named)}"

    def _counts(self) -> str:
        driver, budget = self._driver, self._config.stopping.trials
        counted = driver.counts()
        all_trials = sum(counted.values())
        parts = [f"{number} {state}" for state, number in counted.items() if number or state in ("done", "running")]
        parts += [f"{max(0, budget - all_trials)} left of {budget}"] if budget else []
        return f"trials: {', '.join(parts)}"
