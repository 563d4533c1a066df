"""What happens around the steps of a training: logging, checks of the losses, checkpoints, and the stop."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..context import Context, StepFailed
from ..files import discard, share
from ..signature import LOSS_DIVERGED, LOSS_SPIKED
from .distillation import TERMS
from .schedule import Schedule, spike_of_last

STAGING, OWNER = "staging", "owner"
"""The folder of each attempt where checkpoints are written before they are moved into place, and the empty file in it
that shows that it is still this attempt's: a later attempt deletes the folder."""
DIVERGED = f"{LOSS_DIVERGED}; lower lr or raise warmup"


class Watcher(TrainerCallback):
    """Logs, checks the losses, publishes checkpoints and stops the training when the step should stop.

    A checkpoint is written to `work/staging-<attempt>` and renamed to `work/checkpoint-<step>`, so every
    `checkpoint-*` is whole.
    """

    def __init__(self, schedule: Schedule, ctx: Context) -> None:
        self.schedule, self.ctx = schedule, ctx
        self.staging = ctx.work / f"{STAGING}-{ctx.attempt}"
        self.losses: list[tuple[int, float]] = []
        self.terms: dict[str, list[tuple[int, float]]] = {}
        """What the losses are made of, where a teacher takes part."""
        self.seconds = 0.0
        self.steps_timed = 0
        self.mfu_of: Callable[[float | None], float | None] = lambda _rate: None
        """What so many tokens a second are of the processor's arithmetic, where that is known."""
        self._since: tuple[int, float] | None = None

    def latest(self) -> Path | None:
        """The newest whole checkpoint. Deletes unfinished ones of earlier attempts."""
        if _is_first_process():
            for staging in self.ctx.work.glob(f"{STAGING}*"):
                discard(staging)
            self.staging.mkdir(exist_ok=True)
            (self.staging / OWNER).touch()
        return max(self.ctx.work.glob("checkpoint-*"), key=_step_of, default=None)

    def close(self) -> None:
        """Delete an unfinished checkpoint: it may be what filled the disk."""
        if _is_first_process():
            discard(self.staging)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        rows = [row for row in state.log_history if "loss" in row]
        self.losses = [(row["step"], row["loss"]) for row in rows]
        self.terms = {name: [(row["step"], row[name]) for row in rows] for name in TERMS if rows and name in rows[0]}

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._since = self._since or (state.global_step, time.monotonic())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        recipe, step = self.schedule.recipe, state.global_step
        stop = _anywhere(self.ctx.should_stop(), args)
        last = step >= self.schedule.steps
        own_trunk = bool(recipe.rungs) and step == self.schedule.trunk_steps
        control.should_save = stop or own_trunk or (step % recipe.save_every == 0 and not last)
        # At the ends of shorter trunks too, so that a run has the same rows whether it passed or continued them.
        control.should_log = control.should_save or last or step % recipe.log_every == 0
        control.should_log = control.should_log or step in self.schedule.trunk_ends
        control.should_training_stop = stop or last

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        if "loss" not in logs:
            return
        step = state.global_step
        terms = {name: logs[name] for name in TERMS if name in logs}
        values = {"loss": logs["loss"], **terms, "lr": logs["learning_rate"], "grad_norm": logs.get("grad_norm")}
        done = {"step": step, "steps": self.schedule.steps, "tokens": self.schedule.tokens_by(step)}
        rate = {"tokens_per_second": self._time(step)}
        if share := self.mfu_of(rate["tokens_per_second"]):
            rate["mfu"] = share
        if state.is_world_process_zero:
            self.ctx.log({**done, **{name: _finite(value) for name, value in values.items()}, **rate})
        for name, value in values.items():
            if value is not None and not math.isfinite(value):
                raise StepFailed(f"{name} = {value} at step {step}: {DIVERGED}")
        self.losses.append((step, logs["loss"]))
        for name, value in terms.items():
            self.terms.setdefault(name, []).append((step, value))
        self._check_spike()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # until all have written their random states
        if state.is_world_process_zero:
            # Raises FileNotFoundError if this attempt was suspended and a later one deleted its folder: Trainer makes
            # another and writes the rest of the files, so this checkpoint is not whole.
            (self.staging / OWNER).stat()
            keep = self.schedule.trunk_steps if self.schedule.recipe.rungs else None
            _publish(self.staging / f"checkpoint-{state.global_step}", self.ctx.work, keep)
        self._since = None

    def tokens_per_second(self) -> float | None:
        """Over this process's steps, without the time that checkpoints take; None before the first logged row."""
        return self.steps_timed * self.schedule.tokens_per_step / self.seconds if self.seconds else None

    def _time(self, step: int) -> float | None:
        now = time.monotonic()
        before, since = self._since or (step, now)
        self._since = (step, now)
        self.seconds += now - since
        self.steps_timed += step - before
        return (step - before) * self.schedule.tokens_per_step / (now - since) if now > since else None

    def _check_spike(self) -> None:
        spike = spike_of_last(self.losses, self.schedule.warmup_steps)
        if spike and self.schedule.recipe.on_spike == "fail":
            raise StepFailed(
                f"loss = {spike.loss:.3f} at step {spike.step}: {LOSS_SPIKED} {spike.median:.3f} (on_spike = fail)"
            )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _anywhere(flag: bool, args: TrainingArguments) -> bool:
    """Whether `flag` is true in any process: all of them must stop at the same step, or the others wait for ever."""
    if args.world_size == 1:
        return flag
    shared = torch.tensor(float(flag), device=args.device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return bool(shared.item())


def _publish(checkpoint: Path, work: Path, keep: int | None = None) -> None:
    """Move a checkpoint into place once it is on disk, then delete older ones, but that of step `keep`."""
    share(checkpoint)
    for path in [*checkpoint.rglob("*"), checkpoint]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    place = work / checkpoint.name
    try:
        os.replace(checkpoint, place)
    except OSError:
        if not place.is_dir():
            raise
        discard(checkpoint)  # another attempt at the same training has saved this step
    with suppress(OSError):  # one old checkpoint too many is no reason to stop
        for other in work.glob("checkpoint-*"):
            if _step_of(other) < _step_of(checkpoint) and _step_of(other) != keep:
                discard(other)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])
