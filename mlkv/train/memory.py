"""Memory of a training on each of its devices, by formula: weights, gradients, optimizer, activations, logits.

It counts tensors. What a device needs besides (the CUDA context and kernels, fragments of the allocator, NCCL's
buffers) is some 1 to 2 GiB a GPU and not in here. Needs no torch: plans count with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from math import prod

from ..freed import KEPT
from ..layout import KVLayout
from ..shape import DecoderShape
from ..training_recipes import TrainRecipe
from .activations import BF16, FP32, Body, Pass
from .parts import is_adapted, is_trained

CHUNK = 256
"""Tokens whose logits exist at once where the loss is chunked: matrix products are as fast as over all tokens from here
on (mlkv/train/loss.py), and more tokens only take more memory."""
ROWS = 16
"""Those of them whose logits exist in float32 at once on a CPU: they fit its cache."""
_MOMENTS = 2
"""Of AdamW, for each weight that is trained."""
_TEACHER_LOGITS = 5
"""Tensors `[B, T, V]` in float32 that the comparison with a teacher adds to the loss at most at once, two more at
another temperature than 1, and two more where the text counts too (mlkv/train/distillation.py)."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device.

    weights: in float32, and adapters. copies: in bf16 for matrix products; or the gathered weights of two layers and of
    embedding and head, and the gradients of the largest on their way to the other processes (`fsdp`). gradients: twice
    with `ddp` in several processes, whose buckets hold them again. activations: what the backward pass needs, with the
    layer that is computed again under gradient checkpointing. logits: the head, the loss and their gradients. teacher:
    the base, where it is asked online, and what is compared with it.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    copies: int = 0
    teacher: int = 0

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def is_lean(recipe: TrainRecipe, shape: DecoderShape, *, gpu: bool) -> bool:
    """Whether a training computes again what it gets at little cost, and returns freed memory within a step
    (mlkv/train/lean.py): its bits stay, its memory counts, and its steps are long beside that. So it is where the loss
    is chunked and a gradient over the vocabulary is so large that freed memory has no room for it."""
    large = shape.vocab_size * shape.width * FP32 >= KEPT
    return large and recipe.loss == "chunked" and not (gpu or recipe.compile or recipe.gradient_checkpointing)


def training_memory(
    recipe: TrainRecipe,
    shape: DecoderShape,
    layout: KVLayout,
    length: int,
    *,
    bf16: bool,
    processes: int = 1,
    gpu: bool = True,
    base_parameters: int = 0,
) -> TrainingMemory:
    """Of rows of `length` tokens, in one of `processes` that share a batch.

    gpu: on CUDA, where norms are one kernel. base_parameters: of the base, if it is the teacher.
    """
    fsdp = recipe.strategy == "fsdp" and processes > 1
    shards = processes if fsdp else 1
    sizes = dict(_weights(shape, layout))
    trained = {name: size for name, size in sizes.items() if is_trained(name, recipe.train)}
    adapters = [size for name, size in sizes.items() if _rank(recipe, name.removesuffix(".weight"))]
    added = sum(recipe.lora_rank * (out + into) for out, into in adapters)
    updated = _share(trained.values(), shards) + added
    passed = pass_of(recipe, shape, layout, length, bf16=bf16, processes=processes, gpu=gpu)
    body = passed.body(recipe.gradient_checkpointing)
    rows = passed.batch * (length - 1)
    if recipe.loss == "chunked":
        number = min(rows, CHUNK) * shape.vocab_size * FP32
        logits = passed.chunked_head(CHUNK, CHUNK if gpu or recipe.teacher != "none" else ROWS)
    else:
        number = rows * shape.vocab_size * FP32
        # In the backward pass the gradients of the log-probabilities and of the logits lie beside the former.
        logits = passed.head() + 2 * number
    activations = body.kept + max(0, body.again + passed.backward_of_layer() - logits)
    return TrainingMemory(
        weights=(_share(sizes.values(), shards) + added) * FP32,
        gradients=updated * FP32 * (2 if processes > 1 and not fsdp else 1),
        optimizer=updated * FP32 * _MOMENTS,
        activations=activations,
        logits=logits,
        copies=_gathered(sizes, BF16 if bf16 else FP32) if fsdp else _copies(body, trained, recipe, bf16),
        teacher=_teacher(recipe, number, base_parameters, passed.tokens * shape.width * shape.layers),
    )


def pass_of(
    recipe: TrainRecipe, shape: DecoderShape, layout: KVLayout, length: int, *, bf16: bool, processes: int, gpu: bool
) -> Pass:
    """A forward pass of one of the processes."""
    fsdp = recipe.strategy == "fsdp" and processes > 1
    return Pass(
        shape,
        layout,
        recipe.micro_batch_size(processes),
        length,
        trained=lambda name: is_trained(name, recipe.train),
        rank_of=lambda module: _rank(recipe, module),
        compute=BF16 if bf16 else FP32,
        stream=BF16 if bf16 and fsdp else FP32,
        copies=not fsdp,
        fused=gpu,
        products=recipe.attention == "products",
        apart=recipe.documents == "apart",
        lean=is_lean(recipe, shape, gpu=gpu),
    )


def _weights(shape: DecoderShape, layout: KVLayout) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, size in shape.weights(layout).items():
        if not name.endswith(".planes") and not (shape.tied and name == "head.weight"):
            yield name, size


def _rank(recipe: TrainRecipe, module: str) -> int:
    return recipe.lora_rank if recipe.train == "lora" and is_adapted(module) else 0


def _share(sizes: Iterable[tuple[int, ...]], shards: int) -> int:
    """Numbers in the first process's share: each weight is cut along its rows."""
    return sum(-(-size[0] // shards) * prod(size[1:]) for size in sizes)


def _copies(body: Body, trained: dict[str, tuple[int, ...]], recipe: TrainRecipe, bf16: bool) -> int:
    """autocast holds a copy of each matrix that is trained until the forward pass ends, and the backward pass those
    that it needs."""
    cached = sum(prod(size) for name, size in trained.items() if len(size) > 1 and not name.startswith("embed"))
    if not (bf16 and recipe.gradient_checkpointing):
        return body.copies
    return cached * BF16 + body.again_copies


def _gathered(sizes: dict[str, tuple[int, ...]], compute: int) -> int:
    units: dict[str, int] = {}
    for name, size in sizes.items():
        unit = ".".join(name.split(".")[:2]) if name.startswith("blocks.") else ""
        units[unit] = units.get(unit, 0) + prod(size)
    root, layer = units.pop(""), max(units.values())
    return compute * (root + 2 * layer) + (compute + FP32) * max(root, layer)


def _teacher(recipe: TrainRecipe, number: int, base_parameters: int, hidden: int) -> int:
    """number: bytes of the logits in float32. hidden: numbers in the hidden states behind all layers."""
    if recipe.teacher == "none":
        return 0
    states = 2 * hidden * FP32 if recipe.hidden_weight else 0
    tensors = _TEACHER_LOGITS + 2 * (recipe.temperature != 1) + 2 * (recipe.distill_weight < 1)
    return number * tensors + states + (base_parameters * FP32 if recipe.teacher_online else 0)
