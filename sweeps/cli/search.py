"""The subcommand that searches: it chooses what to try next, runs it, and shows the best so far."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.cli.console import make_console
from sweeps.cli.options import PlanOptions
from sweeps.cli.results import report_modules
from sweeps.cli.run import draw_results, mirror, print_end
from sweeps.cli.wandb import Announcement, mirror_sweep
from sweeps.store.errors import NOT_DONE, OK, UserError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from analysis.data.metrics import Metric
    from sweeps.dispatch.search_loop import Driver, Jobs
    from sweeps.planning.config import Config
    from sweeps.planning.plan import Plan
    from sweeps.search.trials import Search
    from sweeps.store.journal import SearchJournal
    from sweeps.store.store import SavedSweep, Store


def search(options: PlanOptions) -> int:
    """On this machine until nothing is left to do; the same line goes on with what an earlier one left."""
    from sweeps.planning.compose import Composer
    from sweeps.planning.resolve import Resolver
    from sweeps.search.trials import Search
    from sweeps.store.store import Store

    console, store = make_console(), Store.open(options.store)
    composer, resolver = Composer(options.config_dir), Resolver(store)
    config = _checked(Search(composer, resolver, options.overrides))  # before anything is written
    store.check_sweep_name(config.name)
    with store.journal(config.name) as journal:
        found = Search(composer, resolver, options.overrides, journal)
        return _drive(console, store, found, journal, list(options.overrides))


def _checked(found: Search) -> Config:
    """The configuration. Raises UserError for what is wrong with the line."""
    from sweeps.search.objectives import Objectives

    config = found.config
    Objectives.of(config, score_metric(config).higher_is_better)
    if found.space.size is None and not config.stopping.active:
        raise UserError("search: the line has intervals, so nothing ends it; set stopping.trials=N")
    found.check_first()
    return config


def _drive(console: Console, store: Store, found: Search, journal: SearchJournal, arguments: list[str]) -> int:
    from sweeps.dispatch.search_loop import drive
    from sweeps.dispatch.submit import LocalSearchJobs

    config = found.config
    jobs = LocalSearchJobs(config.cluster, store)
    driver = _driver(found, store, jobs, arguments)
    view = SearchView(console, store, driver, config)
    console.print(view.begins(found, journal), highlight=False)
    try:
        with view:
            ended = drive(driver, jobs, view.watch)
    finally:
        jobs.close()
    saved = driver.saved
    if saved is None:
        raise UserError(f"search: no point is possible: {found.impossible or 'it was cancelled'}")
    failed = print_end(console, driver.graph, store, saved)
    console.print(view.table())
    console.print(view.ended(ended), highlight=False)
    mirror(console, store, saved)
    drawn = draw_results(console, store, saved, Path(config.reports) / config.name)
    return NOT_DONE if failed or not drawn else OK


def _driver(found: Search, store: Store, jobs: Jobs, arguments: list[str]) -> Driver:
    from sweeps.dispatch.grouping import slots_of
    from sweeps.dispatch.search_loop import Driver
    from sweeps.planning.freeze import freeze
    from sweeps.search.objectives import Objectives

    config, begun = found.config, list[int]()

    def frozen(plan: Plan) -> SavedSweep:
        saved = freeze(plan, store, arguments)
        if not begun:
            saved.clear_cancel()
        begun.append(saved.number)
        return saved

    better = score_metric(config).higher_is_better
    return Driver(
        found,
        Objectives.of(config, better),
        store,
        jobs,
        frozen,
        concurrent=config.search.concurrent or slots_of(config.cluster),
        trials=config.stopping.trials,
    )


def score_metric(config: Config) -> Metric:
    """What the score of a search is. Raises UserError for a metric whose direction nobody knows."""
    from analysis.data.metrics import metric
    from sweeps.cli.sources import one_line

    axis = config.evaluate.axis
    with one_line():
        return metric(axis[1] if axis else "accuracy")


class SearchView:
    """What a person sees of a search: the running steps, the best trials so far, and how much is left."""

    def __init__(self, console: Console, store: Store, driver: Driver, config: Config) -> None:
        from sweeps.cli.progress import Progress
        from sweeps.dispatch.grouping import slots_of

        self._console, self._store, self._driver, self._config = console, store, driver, config
        self._metric = score_metric(config)
        self._progress = Progress(console, {}, store, slots_of(config.cluster), below=self.table)
        self._printed = dict(driver.values)
        self._announce: Callable[[], None] | None = None
        self._mirror = TrialMirror(console, store)
        self._waiting = report_modules()

    def __enter__(self) -> SearchView:
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.watch()
        self._progress.__exit__(*error)
        self._mirror.join()

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
        if new := sorted(ended - self._printed.keys()):
            for number in new:
                self._console.print(self._line(number), highlight=False)
                self._printed[number] = self._driver.values[number]
            self._mirror(saved)

    def begins(self, found: Search, journal: SearchJournal) -> str:
        size = found.space.size
        points = f"{size:,} points" if size is not None else "a space without end"
        names = ", ".join(dimension.name for dimension in found.space.dimensions) or "nothing is left open"
        so_far = f"; {len(found.trials)} trials so far" if found.trials else ""
        left = f", {found.left_out} of earlier lines are no points of it" if found.left_out else ""
        sampler = self._config.search.sampler
        return f"{self._config.name}: {points} ({names}), sampler {sampler}{so_far}{left}"

    def ended(self, whole: bool) -> str:
        why = self._driver.no_more if whole else "it was cancelled; the same line goes on"
        return f"the search has ended: {why}. {self._counts()}"

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
        running = len(driver.running)
        failed = sum(values is None for values in driver.values.values())
        all_trials = len(driver.source.trials)
        parts = [f"{all_trials - running - failed} done", f"{running} running"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{max(0, budget - all_trials)} left of {budget}"] if budget else []
        return f"trials: {', '.join(parts)}"


class TrialMirror:
    """Writes the runs of finished variants to W&B while the search goes on, in a thread: a server that does not answer
    must not keep trials waiting."""

    def __init__(self, console: Console, store: Store) -> None:
        self._console, self._store = console, store
        self._thread: threading.Thread | None = None

    def __call__(self, saved: SavedSweep) -> None:
        """The next look catches up on what ends while the last is still being written."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._write, args=(saved,), daemon=True)
            self._thread.start()

    def _write(self, saved: SavedSweep) -> None:
        from contextlib import suppress

        with suppress(Exception):  # at the search's end it is written again, and a failure is said there
            mirror_sweep(self._console, self._store, saved, done=True)

    def join(self) -> None:
        if self._thread:
            self._thread.join(timeout=30)
