"""The subcommands that show what a variant is, and what differs between sweeps or variants: show, diff."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlkv.files import Json
from sweeps.cli.console import make_console, print_json
from sweeps.cli.options import JsonOption, StoreOptions, SweepOptions, argument
from sweeps.cli.selection import existing, variant_of
from sweeps.store.errors import OK, UserError, shown

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.store.others import Other
    from sweeps.store.schema import Record, VariantRow
    from sweeps.store.store import Store


@dataclass(frozen=True)
class ShowOptions(JsonOption, SweepOptions):
    variant: str = argument("a variant's label or a part of it, or a step id or the beginning of one")


@dataclass(frozen=True)
class DiffOptions(JsonOption, StoreOptions):
    first: str = argument("a sweep, or a variant as SWEEP/VARIANT", metavar="A")
    second: str = argument("what it is compared with", metavar="B")


def show(options: ShowOptions) -> int:
    store, console = existing(options.store), make_console()
    sweep = store.sweep(options.name)
    row = variant_of(sweep, options.variant)
    steps = [_step(store, kind, task, id, sweep.plan.stopped) for kind, task, id in row.steps.each()]
    if options.json:
        print_json({"name": sweep.name, **_facts(row), "config": row.config, "steps": steps})
        return OK
    console.print(f"{row.variant} of {sweep.name}, plan {sweep.number} of {sweep.plan.created}", highlight=False)
    console.print(row.layout.draw())
    for key, value in _facts(row).items():
        if key not in ("variant", "layout") and value is not None:
            console.print(f"{key}: {shown(value)}", highlight=False)
    console.print("\nconfiguration", style="bold")
    for key, value in flat(row.config).items():
        console.print(f"{key} = {shown(value)}", highlight=False)
    console.print("\nsteps", style="bold")
    for step in steps:
        _print_step(console, step)
    return OK


def _facts(row: VariantRow) -> Json:
    names = ("variant", "baseline", "family", "pattern", "budget", "kv_bytes_per_token", "parameters", "cache")
    layout = row.layout.as_dict()
    return {**{name: getattr(row, name) for name in names}, "layout": layout, "overrides": row.overrides or None}


def _step(store: Store, kind: str, task: str | None, id: str, stopped: Mapping[str, str] | None) -> Json:
    """What a step is, how it stands, and, where it is done, where its output lies and what made it."""
    from sweeps.planning.reconcile import state_of

    step = store.step(id)
    state, record = state_of(step, stopped), step.record()
    made = ("finished", "wall_seconds", "device_seconds", "peak_memory_bytes", "host", "device", "versions", "code")
    return {
        "id": id,
        "kind": kind,
        "task": task,
        "state": state.name.value,
        "reason": state.reason,
        "output": str(step.out) if record else None,
        "from": origin.by or "another store" if (origin := step.origin()) else None,
        "left_out": step.left_out(),
        "others": [_other(each, record) for each in step.others()],
        **{name: getattr(record, name) if record else None for name in made},
    }


def _other(other: Other, counts: Record | None) -> Json:
    """A result that does not count, and in which outputs it differs from the one that does."""
    from sweeps.store.others import same_result

    record, outputs = other.record, counts.outputs if counts else {}
    names = dict.fromkeys([*outputs, *record.outputs])
    return {
        "from": other.words,
        "place": str(other.path),
        "same": bool(counts and same_result(counts, record)),
        **{name: getattr(record, name) for name in ("finished", "host", "device", "versions")},
        "different": [name for name in names if outputs.get(name) != record.outputs.get(name)],
    }


def _print_step(console: Console, step: Json) -> None:
    from analysis.data.units import duration, size

    what = " ".join(filter(None, [step["kind"], step["task"]]))
    console.print(f"{step['id']}  {what}  {step['state']} {step['reason']}".rstrip(), highlight=False)
    if step["output"] is None:
        return
    versions = ", ".join(f"{name} {version}" for name, version in step["versions"].items())
    cost = f"{duration(step['wall_seconds'])}, {size(step['peak_memory_bytes'])} at most"
    console.print(f"    {step['output']}", highlight=False, soft_wrap=True)
    console.print(f"    {step['finished']} on {step['host']} ({step['device']}): {cost}", highlight=False)
    console.print(f"    {versions}", highlight=False)
    if missing := step["left_out"]:
        console.print(f"    was unpacked without {', '.join(missing)}", highlight=False)
    for other in step["others"]:
        made = f"{other['finished']} on {other['host']} ({other['device']})"
        differs = (
            "the same outputs" if other["same"] else f"differs in {', '.join(other['different']) or 'its numbers'}"
        )
        console.print(f"    another result, {other['from']}, which does not count: {made}", highlight=False)
        console.print(f"        {differs}; {other['place']}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class _Compared:
    """Two sweeps, or two variants. pairs: label → its configurations in both, flat. only: the labels that one alone
    has."""

    pairs: dict[str, tuple[Json, Json]]
    only: tuple[list[str], list[str]]
    shared_steps: list[str]


def diff(options: DiffOptions) -> int:
    """What is the same for all variants is said once."""
    store, console = existing(options.store), make_console()
    compared = _compared(store, options.first, options.second)
    changes = {label: different(*pair) for label, pair in compared.pairs.items()}
    common = _common(changes)
    own = {label: {key: each[key] for key in each if key not in common} for label, each in changes.items()}
    if options.json:
        only = dict(zip((options.first, options.second), compared.only, strict=True))
        variants = {label: each for label, each in own.items() if each}
        print_json({"only": only, "all": common, "variants": variants, "shared_steps": compared.shared_steps})
        return OK
    for name, labels in zip((options.first, options.second), compared.only, strict=True):
        if labels:
            console.print(f"only in {name}: {', '.join(labels)}", highlight=False)
    for where, each in (("", common), *own.items()):
        for key, (before, after) in each.items():
            console.print(f"{where and f'{where}: '}{key}: {shown(before)} → {shown(after)}", highlight=False)
    console.print(f"{len(compared.shared_steps)} steps are the same", highlight=False)
    return OK


def _compared(store: Store, first: str, second: str) -> _Compared:
    """Raises UserError for a sweep beside a variant."""
    before, after = _rows(store, first), _rows(store, second)
    if ("/" in first) != ("/" in second):
        raise UserError(f"diff: {first} {second}: give two sweeps, or two variants as SWEEP/VARIANT")
    steps = [{id for row in rows.values() for id in row.steps.ids} for rows in (before, after)]
    only = [label for label in before if label not in after], [label for label in after if label not in before]
    pairs = {label: (before[label], after[label]) for label in before if label in after}
    if "/" in first and not pairs:
        [(one, a)], [(other, b)] = before.items(), after.items()
        pairs, only = {f"{one}, {other}": (a, b)}, ([], [])
    flattened = {label: (flat(a.config), flat(b.config)) for label, (a, b) in pairs.items()}
    return _Compared(flattened, only, sorted(steps[0] & steps[1]))


def _rows(store: Store, word: str) -> dict[str, VariantRow]:
    """By label, the variants of a sweep, or the one that is named."""
    name, slash, label = word.partition("/")
    sweep = store.sweep(name)
    rows = [variant_of(sweep, label)] if slash else sweep.variants
    return {row.variant: row for row in rows}


Change = tuple[Any, Any]


def different(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Change]:
    """Key → both values, None where one has no such key. A sweep's name is no part of what it does."""
    keys = dict.fromkeys([*before, *after])
    return {
        key: (before.get(key), after.get(key)) for key in keys if key != "name" and before.get(key) != after.get(key)
    }


def _common(found: Mapping[str, Mapping[str, Change]]) -> dict[str, Change]:
    """The changes that all have."""
    first, *others = list(found.values()) or [{}]
    return {key: change for key, change in first.items() if all(other.get(key) == change for other in others)}


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A configuration by dotted keys."""
    return dict(_leaves(config, above))


def _leaves(config: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
