"""The training loop: transformers' Trainer with our data order, optimiser, schedule, checkpoints and stop.

Data order depends on the seed and the step alone, checkpoints appear whole or not at all, and a resumed run continues
bit for bit as an undisturbed one would (on one kind of processor with equally many threads).

Legend: `B` sequences, `T` tokens of a sequence.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from ..context import Context, StepFailed
from ..corpus.blocks import Blocks
from ..device import default_device
from ..files import discard, share
from ..hf import MLKVForCausalLM, load_checked, non_finite
from . import sharded
from .arguments import epoch_order, optimizer, training_arguments
from .schedule import Schedule, spike_of_last

STAGING, OWNER = "staging", "owner"
"""The folder of each attempt where checkpoints are written before they are moved into place, and the empty file in it
that shows that it is still this attempt's: a later attempt deletes the folder."""
IGNORED = -100
"""The label that the loss leaves out."""

DIVERGED = "training diverged; lower lr or raise warmup"


class BlockDataset(Dataset[Tensor]):
    """Every sequence of a run in the order of training: a fresh seeded permutation of the rows for each epoch."""

    def __init__(self, blocks: Blocks, sequences: int, seed: int) -> None:
        self.blocks, self.sequences, self.seed = blocks, sequences, seed
        self._order = lru_cache(maxsize=2)(self._permutation)

    def __len__(self) -> int:
        return self.sequences

    def __getitem__(self, i: int) -> Tensor:
        epoch, place = divmod(i, len(self.blocks.rows))
        return torch.from_numpy(self.blocks.rows[self._order(epoch)[place]].astype(np.int64))

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        return epoch_order(self.seed, epoch).permutation(len(self.blocks.rows))

    def collate(self, rows: list[Tensor]) -> dict[str, Tensor]:
        """Padding and a row's first token, which nothing predicts, get the label that the loss leaves out."""
        rows_BT = torch.stack(rows)
        padding_BT = rows_BT == self.blocks.padding
        labels_BT = rows_BT.masked_fill(padding_BT, IGNORED)
        labels_BT[:, 0] = IGNORED
        return {"input_ids": rows_BT.masked_fill(padding_BT, 0), "labels": labels_BT}


class BlockTrainer(Trainer):
    """Trainer with our data order, optimiser groups, learning rate, and a resume that refuses missing or unknown
    weights."""

    def __init__(
        self, model: MLKVForCausalLM, schedule: Schedule, blocks: Blocks, ctx: Context, precision: str
    ) -> None:
        recipe = schedule.recipe
        self.schedule = schedule
        self.optimizer: Any = None  # torch's own, and accelerate's around it once training has begun
        self.lr_scheduler: Any = None
        dataset = BlockDataset(blocks, schedule.steps * recipe.batch_size, recipe.seed)
        self.watcher = Watcher(schedule, ctx)
        super().__init__(
            model=model,
            args=_arguments(schedule, self.watcher.staging, precision),
            train_dataset=dataset,
            data_collator=dataset.collate,
            callbacks=[self.watcher],
        )
        self.remove_callback(PrinterCallback)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            sharded.enable(self.accelerator, self.args)
            self.is_fsdp_enabled = True

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            parameters = (p for p in (model or self.model).parameters() if p.requires_grad)
            self.optimizer = optimizer(self.schedule.recipe, parameters)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.learning_rate_factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Trainer's own only logs missing and unexpected keys, and goes on with fresh weights in their place.
        weights = load_checked(resume_from_checkpoint).state_dict()
        if self.is_fsdp_enabled:
            sharded.load_weights(self.model, weights)
        else:
            (model or self.model).load_state_dict(weights, strict=True)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Trainer's own. Before the first update a loss that is not finite is the start's fault, not the training's: it
        raises StepFailed that says so."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.state.global_step == 0 and not torch.isfinite(loss):
            raise StepFailed(f"loss = {loss.item()} before the first update: the start computes nothing finite")
        return loss

    # Saving and resuming with weights that processes share (FSDP): Trainer's own checkpoints hold the weights twice and
    # can only be resumed by equally many processes, while a queue may start the next attempt with more or fewer. So the
    # first process collects all weights and optimiser state and writes what one process alone would write.

    def whole_model(self) -> MLKVForCausalLM:
        """The model with all weights. Every process has to call; only the first one's result holds the weights.

        Raises StepFailed where they are not finite: no loss has been computed yet with the last update.
        """
        whole = self._whole_model()
        if reason := non_finite(whole.state_dict()):
            raise StepFailed(f"{reason} after step {self.state.global_step}: {DIVERGED}")
        return whole

    def _whole_model(self) -> MLKVForCausalLM:
        if not self.is_fsdp_enabled:
            return self.model
        weights = sharded.whole_weights(self.model)
        model = MLKVForCausalLM(self.model.config)
        model.generation_config = self.model.generation_config
        if self.is_world_process_zero():
            model.load_state_dict(weights, strict=True)
        return model

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        whole = self.whole_model()
        if not self.is_fsdp_enabled:
            return super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero():
            whole.save_pretrained(output_dir or self.args.output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        state = sharded.whole_state(self.model, self.optimizer.optimizer)
        if self.is_world_process_zero():
            torch.save(state, Path(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        saved = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        sharded.load_state(self.model, self.optimizer.optimizer, saved)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))


def _arguments(schedule: Schedule, folder: Path, precision: str) -> TrainingArguments:
    processes, cpu = int(os.environ.get("WORLD_SIZE", "1")), default_device().type == "cpu"
    try:
        arguments = training_arguments(
            schedule.recipe, schedule.steps, folder, precision=precision, processes=processes, cpu=cpu
        )
    except ValueError as error:
        raise StepFailed(str(error)) from None
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one process, one device: Trainer would split every batch over all visible devices
    return arguments


class Watcher(TrainerCallback):
    """Logs, checks the losses, publishes checkpoints and stops the training when the step should stop.

    A checkpoint is written to `work/staging-<attempt>` and renamed to `work/checkpoint-<step>`, so every
    `checkpoint-*` is whole.
    """

    def __init__(self, schedule: Schedule, ctx: Context) -> None:
        self.schedule, self.ctx = schedule, ctx
        self.staging = ctx.work / f"{STAGING}-{ctx.attempt}"
        self.losses: list[tuple[int, float]] = []
        self.seconds = 0.0
        self.steps_timed = 0
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
        self.losses = [(row["step"], row["loss"]) for row in state.log_history if "loss" in row]

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._since = self._since or (state.global_step, time.monotonic())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        recipe, step = self.schedule.recipe, state.global_step
        stop = _anywhere(self.ctx.should_stop(), args)
        last = step >= self.schedule.steps
        control.should_save = stop or (step % recipe.save_every == 0 and not last)
        control.should_log = control.should_save or last or step % recipe.log_every == 0
        control.should_training_stop = stop or last

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        if "loss" not in logs:
            return
        step = state.global_step
        values = {"loss": logs["loss"], "lr": logs["learning_rate"], "grad_norm": logs.get("grad_norm")}
        done = {"step": step, "steps": self.schedule.steps, "tokens": self.schedule.tokens_by(step)}
        rate = {"tokens_per_second": self._time(step)}
        if state.is_world_process_zero:
            self.ctx.log({**done, **{name: _finite(value) for name, value in values.items()}, **rate})
        for name, value in values.items():
            if value is not None and not math.isfinite(value):
                raise StepFailed(f"{name} = {value} at step {step}: {DIVERGED}")
        self.losses.append((step, logs["loss"]))
        self._check_spike()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # until all have written their random states
        if state.is_world_process_zero:
            # Raises FileNotFoundError if this attempt was suspended and a later one deleted its folder: Trainer makes
            # another and writes the rest of the files, so this checkpoint is not whole.
            (self.staging / OWNER).stat()
            _publish(self.staging / f"checkpoint-{state.global_step}", self.ctx.work)
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
                f"loss = {spike.loss:.3f} at step {spike.step}: a spike over the running median "
                f"{spike.median:.3f} (on_spike = fail)"
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


def _publish(checkpoint: Path, work: Path) -> None:
    """Move a checkpoint into place once it is on disk, then delete older ones."""
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
            if _step_of(other) < _step_of(checkpoint):
                discard(other)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])
