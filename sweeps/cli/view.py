"""What the terminal shows: the plan, the live progress of a sweep, and where its steps stand."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from analysis.data.units import count, duration, size
from mlkv.files import Json
from sweeps.dispatch.grouping import job_specs
from sweeps.planning.plan import Plan
from sweeps.planning.reconcile import Costs, Graph, Standing, blockers, to_run
from sweeps.planning.variants import Variant
from sweeps.steps.step import Step
from sweeps.store.stepdir import State
from sweeps.store.store import Store

if TYPE_CHECKING:
    from sweeps.dispatch.submit import Forecast
    from sweeps.store.prune import Prunable

STYLES = {
    "DONE": "green",
    "RUNNING": "cyan",
    "PENDING": "dim",
    "FAILED": "bold red",
    "BLOCKED": "yellow",
    "INTERRUPTED": "yellow",
    "LOST": "yellow",
    "CANCELLED": "yellow",
}


def millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"


def plan_tables(plan: Plan, states: Standing, costs: Costs) -> RenderableType:
    """Variants with their cost in memory, then the steps by kind with what is missing and what that will take."""
    return Group(_variants(plan, states), *_inputs(plan), _kinds(plan.steps, states, costs), _work(plan, states))


def _variants(plan: Plan, states: Standing) -> Table:
    table = Table(title=f"{plan.name}: {len(plan.variants)} variants", title_justify="left", box=None, pad_edge=False)
    table.add_column("variant", no_wrap=True, min_width=max(len(variant.label) for variant in plan.variants))
    table.add_column("KV heads by layer (─ reads below)", overflow="ellipsis", no_wrap=True)
    for name in ("KV heads", "bytes/token", "params", "tokens", "done"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    for variant in plan.variants:
        done = sum(states[step.id].name == "DONE" for step in variant.steps)
        numbers = (
            str(variant.layout.budget),
            f"{variant.kv_bytes_per_token:,}",
            millions(variant.parameters),
            _trained(variant),
        )
        table.add_row(variant.label, variant.layout.draw(), *numbers, f"{done}/{len(variant.steps)}")
    return table


def _trained(variant: Variant) -> str:
    """How much text uptraining, or training from random weights, sees."""
    recipe = variant.config.uptrain
    if variant.uptrain is None:
        return "─"
    tokens = recipe.tokens_of(variant.config.corpus.sequence_length)
    return f"{recipe.epochs:g} epochs" if tokens is None else count(tokens)


def _inputs(plan: Plan) -> Iterator[Text]:
    """What variants learn from and what they are asked: a line for each of the sweep's values."""
    for name, value in (("corpus", _corpus), ("tokenizer", _tokenizer), ("tasks", _tasks)):
        for line in dict.fromkeys(filter(None, map(value, plan.variants))):
            yield Text(f"{name}: {line}")


def _corpus(variant: Variant) -> str:
    recipe = variant.config.corpus
    if variant.corpus is None:
        return ""
    where = recipe.dataset if recipe.source == "hf" else ", ".join(recipe.files)
    return f"{recipe.source}{f' ({where})' if where else ''} in rows of {recipe.sequence_length:,} tokens"


def _tokenizer(variant: Variant) -> str:
    recipe, model = variant.config.corpus, variant.config.model
    if variant.corpus is None:
        return ""
    if recipe.tokenizer == "train":
        return f"made of the text, {recipe.vocab_size:,} tokens at most"
    return f"that of {recipe.tokenizer_from if recipe.tokenizer == 'published' else f'model {model.name}'}"


def _tasks(variant: Variant) -> str:
    limit = variant.config.evaluate.limit
    asked = [f"{task}{_examples(variant.few_shot.get(task, 0))}" for task in variant.evaluate]
    return ", ".join(asked) + (f"; at most {limit:,} items of each" if asked and limit else "")


def _examples(counts: int | dict[str, int]) -> str:
    numbers = sorted(counts.values() if isinstance(counts, dict) else {counts})
    if not numbers[-1]:
        return ""
    return f" ({'to '.join(dict.fromkeys(f'{number}-shot ' for number in (numbers[0], numbers[-1]))).strip()})"


def _kinds(graph: Graph, states: Standing, costs: Costs) -> Table:
    table = Table(title="steps", title_justify="left", box=None, pad_edge=False)
    for name in ("kind", "all", "done", "run", "blocked", "expected"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    blocked = blockers(graph, states)
    for kind in dict.fromkeys(step.kind for step in graph.values()):
        mine = [step for step in graph.values() if step.kind == kind]
        done = [step for step in mine if states[step.id].name == "DONE"]
        stuck = [step for step in mine if step.id in blocked or states[step.id].name == "FAILED"]
        missing = [step for step in mine if step not in done and step not in stuck]
        expected = duration(costs.total(missing)) if missing else ""
        table.add_row(kind, *(str(len(group)) for group in (mine, done, missing, stuck)), expected)
    return table


def _work(plan: Plan, states: Standing) -> str:
    """How many jobs, their hours by the time limits, and the bytes they will leave."""
    missing = to_run(plan.steps, states)
    jobs = job_specs(missing, plan.config.cluster)
    hours = sum(job.resources.minutes * max(job.resources.gpus, 1) * job.resources.nodes for job in jobs) / 60
    kept = plan.checkpoint_bytes({step.id for step in missing})
    unit = "GPU-hours" if any(job.resources.gpus for job in jobs) else "hours"
    return (
        f"{len(jobs)} jobs: at most {hours:.1f} {unit} by their time limits, {size(kept)} of checkpoints"
        if jobs
        else ""
    )


def forecast_lines(forecast: Forecast) -> list[str]:
    """What a plan adds on a cluster with a queue."""
    told = [f"{kind} {start:%Y-%m-%d %H:%M}" for kind, start in forecast.starts.items() if start]
    lines = [f"SLURM would start a first job of each kind: {', '.join(told)}"] if told else []
    return lines + [f"would be refused: {refusal}" for refusal in forecast.refusals]


def status_table(graph: Graph, states: Standing) -> Table:
    """A row per step: label, state, progress, reason."""
    table = Table(box=None, pad_edge=False)
    for name in ("step", "what", "state", "attempt", "progress", "why"):
        table.add_column(name, no_wrap=name != "why")
    blocked = blockers(graph, states)
    for id, step in graph.items():
        state = states[id]
        name = "BLOCKED" if id in blocked else state.name
        reason = f"{graph[blocked[id]].label}: failed" if id in blocked else reason_of(id, graph, states)
        row = (id, step.label, Text(name, STYLES[name]), str(state.attempt or ""), _progress_text(state), reason)
        table.add_row(*row)
    return table


def reason_of(id: str, graph: Graph, states: Standing) -> str:
    """What its files and its job say, and which parents it waits for: a queue that has not looked at a job yet does
    not tell that."""
    missing = [parent for parent in graph[id].parents.values() if states[parent].name != "DONE"]
    waits = f"waits for {', '.join(missing)}" if missing and states[id].name not in ("DONE", "RUNNING") else ""
    return "; ".join(filter(None, [states[id].reason, waits]))


def _progress_text(state: State) -> str:
    row: Json = state.progress.fields if state.progress else {}
    parts = [f"{row['step']}/{row['steps']}"] if "steps" in row else []
    if row.get("loss") is not None:  # it is None where training diverged
        parts.append(f"loss {row['loss']:.3f}")
    if "tokens_per_second" in row:
        parts.append(f"{row['tokens_per_second']:,.0f} tok/s")
    return "  ".join(parts)


def prune_table(found: Iterable[Prunable]) -> Table:
    """What a store could do without, by kind of step."""
    table = Table(box=None, pad_edge=False)
    for name in ("kind", "steps in no sweep", "with leftovers", "MB"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    by_kind: dict[str, list[Prunable]] = defaultdict(list)
    for each in found:
        by_kind[each.step.kind].append(each)
    for kind, own in by_kind.items():
        whole = sum(each.whole for each in own)
        size = sum(each.bytes for each in own) / 1e6
        table.add_row(kind, str(whole), str(len(own) - whole), f"{size:,.1f}")
    return table


def counts(graph: Graph, states: Standing) -> Counter[str]:
    blocked = blockers(graph, states)
    return Counter("BLOCKED" if id in blocked else states[id].name for id in graph)


def summary(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{counted[name]} {name.lower()}" for name in STYLES if counted.get(name))


def advice(counted: Mapping[str, int], sweep: str) -> str:
    """What runs the steps that the same line leaves alone; empty where there are none."""
    if not (failed := counted.get("FAILED")):
        return ""
    return f"{failed} failed: `mlkv retry {sweep}` runs them again, and what waits for them"


class Progress:
    """The live view of a running sweep; on a pipe, a line whenever a step changes state."""

    def __init__(self, console: Console, graph: Graph, store: Store, slots: int) -> None:
        self._console, self._graph, self._store, self._slots = console, graph, store, slots
        self._states = {id: store.step(id).state() for id in graph}
        self._costs = Costs.of_store(store)
        self._started = time.monotonic()
        self._drawn = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        if self._live:
            self._live.stop()

    def __call__(self) -> None:
        """Look again, at most twice a second."""
        if time.monotonic() - self._drawn < 0.5:
            return
        self._look()
        if self._live:
            self._live.update(self._render(), refresh=True)
        self._drawn = time.monotonic()

    def _look(self) -> None:
        for id, step in self._graph.items():
            before = self._states[id]
            if before.name == "DONE":
                continue
            self._states[id] = after = self._store.step(id).state()
            if after.name != before.name and after.name != "PENDING":
                self._note(step, after)

    def _note(self, step: Step, state: State) -> None:
        if state.name == "DONE":
            record = self._store.step(step.id).record()
            self._costs = Costs.of_store(self._store)
            told = (
                ("✓", "green"),
                f" {step.kind:<8} {step.label}  ",
                (duration(record.wall_seconds if record else None), "dim"),
            )
            self._console.print(Text.assemble(*told))
        elif state.name == "FAILED":
            self._console.print(Text.assemble(("✗", "red"), f" {step.kind:<8} {step.label}  {state.reason}"))
        elif self._live is None:
            self._console.print(f"{state.name.lower()} {step.kind} {step.label} {state.reason}", highlight=False)

    def _render(self) -> RenderableType:
        counted = counts(self._graph, self._states)
        elapsed = time.monotonic() - self._started
        head = Table.grid(padding=(0, 2))
        left = expected_left(self._graph.values(), self._states, self._costs, self._slots)
        head.add_row(
            ProgressBar(total=len(self._graph), completed=counted["DONE"], width=30),
            Text(f"{summary(counted)}    {duration(elapsed)} gone, {left}"),
        )
        return Group(head, self._running())

    def _running(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for id, step in self._graph.items():
            if (state := self._states[id]).name == "RUNNING":
                row: Json = state.progress.fields if state.progress else {}
                bar = ProgressBar(total=row.get("steps") or 1, completed=row.get("step", 0), width=20)
                table.add_row(Text(step.kind, "cyan"), step.label, bar, _progress_text(state))
        return table


def expected_left(steps: Iterable[Step], states: Standing, costs: Costs, slots: int) -> str:
    """`7 min left` by the pace of this store's records and of what is running; `over` where part of it is unknown."""
    remaining = [_remaining(step, states[step.id], costs) for step in steps]
    known = sum(seconds for seconds in remaining if seconds is not None) / slots
    if None not in remaining:
        return f"{duration(known)} left"
    return f"over {duration(known)} left" if known else "time left not known yet"


def _remaining(step: Step, state: State, costs: Costs) -> float | None:
    """Expected seconds until a step ends."""
    if state.name in ("DONE", "FAILED"):
        return 0.0
    row: Json = state.progress.fields if state.progress else {}
    if state.name != "RUNNING" or not row.get("steps"):
        return costs.seconds(step)
    if row.get("tokens_per_second"):
        return (row["steps"] - row["step"]) * row["tokens"] / row["step"] / row["tokens_per_second"]
    expected = costs.seconds(step)
    return None if expected is None else expected * (1 - row["step"] / row["steps"])
