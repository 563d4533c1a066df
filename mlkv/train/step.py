"""Base training and uptraining: one function for both, on a corpus directory, from random weights or a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from ..attention import Attention
from ..context import Context, Interrupted, MetricRow, Outcome, StepFailed
from ..corpus.blocks import Blocks, check_ids, open_blocks
from ..corpus.manifest import read_manifest
from ..corpus.tokenizer import copy_tokenizer
from ..device import default_device, resolve_precision
from ..files import Json
from ..freed import keep_freed_memory
from ..hf import MLKVForCausalLM, load_checked
from ..layout import mha
from ..model import Decoder
from ..shape import DecoderShape
from ..signature import DIVERGED, SPIKES
from ..training_recipes import TrainRecipe
from . import trunk
from .chunked_distillation import ChunkedDistillation
from .distillation import Distillation, open_teacher
from .elastic import Elastic, ElasticTrainer
from .lean import make_lean
from .loss import chunked_cross_entropy
from .memory import is_lean
from .packing import has_kernel, takes_documents
from .schedule import Schedule, divergence, final_loss, spikes
from .trainer import BlockTrainer


def run(
    recipe: TrainRecipe,
    out: Path,
    ctx: Context,
    *,
    corpus: Path,
    start: Path | None,
    shape: DecoderShape | None = None,
    shorter: Path | None = None,
    teacher: Path | None = None,
    elastic: Elastic | None = None,
) -> Outcome:
    """Train `start`, or an MHA decoder of `shape` initialised from `recipe.seed`, and write the checkpoint into `out`.
    With `elastic` each sequence is computed as one of its layouts.

    teacher: where the recipe has one, the base's checkpoint or, if its logits are stored, what the teacher step left.

    Continues from the checkpoint in `ctx.work` if there is one, else from the trunk of `shorter`, the output of a run
    with the same recipe but its last rung (mlkv/train/trunk.py). In torch.distributed's environment the processes share
    `recipe.batch_size`; the first of them logs and saves. Raises StepFailed where corpus and model do not fit, where
    weights or a loss are not finite, or on a spike with `on_spike: fail`; Interrupted when the step should stop.
    """
    torch.set_num_threads(recipe.threads)
    keep_freed_memory()
    model = _model(recipe, start, shape, elastic)
    blocks = _blocks(corpus, model.shape)
    recipe = recipe.settled(default_device().type, blocks.rows.shape[1])
    schedule = Schedule.of(recipe, len(blocks.rows), blocks.tokens)
    precision = resolve_precision(recipe.precision, default_device())
    distillation = _distillation(recipe, teacher, model, blocks, precision)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    continued = trunk.of_shorter(shorter)
    trainer = _train(model, schedule, blocks, ctx, precision, distillation, continued, elastic)
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    whole = trainer.whole_model()
    if trainer.is_world_process_zero():
        whole.config.use_cache = True  # the trainer turned it off, and would so for whoever loads the checkpoint
        whole.save_pretrained(out)
        copy_tokenizer([corpus / "tokenizer"] if start is None else [start, corpus / "tokenizer"], out)
        trunk.leave(schedule, ctx.work, shorter, out)
    counts = {"parameters": parameters, "trained_parameters": trained}
    return _outcome(trainer, precision, counts)


def _model(
    recipe: TrainRecipe, start: Path | None, shape: DecoderShape | None, elastic: Elastic | None
) -> MLKVForCausalLM:
    if start is not None:
        try:
            model = load_checked(start, dtype=torch.float32)
            if elastic:
                elastic.prepare(model)
            return model
        except ValueError as error:
            raise StepFailed(str(error)) from error
    if shape is None:
        raise ValueError("train needs a start checkpoint or a shape")
    return MLKVForCausalLM.from_shape(shape, mha(shape.layers, shape.heads), seed=recipe.seed)


def _blocks(corpus: Path, shape: DecoderShape) -> Blocks:
    manifest = read_manifest(corpus)
    if manifest.sequence_length > shape.context:
        raise StepFailed(
            f"corpus sequence_length = {manifest.sequence_length}: the model takes {shape.context} at most"
        )
    blocks = open_blocks(corpus, "train")
    check_ids(blocks, manifest.vocab_size, shape.vocab_size)
    return blocks


def _distillation(
    recipe: TrainRecipe, teacher: Path | None, model: MLKVForCausalLM, blocks: Blocks, precision: str
) -> Distillation | None:
    if recipe.teacher == "none":
        return None
    if teacher is None:
        raise ValueError(f"teacher = {recipe.teacher}: train needs its checkpoint or its stored predictions")
    kind = ChunkedDistillation if recipe.loss == "chunked" else Distillation
    return kind(recipe, open_teacher(recipe, teacher, model, blocks.rows.shape[1]), precision)


def _train(
    model: MLKVForCausalLM,
    schedule: Schedule,
    blocks: Blocks,
    ctx: Context,
    precision: str,
    distillation: Distillation | None,
    continued: Path | None,
    elastic: Elastic | None,
) -> BlockTrainer:
    ctx.work.mkdir(parents=True, exist_ok=True)
    model.loss_only = True
    model.model.gradient_checkpointing = schedule.recipe.gradient_checkpointing
    _choose_efficiency(schedule.recipe, model, distillation, precision)
    own = (model, schedule, blocks, ctx, precision, distillation)
    trainer = ElasticTrainer(elastic, *own) if elastic else BlockTrainer(*own)
    checkpoint = trainer.watcher.latest() or continued
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        trainer.watcher.close()
    if trainer.state.global_step < schedule.steps:
        raise Interrupted(f"stopped after step {trainer.state.global_step} of {schedule.steps}")
    return trainer


def _choose_efficiency(
    recipe: TrainRecipe, model: MLKVForCausalLM, distillation: Distillation | None, precision: str
) -> None:
    if isinstance(distillation, ChunkedDistillation):
        model.own_loss = distillation.loss_of_hidden
    elif recipe.loss == "chunked":
        model.own_loss = chunked_cross_entropy
    teacher = distillation.teacher if distillation else None
    on_device = has_kernel(default_device())
    for module in [*model.modules(), *(teacher.modules() if teacher else ())]:
        if isinstance(module, Attention):
            module.by_products = recipe.attention == "products"
        if isinstance(module, Decoder):
            takes = takes_documents(module.shape, module.layout, bf16=precision == "bf16")
            module.documents_by_kernel = on_device and takes
    if is_lean(recipe, model.shape, gpu=default_device().type != "cpu"):
        make_lean(model.model)


def _outcome(trainer: BlockTrainer, precision: str, counts: Json) -> Outcome:
    watcher, schedule = trainer.watcher, trainer.schedule
    found_spikes = spikes(watcher.losses, schedule.warmup_steps)
    diverged = divergence(watcher.losses, schedule.warmup_steps)
    tokens = schedule.tokens_by(schedule.steps)
    values = {
        "train_loss": final_loss(watcher.losses),
        **{f"train_{name}": final_loss(rows) for name, rows in watcher.terms.items()},
        "tokens": float(tokens),
        "tokens_per_second": watcher.tokens_per_second(),
        **({"mfu": share} if (share := watcher.mfu_of(watcher.tokens_per_second())) else {}),
        "trained_parameters": float(counts["trained_parameters"]),
    }
    return Outcome(
        [MetricRow(name, value) for name, value in values.items()],
        {
            **counts,
            "steps": schedule.steps,
            "tokens": tokens,
            "precision": precision,
            "device": str(trainer.args.device.type),
            "devices": trainer.args.world_size,
            "threads": schedule.recipe.threads,
            "unstable": bool(found_spikes or diverged),
            SPIKES: [asdict(spike) for spike in found_spikes],
            **({DIVERGED: asdict(diverged)} if diverged else {}),
            **(trainer.distillation.facts if trainer.distillation else {}),
        },
    )
