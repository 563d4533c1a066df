"""What the terminal shows of a plan, of the states of its steps, and of what can be pruned."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.data.units import count, duration, size
from sweeps.cli.position import Position
from sweeps.dispatch.grouping import job_specs
from sweeps.planning.plan import Plan
from sweeps.planning.reconcile import Costs, Graph, States, blockers, to_run
from sweeps.planning.variants import Variant
from sweeps.store.states import StepState

if TYPE_CHECKING:
    from sweeps.dispatch.submit import Forecast
    from sweeps.store.prune import Prunable

STYLES = {
    StepState.DONE: "green",
    StepState.RUNNING: "cyan",
    StepState.PENDING: "dim",
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
    return Group(_variants(plan, states), *_inputs(plan), _kinds(plan.steps, states, costs), _work(plan, states))


def _variants(plan: Plan, states: States) -> Table:
    table = Table(title=f"{plan.name}: {len(plan.variants)} variants", title_justify="left", box=None, pad_edge=False)
    table.add_column("variant", no_wrap=True, min_width=max(len(variant.label) for variant in plan.variants))
    table.add_column("KV heads by layer (─ reads below)", overflow="ellipsis", no_wrap=True)
    for name in ("KV heads", "bytes/token", "params", "tokens", "done"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    for variant in plan.variants:
        done = sum(states[step.id].name is StepState.DONE for step in variant.steps)
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
    """What variants are trained on and scored by: a line for each of the sweep's values."""
    for name, value in (("corpus", _corpus), ("tokenizer", _tokenizer), ("tasks", _tasks)):
        for line in dict.fromkeys(filter(None, map(value, plan.variants))):
            yield Text(f"{name}: {line}")


def _corpus(variant: Variant) -> str:
    recipe = variant.config.corpus
    if variant.corpus is None:
        return ""
    where = recipe.dataset if recipe.source == "hf" else ", ".join(recipe.files)
    rows = f"{recipe.source}{f' ({where})' if where else ''} in rows of {recipe.sequence_length:,} tokens"
    return "; ".join(filter(None, [rows, variant.corpus_note]))


def _tokenizer(variant: Variant) -> str:
    recipe, model = variant.config.corpus, variant.config.model
    if variant.corpus is None:
        return ""
    if recipe.tokenizer == "train":
        return f"made of the text, {recipe.vocab_size:,} tokens at most"
    return f"that of {recipe.tokenizer_from if recipe.tokenizer == 'published' else f'model {model.name}'}"


def _tasks(variant: Variant) -> str:
    limit = variant.config.evaluate.limit
    tasks = [f"{task}{_examples(variant.few_shot.get(task, 0))}" for task in variant.evaluate]
    return ", ".join(tasks) + (f"; at most {limit:,} items of each" if tasks and limit else "")


def _examples(counts: int | dict[str, int]) -> str:
    numbers = sorted(counts.values() if isinstance(counts, dict) else {counts})
    if not numbers[-1]:
        return ""
    return f" ({'to '.join(dict.fromkeys(f'{number}-shot ' for number in (numbers[0], numbers[-1]))).strip()})"


def _kinds(graph: Graph, states: States, costs: Costs) -> Table:
    table = Table(title="steps", title_justify="left", box=None, pad_edge=False)
    for name in ("kind", "all", "done", "run", "blocked", "expected"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    blocked = blockers(graph, states)
    for kind in dict.fromkeys(step.kind for step in graph.values()):
        mine = [step for step in graph.values() if step.kind == kind]
        done = [step for step in mine if states[step.id].name is StepState.DONE]
        stuck = [step for step in mine if step.id in blocked or states[step.id].name is StepState.FAILED]
        missing = [step for step in mine if step not in done and step not in stuck]
        expected = duration(costs.total(missing)) if missing else ""
        table.add_row(kind, *(str(len(group)) for group in (mine, done, missing, stuck)), expected)
    return table


def _work(plan: Plan, states: States) -> str:
    """How many jobs, their hours by the time limits, and the bytes they will leave."""
    missing = to_run(plan.steps, states)
    if not missing:
        return ""
    jobs = job_specs(missing, plan.config.cluster)
    hours = sum(job.resources.minutes * max(job.resources.gpus, 1) * job.resources.nodes for job in jobs) / 60
    checkpoints = size(plan.checkpoint_bytes({step.id for step in missing}))
    unit = "GPU-hours" if any(job.resources.gpus for job in jobs) else "hours"
    return f"{len(jobs)} jobs: at most {hours:.1f} {unit} by their time limits, {checkpoints} of checkpoints"


def forecast_lines(forecast: Forecast) -> list[str]:
    """What `mlkv plan` adds on a cluster with a queue."""
    starts = [f"{kind} {start:%Y-%m-%d %H:%M}" for kind, start in forecast.starts.items() if start]
    lines = [f"SLURM would start a first job of each kind: {', '.join(starts)}"] if starts else []
    return lines + [f"would be refused: {refusal}" for refusal in forecast.refusals]


def status_table(graph: Graph, states: States) -> Table:
    """A row per step: label, state, progress, reason."""
    table = Table(box=None, pad_edge=False)
    for name in ("step", "what", "state", "attempt", "progress", "why"):
        table.add_column(name, no_wrap=name != "why")
    blocked = blockers(graph, states)
    for id, step in graph.items():
        state = states[id]
        name = StepState.BLOCKED if id in blocked else state.name
        reason = f"{graph[blocked[id]].label}: failed" if id in blocked else reason_of(id, graph, states)
        row = (id, step.label, Text(name, STYLES[name]), str(state.attempt or ""), Position.of(state).text(), reason)
        table.add_row(*row)
    return table


def reason_of(id: str, graph: Graph, states: States) -> str:
    """The reason from a step's files and its job, and the parents that it waits for: the queue names no parents before
    it has examined the job."""
    missing = [parent for parent in graph[id].parents.values() if states[parent].name is not StepState.DONE]
    waits = missing and states[id].name not in (StepState.DONE, StepState.RUNNING)
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
