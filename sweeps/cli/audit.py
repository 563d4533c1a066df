"""The subcommand audit: runs a sample of finished steps again and compares what comes out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sweeps.cli.console import make_console, print_json
from sweeps.cli.options import JsonOption, SweepOptions, argument
from sweeps.cli.selection import existing
from sweeps.store.errors import NOT_DONE, OK, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from mlkv.files import Json
    from sweeps.store.store import SavedSweep, Store
    from sweeps.worker.audit import Audited


@dataclass(frozen=True)
class AuditOptions(JsonOption, SweepOptions):
    sample: int = argument("how many steps to run again (default: 3)", "--sample", type=int, default=3, metavar="N")
    seed: int = argument("which ones (default: 0)", "--seed", type=int, default=0, metavar="SEED")


def audit(options: AuditOptions) -> int:
    from sweeps.worker.audit import drawn
    from sweeps.worker.compare import Verdict

    if options.sample < 1:
        raise UserError(f"--sample = {options.sample}: must be a whole number above 0")
    store, console = existing(options.store), make_console(stderr=options.json)
    saved = store.sweep(options.name)
    order = drawn(store, list(saved.plan.steps), options.seed)
    if not order:
        raise UserError(f"{saved.name}: no step of it is done")
    wanted = min(options.sample, len(order))
    found = []
    for each in _sample(console, store, saved, order, wanted):
        found.append(each)
        if not options.json:
            _print(console, saved, each)
    held = [each.comparison.verdict in (Verdict.EQUAL, Verdict.WITHIN) for each in found]
    if options.json:
        steps = [_json(saved, each) for each in found]
        print_json({"name": saved.name, "wanted": wanted, "held": sum(held), "steps": steps})
    else:
        console.print(f"{sum(held)} of {wanted} steps came out as they were", highlight=False)
    failed = any(each.comparison.verdict is Verdict.DIFFERENT for each in found)
    return NOT_DONE if failed or sum(held) < wanted else OK


def _sample(console: Console, store: Store, saved: SavedSweep, order: list[str], wanted: int) -> Iterator[Audited]:
    """Steps in their drawn order, until as many as wanted could be run again; those that could not are among them."""
    from sweeps.worker.audit import audit as run_again
    from sweeps.worker.compare import Verdict

    ran = 0
    for id in order:
        if ran == wanted:
            return
        with console.status(f"running {id} {saved.plan.steps[id].label} again"):
            each = run_again(store, id)
        ran += each.comparison.verdict is not Verdict.NOT_RUN
        yield each


def _print(console: Console, saved: SavedSweep, each: Audited) -> None:
    label, verdict = saved.plan.steps[each.step].label, each.comparison.verdict
    style = {"equal": "green", "within tolerance": "green", "different": "bold red"}.get(verdict, "yellow")
    console.print(f"{verdict:<16}", style=style, end="  ")
    console.print(f"{each.step} {label}: {each.comparison.reason}", highlight=False)
    if each.changes:
        console.print(f"{'':<16}  made under other conditions: {', '.join(each.changes)}", highlight=False)


def _json(saved: SavedSweep, each: Audited) -> Json:
    """A difference that is infinite, as one of the two is missing, is null."""
    compared = asdict(each.comparison)
    for key in ("numbers", "weights"):
        compared[key] = {name: far if math.isfinite(far) else None for name, far in compared[key].items()}
    planned = saved.plan.steps[each.step]
    facts = {"id": each.step, "kind": planned.kind, "label": planned.label}
    return {**facts, **compared, "changes": each.changes, "seconds": each.seconds}
