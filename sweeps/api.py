"""The store from Python: `mlkv.load("store")`, then results, curves, samples, checkpoints, plans and figures.

Tables are pandas DataFrames and figures matplotlib axes; both are imported when they are first asked for. Nothing here
writes to the store. What cannot be answered ends in a ValueError of one line that names the valid choices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlkv.registry import extensions, files_of
from sweeps.cli.options import default_store
from sweeps.cli.selection import planned_extensions, variant_of
from sweeps.store import store as stores
from sweeps.store.errors import StoreError, UserError, choices
from sweeps.store.states import NOTHING_LEFT, StepState

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from analysis.statistics.sources import Source
    from sweeps.planning.reconcile import Graph, States
    from sweeps.store.stepdir import StepDir

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class SweepState:
    """How a sweep stands.

    name: its name. planned: when its latest plan was made, in UTC (`2026-01-31T09:30:00Z`); None where the plan cannot
    be read. variants: how many it has. states: state → number of steps, of the states that occur. note: what people
    wrote about it. problem: why it cannot be read, in one line; None where it can.
    """

    name: str
    planned: str | None = None
    variants: int | None = None
    states: dict[str, int] | None = None
    note: str = ""
    problem: str | None = None

    @property
    def done(self) -> bool:
        """Whether every step is, but for those that a rule or a budget stopped."""
        return self.states is not None and set(self.states) <= {state.value for state in NOTHING_LEFT}


@dataclass(frozen=True)
class PlannedSweep:
    """What a line would run.

    name: of the sweep. variants: a row each (variant, baseline, kv_heads, budget, kv_bytes_per_token, parameters …).
    steps: a row each, parents first (id, kind, label, state, reason, expected_seconds …). expected_seconds: of the
    steps that are not done; None where one of a kind has never finished in this store. checkpoint_bytes: what these
    steps will leave on disk. unresolved: models on the hub that did not answer. layouts_to_follow: how many layouts
    follow by rule when these steps are done; 0 where all are planned. overruled: options of the line of which the
    experiment replaces values, each in one line.
    """

    name: str
    variants: pd.DataFrame
    steps: pd.DataFrame
    expected_seconds: float | None
    checkpoint_bytes: int
    unresolved: tuple[str, ...] = ()
    layouts_to_follow: int = 0
    overruled: tuple[str, ...] = ()

    @property
    def missing(self) -> pd.DataFrame:
        """The steps that are not done, without those that a rule or a budget stopped."""
        return self.steps[~self.steps["state"].isin([state.value for state in NOTHING_LEFT])]


def load(path: PathLike | None = None) -> Store:
    """The store in a directory (default: MLKV_STORE or ./store), to be read.

    Raises StoreError where there is none.
    """
    return Store(default_store() if path is None else path)


class Store:
    """A store of sweeps, read anew at each call, so that a sweep that runs can be watched.

    Where a `name` is asked for, it is that of a sweep, of imported results, or of a published set (`published/mlkv`).
    """

    def __init__(self, path: PathLike) -> None:
        """Raises StoreError where there is no store."""
        self._store = stores.Store(Path(path))
        if not self.path.is_dir():
            raise StoreError(f"store = {os.fspath(path)}: no such directory; `mlkv sweep` makes one")
        if not any((self.path / part).is_dir() for part in ("steps", "sweeps", "imports")):
            raise StoreError(f"store = {os.fspath(path)}: no store there; `mlkv sweep` makes one")

    @property
    def path(self) -> Path:
        """Where it is; absolute."""
        return self._store.root

    def __repr__(self) -> str:
        return f"mlkv.load({str(self.path)!r})"

    # What there is
    @property
    def sweeps(self) -> dict[str, SweepState]:
        """Every sweep by its name. One that cannot be read has its `problem`, and the others are there."""
        return {folder.name: self._sweep_state(folder.name) for folder in self._store.sweep_folders()}

    def _sweep_state(self, name: str) -> SweepState:
        from sweeps.cli.json_output import counts

        note = self._store.note(name)
        try:
            if problem := self._store.sweep_problem(name):
                raise StoreError(problem)
            saved = self._store.sweep(name)
            with self._extensions_of(name):
                found = counts(*self._graph_and_states(saved))
        except (ValueError, OSError) as error:
            return SweepState(name, note=note, problem=str(error))
        states = {state: count for state, count in found.items() if count}
        return SweepState(name, saved.plan.created, len(saved.variants), states, note)

    @property
    def imports(self) -> list[str]:
        """The names of results that were measured elsewhere and imported."""
        return self._store.import_names()

    # What came out
    def cells(self, name: str, *others: str) -> pd.DataFrame:
        """The long table: a row for every planned score and measurement, finished or not.

        A row has a `value` only where its step is done; elsewhere `state` and `reason` say why there is none. The
        columns are those of analysis/data/frame.py and of `mlkv gather`. others: results to put together with these,
        as `mlkv table A B` does. Raises StoreError for an unknown name.
        """
        with self._extensions_of(name, *others):
            return self._source(name, *others).table

    def results(self, name: str, *others: str) -> pd.DataFrame:
        """A row per layout, several seeds of it in one: labels, cache bytes, scores with their standard errors,
        differences from the baselines with p-values, and the probability of being Pareto-optimal.

        docs/results.md explains the columns. others: results to put together and compare with these, as `mlkv table
        A B` does. Raises StoreError for an unknown name.
        """
        with self._extensions_of(name, *others):
            return self._source(name, *others).results.frame

    def curves(self, name: str) -> pd.DataFrame:
        """Every number that the steps of a sweep logged: step, kind, label, global_step, metric, value.

        `label` says whose step it is. Raises StoreError for an unknown sweep.
        """
        from analysis.data.curves import of_store

        with self._extensions_of(name):
            saved = self._sweep(name)
            table = of_store(self._store, saved)
        labels = {id: step.label for id, step in saved.plan.steps.items()}
        table.insert(2, "label", table["step"].map(labels).astype("string"))
        return table

    def samples(
        self, name: str, variant: str | None = None, task: str | None = None, metric: str | None = None
    ) -> pd.DataFrame:
        """The score of every sample of finished evaluations: variant, task, metric, sample, part, weight, score.

        A task's score is Σ part / Σ weight, and `score` is part / weight (bits per byte of one document, 0 or 1 of one
        question). `sample` numbers the task's samples; one number is the same sample for all variants that were scored
        on the same text. variant, task, metric: only these. A metric that is no mean over samples (perplexity) has no
        rows. Raises StoreError for an unknown sweep, and UserError for a variant, task or metric that it does not have.
        """
        from analysis.data import samples

        with self._extensions_of(name):
            saved = self._sweep(name)
            label = None if variant is None else variant_of(saved, variant).variant
            table = self._source(name).table
        only = {"variant": label, "task": task, "metric": metric}
        cells = table[(table["kind"] == "evaluate") & (table["state"] == StepState.DONE.value)]
        for column, wanted in only.items():
            if wanted is not None:
                known = table.loc[table["kind"] == "evaluate", column].dropna().unique()
                if wanted not in known:
                    raise UserError(f"{column} = {wanted}: not scored by {name}; {choices(wanted, known)}")
                cells = cells[cells[column] == wanted]
        return samples.of_cells(cells, samples.StoredSamples(self._store))

    def similarity(self, name: str) -> pd.DataFrame:
        """How alike the layers and KV heads of a sweep's bases are, of finished similarity steps: base, step, measure,
        level (`layer` or `head`), layer, head, other_layer, other_head, value, stderr; a row for each ordered pair.

        Of the measure `damage`, `layer` reads what `other_layer` computed. docs/similarity.md explains the measures.
        Raises StoreError for an unknown sweep.
        """
        from analysis.data.gather import Steps
        from analysis.data.similarity import of_plan, table_of

        with self._extensions_of(name):
            plan = self._sweep(name).plan
            return table_of(of_plan(plan, Steps(self._store, plan)))

    def checkpoint(self, name: str, variant: str) -> Path:
        """The directory of a variant's weights as its last training left them, which
        `AutoModelForCausalLM.from_pretrained(…, trust_remote_code=True)` opens.

        Without uptraining they are those of its conversion, and of an untouched baseline those of its base. variant:
        its label, or a part that no other has. Raises UserError for an unknown variant, for a step that is not done,
        and for weights that were pruned.
        """
        saved = self._sweep(name)
        row = variant_of(saved, variant)
        id = row.steps.checkpoint
        if id is None:
            raise UserError(f"{row.variant} of {name}: has no checkpoint: it only measures a layout")
        return _finished_checkpoint(self._store.step(id), row.variant, name)

    # How it stands
    def states(self, name: str) -> pd.DataFrame:
        """The steps of a sweep, parents first: id, kind, label, state, reason, attempt, at, of (optimizer steps made,
        and planned), parents.

        On SLURM the queue says what waits in it, if it answers. Raises StoreError for an unknown sweep.
        """
        import pandas as pd

        from sweeps.cli.json_output import of_states

        with self._extensions_of(name):
            saved = self._sweep(name)
            steps = of_states(name, *self._graph_and_states(saved))["steps"]
        columns = ["id", "kind", "label", "state", "reason", "attempt", "at", "of", "parents"]
        return pd.DataFrame(steps, columns=columns).astype({"at": "Int64", "of": "Int64"})

    def plan(self, *overrides: str, config_dir: PathLike | None = None) -> PlannedSweep:
        """What `mlkv sweep` would run for these overrides (`"experiment=quickstart", "layout.kv_layers=1,2"`); runs
        and writes nothing.

        config_dir: a directory of your own configurations. Raises UserError for what can be known to fail.
        """
        import pandas as pd

        from sweeps.cli.json_output import of_plan
        from sweeps.planning.compose import Composer
        from sweeps.planning.plan import make_plan
        from sweeps.planning.reconcile import Costs, read_states
        from sweeps.planning.resolve import Resolver

        own = None if config_dir is None else Path(os.path.expanduser(config_dir))
        if own and not own.is_dir():
            raise UserError(f"config_dir = {own}: no such directory")
        with extensions(lambda: files_of(own) if own else []):
            planned = make_plan(Composer(own), Resolver(self._store, only_shown=True), overrides)
            self._store.check_sweep_name(planned.name)
            states = read_states(planned.steps, self._store, planned.stopped)
            found = of_plan(planned, states, Costs.of_store(self._store))
        return PlannedSweep(
            found["name"],
            pd.DataFrame(found["variants"]),
            pd.DataFrame(found["steps"]),
            found["expected_seconds"],
            found["checkpoint_bytes"],
            planned.unresolved,
            planned.following,
            planned.overruled,
        )

    # What it looks like
    def figure(
        self, name: str | Sequence[str], kind: str, published: str | None = None, ax: Axes | None = None
    ) -> Axes:
        """A figure of `mlkv figure`, as its axes; `.figure` is the whole of it, and may have more panels.

        name: one, or several that are put together. kind: `difference`, `pareto`, `memory`, `curves` …. published: a
        set of published results to show beside it. ax: axes of yours to draw into, for a figure of one panel; without
        it the figure has the size of a paper's column and belongs to no window. pyplot and rcParams stay as they are.
        Raises StoreError for an unknown name, and ValueError for an unknown kind and where there is nothing to draw.
        """
        from analysis.figures.drawing import draw_axes
        from analysis.statistics.sources import published_source

        names = [name] if isinstance(name, str) else list(name)
        with self._extensions_of(*names):
            compared = None if published is None else published_source(published)
            return draw_axes(kind, self._source(*names), compared, ax)

    # Names
    def _source(self, *names: str) -> Source:
        from analysis.statistics.combine import combine
        from analysis.statistics.sources import IMPORT, PUBLISHED, SWEEP, load

        imports = self._store.import_names()
        for name in names:
            if not name.startswith((PUBLISHED, SWEEP, IMPORT)) and name not in imports:
                self._check_sweep(name, imports)
        return combine([load(self._store, name) for name in names])

    def _sweep(self, name: str) -> stores.SavedSweep:
        if name in self._store.import_names() and name not in self._store.sweep_names():
            raise UserError(f"{name}: imported results have no steps; only `cells`, `results` and `figure` take them")
        self._check_sweep(name)
        return self._store.sweep(name)

    def _check_sweep(self, name: str, others: list[str] | None = None) -> None:
        """Raises StoreError that offers the names that are nearest."""
        if name not in (names := self._store.sweep_names()):
            problem = self._store.sweep_problem(name)
            raise StoreError(problem or f"sweep {name}: not in {self.path}; {choices(name, [*names, *(others or ())])}")

    @contextmanager
    def _extensions_of(self, *names: str) -> Iterator[None]:
        """Within it, tables of rows have those of the extension files that these sweeps were planned with."""
        sweeps = [name.removeprefix("sweep/") for name in names]
        with extensions(lambda: [file for name in sweeps for file in planned_extensions(self._store, name)]):
            yield

    def _graph_and_states(self, saved: stores.SavedSweep) -> tuple[Graph, States]:
        from sweeps.planning.parse import saved_cluster
        from sweeps.planning.reconcile import read_states, saved_graph

        graph = saved_graph(self._store, saved)
        states = read_states(graph, self._store, saved.plan.stopped)
        if saved_cluster(saved).name == "slurm":
            from sweeps.dispatch.queue_status import QueueError, with_queue

            with suppress(QueueError):
                states, _ = with_queue(states, self._store)
        return graph, states


def _finished_checkpoint(step: StepDir, variant: str, sweep: str) -> Path:
    """The step's output. Raises UserError where it is not done, or its weights are gone."""
    state = step.state()
    if state.name is not StepState.DONE:
        reason = f" ({state.reason})" if state.reason else ""
        again = f"`mlkv retry {sweep}`" if state.name is StepState.FAILED else "the sweep's line"
        raise UserError(f"{variant} of {sweep}: {step.id} is {state.name}{reason}, not done; {again} runs it")
    record = step.record()
    if missing := [file for file in (record.outputs if record else ()) if not (step.out / file).is_file()]:
        raise UserError(f"{variant} of {sweep}: {step.id} is done, but {missing[0]} is not in {step.out}")
    return step.out
