"""The training loop: transformers' Trainer with our data order, optimiser, schedule, checkpoints and stop.

Data order depends on the seed and the step alone, checkpoints appear whole or not at all, and a resumed run continues
bit for bit as an undisturbed one would (on one kind of processor with equally many threads).
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from ..context import Context, StepFailed
from ..corpus.blocks import Blocks
from ..device import default_device
from ..hf import MLKVForCausalLM, load_checked, non_finite
from . import adapters, sharded
from .arguments import optimizer, training_arguments
from .dataset import BlockDataset
from .distillation import Distillation
from .prefetch import obey_parent_alone
from .schedule import Schedule
from .teacher import TaughtDataset
from .utilisation import flops_per_token, mfu
from .watcher import DIVERGED, Watcher


class BlockTrainer(Trainer):
    """Trainer with our data order, optimiser groups, learning rate, and a resume that refuses missing or unknown
    weights."""

    def __init__(
        self,
        model: MLKVForCausalLM,
        schedule: Schedule,
        blocks: Blocks,
        ctx: Context,
        precision: str,
        distillation: Distillation | None = None,
    ) -> None:
        recipe = schedule.recipe
        self.schedule, self.distillation = schedule, distillation
        self.adapters = adapters.choose_trained(model, recipe)
        self.optimizer: Any = None  # torch's own, and accelerate's around it once training has begun
        self.lr_scheduler: Any = None
        stored = distillation.stored if distillation else None
        sequences = schedule.steps * recipe.batch_size
        dataset: BlockDataset | TaughtDataset = BlockDataset(
            blocks, sequences, recipe.seed, apart=recipe.documents == "apart"
        )
        if stored:
            dataset = TaughtDataset(stored, sequences, recipe.seed)
        self.watcher = Watcher(schedule, ctx)
        super().__init__(
            model=model,
            args=_arguments(schedule, self.watcher.staging, precision),
            train_dataset=dataset,
            data_collator=dataset.collate,
            callbacks=[self.watcher],
        )
        self.remove_callback(PrinterCallback)
        flops = flops_per_token(model.shape, model.layout, blocks.rows.shape[1])
        self.watcher.mfu_of = partial(mfu, flops=flops, device=self.args.device, devices=self.args.world_size)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            sharded.enable(self.accelerator, self.args)
            self.is_fsdp_enabled = True

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        if loader.num_workers:
            # accelerate's loader is one around torch's, from which it is made again where a run is resumed. Forked, as
            # Python did by default before 3.14: rows are mapped from disk, and would be copied.
            inner = loader.base_dataloader
            inner.worker_init_fn, inner.multiprocessing_context = obey_parent_alone, "fork"
        return loader

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
        if self.adapters:
            return adapters.load(model or self.model, Path(resume_from_checkpoint))
        weights = load_checked(resume_from_checkpoint).state_dict()
        if self.is_fsdp_enabled:
            sharded.load_weights(self.model, weights)
        else:
            (model or self.model).load_state_dict(weights, strict=True)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Trainer's own, of the model or of the distillation that asks it. Before the first update a loss that is not
        finite is the start's fault, not the training's: it raises StepFailed that says so."""
        computed = partial(self.distillation, model) if self.distillation else model
        loss = super().compute_loss(computed, inputs, return_outputs, num_items_in_batch)
        if self.state.global_step == 0 and not torch.isfinite(loss):
            raise StepFailed(f"loss = {loss.item()} before the first update: the start computes nothing finite")
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.distillation and "loss" in logs:
            logs |= self.distillation.take_means(partial(self.accelerator.reduce, reduction="sum"))
        super().log(logs, start_time)

    # Saving and resuming with weights that processes share (FSDP): Trainer's own checkpoints hold the weights twice and
    # can only be resumed by equally many processes, while a queue may start the next attempt with more or fewer. So the
    # first process collects all weights and optimiser state and writes what one process alone would write.

    def whole_model(self) -> MLKVForCausalLM:
        """The model with all weights, and adapters merged into them. Every process has to call; only the first one's
        result holds the weights. No step can be taken after it.

        Raises StepFailed where they are not finite: no loss has been computed yet with the last update.
        """
        whole = adapters.merge(self.adapters) if self.adapters else self._whole_model()
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
        if self.adapters:
            return self._save_adapters(Path(output_dir or self.args.output_dir or ""))
        whole = self.whole_model()
        if not self.is_fsdp_enabled:
            return super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero():
            whole.save_pretrained(output_dir or self.args.output_dir)

    def _save_adapters(self, folder: Path) -> None:
        weights = adapters.trained(self.model)
        if reason := non_finite(weights):
            raise StepFailed(f"{reason} after step {self.state.global_step}: {DIVERGED}")
        if self.is_world_process_zero():
            adapters.save(weights, folder)

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
