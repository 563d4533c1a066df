"""The subcommand export: a finished checkpoint becomes a directory that other software loads."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlkv.export.targets import TARGETS
from sweeps.cli.console import print_json
from sweeps.cli.options import JsonOption, StoreOptions, argument, user_path
from sweeps.cli.selection import existing, variant_of
from sweeps.cli.sources import one_line
from sweeps.store.errors import OK, UserError, choices
from sweeps.store.states import StepState

if TYPE_CHECKING:
    from mlkv.export.card import MadeBy, Origin
    from sweeps.store.schema import VariantRow
    from sweeps.store.stepdir import StepDir
    from sweeps.store.store import SavedSweep, Store


@dataclass(frozen=True)
class ExportOptions(JsonOption, StoreOptions):
    words: tuple[str, ...] = argument(
        "a sweep's name and a variant's label or a part of it; or a step id, or the beginning of one",
        nargs="+",
        metavar="NAME VARIANT|STEP",
    )
    out: Path = argument("the directory to write", metavar="DIR", type=user_path)
    to: str = argument(
        lambda: f"{', '.join(TARGETS)} (default: transformers)", "--to", default="transformers", metavar="TARGET"
    )
    push: str | None = argument(
        "upload it to this repository of the Hugging Face hub too, which is made, and private, if it is not there",
        "--push",
        metavar="USER/REPO",
    )


@dataclass(frozen=True)
class Source:
    """The step whose checkpoint is exported, and the sweep and variant it belongs to, where there are any."""

    step: StepDir
    sweep: SavedSweep | None
    variant: VariantRow | None


def export(options: ExportOptions) -> int:
    from mlkv.export.checkpoint import Checkpoint
    from mlkv.export.directory import check_replaceable
    from mlkv.export.directory import export as write
    from mlkv.export.hub import check_repository, push
    from mlkv.export.targets import choose

    if options.to not in TARGETS:
        raise UserError(f"--to = {options.to}: {choices(options.to, TARGETS)}")
    if len(options.words) > 2:
        raise UserError(f"export: {' '.join(options.words)}: must be NAME VARIANT, or STEP, and then a directory")
    store, out = existing(options.store), options.out
    hide_progress()
    source = _source(store, options.words)
    with one_line():
        check_replaceable(out)
        if options.push is not None:
            check_repository(options.push)
        checkpoint = Checkpoint.read(_finished_output(source.step))
        choose(options.to, checkpoint)
        if wrong := source.step.corrupted():
            raise UserError(f"{source.step.id}: {wrong}; `mlkv status --verify` sets it aside, a sweep runs it again")
        write(checkpoint, options.to, out, _origin(store, source), options.push or "")
        if not options.json:
            print(out)
        pushed = None if options.push is None else push(out, options.push)
    if options.json:
        print_json({"directory": str(out), "step": source.step.id, "target": options.to, "pushed": pushed})
    elif pushed is not None:
        print(pushed)
    return OK


def hide_progress() -> None:
    """transformers draws a bar for every file that it reads or writes."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _source(store: Store, words: Sequence[str]) -> Source:
    if len(words) == 1:
        step = store.find(words[0])
        sweep = store.planning(step.id)
        rows = [row for row in sweep.variants if row.steps.checkpoint == step.id] if sweep else []
        return Source(step, sweep, rows[0] if rows else None)
    sweep = store.sweep(words[0])
    row = variant_of(sweep, words[1])
    step_id = row.steps.checkpoint
    if step_id is None:
        raise UserError(f"{row.variant}: has no checkpoint: it only measures a layout")
    return Source(store.step(step_id), sweep, row)


def _finished_output(step: StepDir) -> Path:
    """Raises UserError unless the step is done, its output is there, and it is a checkpoint."""
    state = step.state()
    if state.name is not StepState.DONE:
        raise UserError(f"{step.id}: is {state.name}, not done; only a finished step can be exported")
    if not (step.out / "config.json").is_file():
        raise UserError(f"{step.id}: has no checkpoint; export a base, convert or uptrain step")
    if missing := step.left_out():
        whose = origin.words if (origin := step.origin()) else "from another store"
        raise UserError(f"{step.id}: was unpacked ({whose}) without {missing[0]}; unpack one with --weights")
    return step.out


# What the model card says


_PATH = re.compile(r"(?<![\w.])~?/(?:[^\s/,\]\"']+/)+")
"""The folders of an absolute path."""


def _origin(store: Store, source: Source) -> Origin:
    from mlkv.export.card import Origin

    sweep, row = source.sweep, source.variant
    command = [_PATH.sub("…/", word) for word in (sweep.plan.command or [])] if sweep else []
    steps = tuple(_made_by(step) for step in _chain(store, source.step))
    return Origin(
        title=f"{row.variant} of {sweep.name}" if sweep and row else source.step.id,
        steps=steps,
        scores=_scores(store, sweep, row) if sweep and row else "",
        command=tuple(command),
        element_bytes=row.kv_element_bytes if row else None,
        base_model=next((name for step in _chain(store, source.step) if (name := _hub_name(step))), ""),
    )


def _chain(store: Store, step: StepDir) -> list[StepDir]:
    """The steps that made a step's output, parents before children, itself last."""
    found: dict[str, StepDir] = {}

    def add(id: str) -> None:
        spec = store.step(id).spec()
        for parent in spec.parents.values() if spec else ():
            if parent not in found:
                add(parent)
        found[id] = store.step(id)

    add(step.id)
    return list(found.values())


def _made_by(step: StepDir) -> MadeBy:
    from mlkv.export.card import MadeBy

    spec, record = step.spec(), step.record()
    settings = {**(spec.slice if spec else {}), **(spec.pinned if spec else {})}
    if record and (reason := record.facts.get("approximate")):
        settings["approximate"] = reason
    return MadeBy(step.id, step.kind, settings, record.versions if record else {})


def _hub_name(step: StepDir) -> str | None:
    """The model on the hub that a base was loaded from."""
    source = step.how().source if step.kind == "base" and step.spec() else None
    return source.get("hub") if source else None


def _scores(store: Store, sweep: SavedSweep, row: VariantRow) -> str:
    """The results table of the variant and its baselines, compared among themselves."""
    from analysis.statistics.results import results
    from analysis.statistics.sources import load
    from analysis.tables.results_table import markdown

    source = load(store, sweep.name)
    wanted = [other.variant for other in sweep.variants if other.baseline or other.variant == row.variant]
    return markdown(results(source.table, source.samples).select(wanted))
