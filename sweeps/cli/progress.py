"""The live view of a running sweep: how far it is, what runs, and how long the rest may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from analysis.data.units import duration
from sweeps.cli.console import can_redraw
from sweeps.cli.guard import Guard
from sweeps.cli.position import Position
from sweeps.cli.view import STYLES, counts, summary
from sweeps.planning.reconcile import Costs, Graph, States, Stopped, read_states, state_of
from sweeps.steps.step import Step
from sweeps.store.states import NOTHING_LEFT, StepState
from sweeps.store.stepdir import State
from sweeps.store.store import Store

REDRAW_SECONDS = 0.5


class Progress:
    """The live view of a running sweep; on a pipe, a line whenever a step changes state. Whatever goes wrong in it is
    printed once, and the sweep goes on."""

    def __init__(
        self,
        console: Console,
        graph: Graph,
        store: Store,
        slots: int,
        stopped: Stopped | None = None,
        below: Callable[[], RenderableType] | None = None,
    ) -> None:
        """below: what is drawn below the running steps, too."""
        self._console, self._graph, self._store, self._slots = console, graph, store, slots
        self._stopped, self._below = stopped, below
        self._states = read_states(graph, store, stopped)
        self._known_costs: Costs | None = None
        self._started = time.monotonic()
        self._drawn = 0.0
        self._guard = Guard(lambda line: console.print(f"the live view: {line}", style="yellow", highlight=False))
        self._live = Live(console=console, auto_refresh=False, transient=True) if can_redraw(console) else None
        self._marks = {StepState.DONE: "✓", StepState.FAILED: "✗"} if not console.options.ascii_only else {}

    def __enter__(self) -> Progress:
        if self._live:
            with self._guard():
                self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._guard():
            self._update()
        if self._live:
            with self._guard():
                self._live.stop()

    def show(self, graph: Graph, stopped: Stopped | None = None) -> None:
        """Another graph from now on, with more steps."""
        if graph is not self._graph:
            known, self._graph, self._stopped = self._states, graph, stopped
            states = read_states(graph, self._store, stopped)
            self._states = states | {id: known[id] for id in graph if id in known and id not in (stopped or {})}

    def __call__(self) -> None:
        """Read the store again, at most every REDRAW_SECONDS."""
        if time.monotonic() - self._drawn < REDRAW_SECONDS:
            return
        with self._guard():
            self._update()
            if self._live:
                self._live.update(self._render(), refresh=True)
        self._drawn = time.monotonic()

    def _update(self) -> None:
        for id, step in self._graph.items():
            if self._states[id].name is not StepState.DONE:
                with self._guard():
                    self._update_step(step)

    def _update_step(self, step: Step) -> None:
        before, after = self._states[step.id], state_of(self._store.step(step.id), self._stopped)
        self._states[step.id] = after
        if after.name != before.name and after.name is not StepState.PENDING:
            self._print_change(step, after)

    def _print_change(self, step: Step, state: State) -> None:
        if state.name is StepState.DONE:
            record = self._store.step(step.id).record()
            self._known_costs = None
            seconds = duration(record.wall_seconds if record else None)
            self._console.print(Text.assemble(self._mark(state), f" {step.kind:<8} {step.label}  ", (seconds, "dim")))
        elif state.name is StepState.FAILED:
            self._console.print(Text.assemble(self._mark(state), f" {step.kind:<8} {step.label}  {state.reason}"))
        elif self._live is None:
            self._console.print(f"{state.name.lower()} {step.kind} {step.label} {state.reason}", highlight=False)

    @property
    def _costs(self) -> Costs:
        """Read again after a step is done, once they are wanted."""
        self._known_costs = self._known_costs or Costs.of_store(self._store)
        return self._known_costs

    def _mark(self, state: State) -> tuple[str, str]:
        """The state's sign in its colour; a word where the output's encoding has no such sign."""
        return self._marks.get(state.name, state.name.lower()), STYLES[state.name]

    def _render(self) -> RenderableType:
        counted = counts(self._graph, self._states)
        elapsed = time.monotonic() - self._started
        head = Table.grid(padding=(0, 2))
        left = expected_left(self._graph.values(), self._states, self._costs, self._slots)
        head.add_row(
            ProgressBar(total=len(self._graph), completed=sum(counted[state] for state in NOTHING_LEFT), width=30),
            Text(f"{summary(counted)}    {duration(elapsed)} gone, {left}"),
        )
        return Group(head, self._running(), *([self._below()] if self._below else []))

    def _running(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for id, step in self._graph.items():
            if (state := self._states[id]).name is StepState.RUNNING:
                position = Position.of(state)
                bar = ProgressBar(total=1.0, completed=position.share or 0.0, width=20)
                table.add_row(Text(step.kind, "cyan"), step.label, bar, position.text())
        return table


def expected_left(steps: Iterable[Step], states: States, costs: Costs, slots: int) -> str:
    """`7 min left` by the pace of this store's records and of what is running; `over` where part of it is unknown."""
    remaining = [_remaining(step, states[step.id], costs) for step in steps]
    known = sum(seconds for seconds in remaining if seconds is not None) / slots
    if None not in remaining:
        return f"{duration(known)} left"
    return f"over {duration(known)} left" if known else "time left not known yet"


def _remaining(step: Step, state: State, costs: Costs) -> float | None:
    """Expected seconds until a step ends."""
    if state.name in (*NOTHING_LEFT, StepState.FAILED):
        return 0.0
    expected = costs.seconds(step)
    if state.name is not StepState.RUNNING:
        return expected
    position = Position.of(state)
    if position.seconds_left is not None:
        return position.seconds_left
    return None if expected is None else expected * (1 - (position.share or 0.0))
