"""What the terminal shows of a plan, of the states of its steps, and of what can be pruned."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from analysis.data.units import count, duration, size
from mlkv.patterns import name_of
from mlkv.training_recipes import TrainRecipe
from sweeps.cli.console import UNLIMITED
from sweeps.cli.position import Position
from sweeps.dispatch.grouping import job_specs
from sweeps.planning.labels import shape_label
from sweeps.planning.reconcile import Costs, Graph, States, blockers, to_run
from sweeps.store.states import NOTHING_LEFT, StepState

if TYPE_CHECKING:
    from sweeps.dispatch.submit import Forecast
    from sweeps.planning.memory import NeededMemory
    from sweeps.planning.plan import Plan
    from sweeps.planning.teachers import TeacherCosts
    from sweeps.planning.variant import Variant
    from sweeps.store.prune import Prunable

STYLES = {
    StepState.DONE: "green",
    StepState.RUNNING: "cyan",
    StepState.PENDING: "dim",
    StepState.STOPPED: "blue",
    StepState.FAILED: "bold red",
    StepState.BLOCKED: "yellow",
    StepState.INTERRUPTED: "yellow",
    StepState.LOST: "yellow",
    StepState.CANCELLED: "yellow",
}

MAX_ENDINGS = 10
"""Lines on steps that ended badly."""


def millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"


def plan_tables(plan: Plan, states: States, costs: Costs) -> RenderableType:
    """Variants with their cost in memory, then the steps by kind with what is missing and what that will take."""
    from sweeps.planning.memory import needed_memory  # with all of planning, which `status` does without
    from sweeps.planning.teachers import teacher_costs

    memory = _memory(needed_memory(plan.variants))
    inputs = [*_above(plan), *_inputs(plan), *_teacher(teacher_costs(plan, costs)), *memory]
    if plan.config.stopping.active:
        inputs.append(Text(f"{plan.config.stopping.words}. What is below is what would run without it"))
    parts = [_variants(plan, states), *inputs, _kinds(plan.steps, states, costs), _work(plan, states)]
    return Group(*parts, *([following(plan.following)] if plan.following else []))


def following(count: int) -> str:
    """What is to come behind the steps that rules read."""
    layouts = "1 layout follows" if count == 1 else f"{count} layouts follow"
    return f"{layouts} by rule from these steps: `mlkv sweep` runs them first, and plans the layouts when they are done"


def finished_plan(plan: Plan, states: States) -> RenderableType:
    """What there is to say where no step is missing."""
    kinds = _kinds(plan.steps, states, Costs({}))
    return Group(Text(_title(plan), "italic"), kinds, summary(counts(plan.steps, states)))


def _title(plan: Plan) -> str:
    if plan.following:
        return f"{plan.name}: what rules read, {len(plan.variants)} in all"
    return f"{plan.name}: {len(plan.variants)} variants"


@dataclass(frozen=True)
class Fitting:
    """A table, or another form of it where its columns do not fit: nothing is cut."""

    table: Table
    narrow: Callable[[int], Iterable[RenderableType]]
    """From the width to what is printed instead, one below the other."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = Measurement.get(console, options.update(width=UNLIMITED), self.table).maximum
        yield from [self.table] if needed <= options.max_width else self.narrow(options.max_width)


def _indented(text: str) -> RenderableType:
    return Padding(Text(text, overflow="fold"), (0, 0, 0, 4))


def _variants(plan: Plan, states: States) -> RenderableType:
    title = _title(plan)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("variant", no_wrap=True)
    table.add_column("KV heads by layer (─ reads below, ↑ above)", no_wrap=True)
    names = ("KV heads", "bytes/token", "params", "tokens", "done")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    narrow: list[RenderableType] = [Text(title, "italic")]
    for variant in plan.variants:
        done = sum(states[step.id].name is StepState.DONE for step in variant.steps)
        numbers = (
            str(variant.layout.budget),
            f"{variant.kv_bytes_per_token:,}",
            millions(variant.parameters),
            _trained(variant),
        )
        cells = (*numbers, f"{done}/{len(variant.steps)}")
        table.add_row(variant.label, variant.layout.draw(), *cells)
        values = ", ".join(f"{cell} {name}" for cell, name in zip(cells, names, strict=True) if cell != "─")
        narrow += [Text(variant.label), _indented(f"{variant.layout.draw()}  {values}")]
    return Fitting(table, lambda _width: narrow)


def _trained(variant: Variant) -> str:
    """How much text uptraining, or training from random weights, sees; before that the elastic training that several
    variants are cut from, in parentheses."""
    shared = f"({_tokens(variant, variant.config.elastic)})" if variant.elastic else ""
    own = _tokens(variant, variant.config.uptrain) if variant.uptrain else ""
    return " + ".join(filter(None, [shared, own])) or "─"


def _tokens(variant: Variant, recipe: TrainRecipe) -> str:
    tokens = recipe.tokens_of(variant.config.corpus.sequence_length)
    return f"{recipe.epochs:g} epochs" if tokens is None else count(tokens)


def _above(plan: Plan) -> Iterator[Text]:
    """What it costs that layers wait for each other: a line for each layout in which they do."""
    layouts = {variant.layout: variant.name for variant in plan.variants if variant.layout.reads_above}
    for layout, name in layouts.items():
        yield Text(f"{name}: {layout.cost_of_passes}")


def _elastic(variant: Variant) -> str:
    from mlkv.train.sampling import layouts_of

    if variant.elastic is None:
        return ""
    layouts = layouts_of(variant.config.elastic, variant.model.layout)
    tokens = _tokens(variant, variant.config.elastic)
    names = ", ".join(f"{name_of(layout)} ({shape_label(layout)})" for layout in layouts)
    return f"{tokens} tokens, in parentheses above, for all layouts together: {names}"


def _inputs(plan: Plan) -> Iterator[Text]:
    """What variants are trained on and scored by: a line for each of the sweep's values."""
    # An untouched base is on the same text as the variants of its point, and scored by no more tasks.
    variants = [variant for variant in plan.variants if variant.baseline != "untouched"] or plan.variants
    for name, value in (("elastic", _elastic), ("corpus", _corpus), ("tokenizer", _tokenizer), ("tasks", _tasks)):
        for line in dict.fromkeys(filter(None, map(value, variants))):
            yield Text(f"{name}: {line}")


def _corpus(variant: Variant) -> str:
    recipe = variant.config.corpus
    if variant.corpus is None:
        return ""
    where = recipe.dataset if recipe.source == "hf" else ", ".join(recipe.files)
    rows = f"{recipe.source}{f' ({where})' if where else ''} in rows of {recipe.sequence_length:,} tokens"
    rows += f", and {recipe.recall:.0%} of all rows generated" if recipe.recall else ""
    return "; ".join(filter(None, [rows, variant.corpus_note]))


def _tokenizer(variant: Variant) -> str:
    recipe, model = variant.config.corpus, variant.config.model
    if variant.corpus is None:
        return ""
    if recipe.tokenizer == "train":
        return f"made of the text, {recipe.vocab_size:,} tokens at most"
    if recipe.tokenizer == "published":
        return f"that of {recipe.tokenizer_from}"
    known, own = variant.model.shape.vocab_size, variant.model.vocabulary
    if own is None or own.largest < known:
        return f"that of model {model.name}"
    return (
        f"that of model {model.name}; a text that uses one of its ids {known:,} to {own.largest:,} cannot be trained "
        "on, as the model has no embeddings for them"
    )


def _tasks(variant: Variant) -> str:
    limit = variant.config.evaluate.limit
    tasks = [f"{task}{_examples(variant.few_shot.get(task, 0))}" for task in variant.evaluate]
    converted = f"; before uptraining: {', '.join(variant.converted)}" if variant.uptrain and variant.converted else ""
    return ", ".join(tasks) + (f"; at most {limit:,} items of each" if tasks and limit else "") + converted


def _examples(counts: int | dict[str, int]) -> str:
    numbers = sorted(counts.values() if isinstance(counts, dict) else {counts})
    if not numbers[-1]:
        return ""
    return f" ({'to '.join(dict.fromkeys(f'{number}-shot ' for number in (numbers[0], numbers[-1]))).strip()})"


def _teacher(costs: TeacherCosts | None) -> Iterator[Text]:
    """What it costs to ask teachers at every step, and to store what they predict."""
    if costs is None:
        return
    runs = f"{costs.online + costs.stored} runs"
    tokens = "all their tokens" if costs.tokens is None else f"{count(costs.tokens)} tokens in all"
    online = f"online: {runs} ask it on {tokens}{_took(costs.seconds)}"
    if costs.stored_tokens is None:
        stored = f"stored: once on all rows{_took(costs.stored_seconds)}, {size(costs.bytes)} on disk for a token"
    else:
        once = f"once on {count(costs.stored_tokens)} tokens{_took(costs.stored_seconds)}"
        stored = f"stored: {once}, {size(costs.bytes)} on disk"
    chosen = [name for name, some in (("online", costs.online), ("stored", costs.stored)) if some]
    yield Text(f"teacher: {' and '.join(chosen)} (uptrain.teacher_logits); {online}; {stored}")


def _memory(needed: Sequence[NeededMemory]) -> Iterator[Text]:
    """For each kind of training, what the largest takes of each device, and the smallest."""
    for kind in dict.fromkeys(each.kind for each in needed):
        mine = sorted((each for each in needed if each.kind == kind), key=lambda each: each.memory.total)
        least, most = mine[0], mine[-1]
        parts = ", ".join(f"{name} {_gib(part)}" for name, part in asdict(most.memory).items() if part)
        together = f", {most.processes} processes by {most.recipe.strategy}" if most.processes > 1 else ""
        whole, other = _gib(most.memory.total), _gib(least.memory.total)
        named = f"{most.label}: " if kind == "uptrain" else ""
        line = f"memory: {kind} needs {whole} GiB of each device{together} ({named}{parts})"
        yield Text(line + (f"; {least.label} needs {other}" if other != whole else ""))


def _gib(bytes: int) -> str:
    number = bytes / 2**30
    return f"{number:.1f}" if number >= 10 else f"{number:.2g}"


def _took(seconds: float | None) -> str:
    return "" if seconds is None else f" ({duration(seconds)})"


_OF_KINDS = ("kind", "all", "done", "stopped", "run", "blocked", "expected")


def _kinds(graph: Graph, states: States, costs: Costs) -> RenderableType:
    rows = _rows_of_kinds(graph, states, costs)
    return Fitting(_table_of_kinds(rows, gap=2), lambda _width: [_table_of_kinds(rows, gap=1)])


def _table_of_kinds(rows: Iterable[Sequence[str]], gap: int) -> Table:
    table = Table(title="steps", title_justify="left", box=None, pad_edge=False, padding=(0, gap - 1, 0, 1))
    columns = [*zip(_OF_KINDS, *rows, strict=True)]
    shown = [column for column in columns if column[0] != "stopped" or set(column[1:]) != {"0"}]
    for name, *_ in shown:
        table.add_column(name, justify="left" if name == "kind" else "right", no_wrap=True)
    for row in zip(*(values for _, *values in shown), strict=True):
        table.add_row(*row)
    return table


def _rows_of_kinds(graph: Graph, states: States, costs: Costs) -> list[tuple[str, ...]]:
    blocked, rows = blockers(graph, states), []
    for kind in dict.fromkeys(step.kind for step in graph.values()):
        mine = [step for step in graph.values() if step.kind == kind]
        done = {step.id for step in mine if states[step.id].name is StepState.DONE}
        stopped = {step.id for step in mine if states[step.id].name is StepState.STOPPED}
        stuck = {step.id for step in mine if step.id in blocked or states[step.id].name is StepState.FAILED}
        missing = [step for step in mine if step.id not in done | stopped | stuck]
        expected = duration(costs.total(missing)) if missing else ""
        rows.append((kind, *(str(len(group)) for group in (mine, done, stopped, missing, stuck)), expected))
    return rows


def _work(plan: Plan, states: States) -> str:
    """How many jobs, their hours by the time limits, and the bytes they will leave."""
    missing = to_run(plan.steps, states)
    if not missing:
        return ""
    jobs = job_specs(missing, plan.config.cluster)
    hours = [job.device_hours for job in jobs]
    on_gpus = sum(each or 0.0 for each, job in zip(hours, jobs, strict=True) if job.resources.gpus)
    elsewhere = sum(each or 0.0 for each, job in zip(hours, jobs, strict=True) if not job.resources.gpus)
    parts = [f"{on_gpus:.1f} GPU-hours"] if on_gpus else []
    parts += [f"{elsewhere:.1f} hours{' without a GPU' if parts else ''}"] if elsewhere or not parts else []
    checkpoints = size(plan.checkpoint_bytes({step.id for step in missing}))
    most = f"at most {' and '.join(parts)} by their time limits"
    return f"{len(jobs)} jobs: {'no time limit' if None in hours else most}, {checkpoints} of checkpoints"


def forecast_lines(forecast: Forecast) -> list[str]:
    """What `mlkv plan` adds on a cluster with a queue."""
    starts = [f"{kind} {start:%Y-%m-%d %H:%M}" for kind, start in forecast.starts.items() if start]
    lines = [f"SLURM would start a first job of each kind: {', '.join(starts)}"] if starts else []
    return [*lines, *(f"would be refused: {refusal}" for refusal in forecast.refusals), *forecast.notes]


def status_table(graph: Graph, states: States, shown: Sequence[str] | None = None) -> RenderableType:
    """A row per step, or for some of them: id, label, state, attempt, progress, reason. Where the columns do not fit, a
    step has a line of its id, state and label, and below it what else there is to tell."""
    blocked = blockers(graph, states)
    rows = [_status_row(id, graph, states, blocked) for id in (graph if shown is None else shown)]
    table = Table(box=None, pad_edge=False)
    for name in ("step", "what", "state", "attempt", "progress", "why"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(row.id, row.label, Text(row.state, STYLES[row.state]), row.attempt, row.progress, row.reason)
    widths = (max(map(len, column), default=0) for column in ([row.id for row in rows], [row.state for row in rows]))
    id_width, state_width = widths
    return Fitting(table, lambda width: [part for row in rows for part in row.narrow(id_width, state_width, width)])


@dataclass(frozen=True)
class _StatusRow:
    id: str
    label: str
    state: StepState
    attempt: str
    progress: str
    reason: str

    def narrow(self, id_width: int, state_width: int, width: int) -> Iterator[RenderableType]:
        head = Text.assemble(f"{self.id:<{id_width}}  ", (f"{self.state:<{state_width}}", STYLES[self.state]))
        details = []
        if len(head) + 2 + len(self.label) <= width:
            head.append(f"  {self.label}")
        else:
            details.append(self.label)
        if self.state is StepState.DONE:
            details.append(self.reason)
        else:
            details += [f"attempt {self.attempt}" if self.attempt else "", self.progress, self.reason]
        yield head
        if text := "  ".join(filter(None, details)):
            yield _indented(text)


def _status_row(id: str, graph: Graph, states: States, blocked: Mapping[str, str]) -> _StatusRow:
    state = states[id]
    name = StepState.BLOCKED if id in blocked else state.name
    reason = f"{graph[blocked[id]].label}: failed" if id in blocked else reason_of(id, graph, states)
    return _StatusRow(id, graph[id].label, name, str(state.attempt or ""), Position.of(state).text(), reason)


def watch_view(graph: Graph, states: States, console: Console) -> RenderableType:
    """What changes on the screen: all steps where they fit, else those that run or need a person."""
    head = Text(summary(counts(graph, states)))
    whole = Group(head, status_table(graph, states))
    if len(console.render_lines(whole, console.options.update(height=None), pad=False)) <= console.height:
        return whole
    quiet = (*NOTHING_LEFT, StepState.PENDING, StepState.BLOCKED)
    blocked = blockers(graph, states)
    active = [id for id in graph if states[id].name not in quiet and id not in blocked]
    return Group(head, status_table(graph, states, active))


def reason_of(id: str, graph: Graph, states: States) -> str:
    """The reason from a step's files and its job, and the parents that it waits for: the queue names no parents before
    it has examined the job."""
    missing = [parent for parent in graph[id].parents.values() if states[parent].name is not StepState.DONE]
    waits = missing and states[id].name not in (*NOTHING_LEFT, StepState.RUNNING)
    return "; ".join(filter(None, [states[id].reason, f"waits for {', '.join(missing)}" if waits else ""]))


def prune_table(found: Iterable[Prunable]) -> Table:
    """The outputs that can be deleted from a store, by kind of step."""
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


def counts(graph: Graph, states: States) -> Counter[StepState]:
    blocked = blockers(graph, states)
    return Counter(StepState.BLOCKED if id in blocked else states[id].name for id in graph)


def summary(counted: Mapping[StepState, int]) -> str:
    return ", ".join(f"{counted[name]} {name.lower()}" for name in STYLES if counted.get(name))


def endings(graph: Graph, states: States) -> list[str]:
    """A line for each reason why steps ended badly, with the steps that it ended."""
    ended: dict[tuple[StepState, str], list[str]] = defaultdict(list)
    for id, state in states.items():
        if state.name in (StepState.FAILED, StepState.LOST, StepState.INTERRUPTED):
            ended[state.name, state.reason].append(f"{graph[id].kind} {graph[id].label}")
    lines = [f"{name.lower()}: {_listed(steps)}: {reason}" for (name, reason), steps in ended.items()]
    return lines[:MAX_ENDINGS] + ([f"and {rest} more reasons"] if (rest := len(lines) - MAX_ENDINGS) > 0 else [])


def _listed(steps: list[str]) -> str:
    return steps[0] if len(steps) == 1 else f"{steps[0]} and {len(steps) - 1} more"


def advice(counted: Mapping[StepState, int], sweep: str) -> str:
    """How to run failed steps again, which `mlkv sweep` leaves alone; empty where there are none."""
    if not (failed := counted.get(StepState.FAILED)):
        return ""
    return f"{failed} failed: `mlkv retry {sweep}` runs them again, and the steps that wait for them"
