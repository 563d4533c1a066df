"""The recipes of trainings (base, uptraining, elastic) and of what a teacher stores for them; see recipes.py."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from .recipes import Count, Factor, Pattern, Seed, Share, Threads, runtime_field
from .shape import FLOAT32, INT64, Choices, Dimension, Positive, Real, added

LENGTHS = ("steps", "tokens", "epochs", "rungs")
"""The fields of which one sets the length of a training."""
READ_WITH = {
    "decay": ("schedule", "wsd"),
    "lora_rank": ("train", "lora"),
    "lora_alpha": ("train", "lora"),
    "teacher_logits": ("teacher", "base"),
    "temperature": ("teacher", "base"),
    "distill_weight": ("teacher", "base"),
    "hidden_weight": ("teacher", "base"),
}
"""Fields of a training that are read under one value of another field alone."""
PLAIN = {"loss": "whole", "attention": "kernel", "compile": False}
"""What an unset field of a training's efficiency means."""
LONGEST_BY_PRODUCTS = 512
"""Tokens of a row, up to which attention by matrix products is the faster one on a CPU (mlkv/attention.py)."""


@dataclass(frozen=True)
class TrainRecipe(Choices):
    """One loop for base training and uptraining. Exactly one of LENGTHS is set."""

    steps: Count | None = None
    tokens: Positive | None = None
    epochs: Annotated[float, Gt(0), Le(1e9)] | None = None
    batch_size: Dimension = 16
    """Sequences per optimiser step, over all devices."""
    lr: Real = 1e-3
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """`wsd` (warmup, stable, decay; arXiv 2404.06395): the peak rate until the last `decay` of the steps, in which it
    falls."""
    warmup: Share = 0.1
    min_lr_ratio: Share = 0.0
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.95
    eps: Annotated[float, Ge(1e-37), Le(FLOAT32)] = 1e-8
    """Less is 0 in float32, and a weight without a gradient would be divided by it."""
    weight_decay: Factor = 0.1
    grad_clip: Factor = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 autocast where that is faster on the processor, else fp32."""
    threads: Threads = 1
    """Compute threads on a CPU: part of the identity, because the order of sums depends on them."""
    seed: Seed = 42
    micro_batch: Dimension | None = runtime_field(None)
    """At most so many sequences at once on a device; unset: its whole share of the batch."""
    strategy: Literal["ddp", "fsdp"] = runtime_field("ddp")
    """Where several processes train together: each has all weights (`ddp`), or a share of them (`fsdp`)."""
    gradient_checkpointing: bool = runtime_field(False)
    save_every: Positive = runtime_field(50)
    log_every: Positive = runtime_field(5)
    on_spike: Literal["record", "fail"] = runtime_field("record")
    rungs: tuple[Count, ...] = added(())
    """Lengths, in steps, of runs that each continue the one before; the last one is this run's. `warmup` is a share of
    the first. 0 in front is the model before any training."""
    decay: Share = added(0.2)
    """`wsd` alone. A fifth is enough (arXiv 2405.18392)."""
    train: Literal["all", "kv", "lora"] = added("all")
    """The weights that are trained: all, the owners' key and value projections, or low-rank adapters of attention's
    projections (mlkv/train/adapters.py)."""
    lora_rank: Dimension = added(16)
    """`lora` alone."""
    lora_alpha: Real = added(32.0)
    """`lora` alone: adapters are scaled by `lora_alpha / lora_rank`."""
    teacher: Literal["none", "base"] = added("none")
    """`base`: the converted model learns to predict what its untouched base predicts (mlkv/train/distillation.py)."""
    teacher_logits: Literal["online", "stored"] = added("online")
    """The teacher computes them at every step, or a step of its own computed the largest ones before."""
    temperature: Annotated[float, Ge(1e-3), Le(1e3)] = added(1.0)
    """Of both distributions that are compared."""
    distill_weight: Share = added(1.0)
    """Of the KL divergence; the rest is that of the text's cross-entropy."""
    hidden_weight: Factor = added(0.0)
    """Of the distance between the hidden states of model and teacher, added to the loss."""
    loss: Literal["whole", "chunked"] | None = added(None)
    """`chunked`: over some hundred tokens at a time, so that no logits are kept (mlkv/train/loss.py). Unset: `whole`,
    or what `efficiency` says."""
    attention: Literal["kernel", "products"] | None = added(None)
    """`products`: by matrix products, which in bf16 are faster on a CPU where rows are short (mlkv/attention.py).
    Unset: `kernel`, or what `efficiency` says."""
    compile: bool | None = added(None)
    """torch.compile the model. Unset: not, or what `efficiency` says."""
    documents: Literal["together", "apart"] = added("together")
    """`apart`: of the documents that share a row, each attends to itself alone, at positions of its own."""
    efficiency: Literal["none", "auto"] = added("none")
    """`auto`: loss, attention and compile that are unset become what suits the device, when a sweep is planned. They
    change the bits, so they are part of the identity, and this is not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in LENGTHS if getattr(self, name) is not None and (name != "rungs" or self.rungs)]
        if len(given) != 1:
            raise ValueError(f"set exactly one of {', '.join(LENGTHS)} (set: {', '.join(given) or 'none'})")
        self._check_rungs()
        if self.hidden_weight and self.teacher_stored:
            raise ValueError(
                f"hidden_weight = {self.hidden_weight:g}: stored logits have no hidden states; "
                "set teacher_logits = online"
            )
        if self.documents == "apart" and self.teacher_stored:
            raise ValueError(
                "teacher_logits = stored: was computed of whole rows, documents together; with documents = apart set "
                "teacher_logits = online"
            )
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch = {self.micro_batch}: must divide batch_size {self.batch_size}")
        if self.last_step and self.last_step * self.batch_size > INT64:
            name = "rungs" if self.rungs else "steps"
            raise ValueError(f"{name} = {self.last_step}: with batch_size {self.batch_size} more than 2^63 sequences")

    def _check_rungs(self) -> None:
        listed = ", ".join(map(str, self.rungs))
        if len(self.trained_rungs) > 1 and self.schedule != "wsd":
            raise ValueError(
                f"rungs = [{listed}]: a run with schedule {self.schedule} is not continued, as its rate depends on its "
                "length; set schedule=wsd"
            )
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs = [{listed}]: must rise from each to the next")
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(f"decay = {self.decay:g}: with warmup {self.warmup:g} more than the whole run")

    @property
    def trained_rungs(self) -> tuple[int, ...]:
        """The rungs without that before any training."""
        return tuple(rung for rung in self.rungs if rung)

    @property
    def last_step(self) -> int | None:
        """The length in steps; None where it depends on the corpus."""
        return self.rungs[-1] if self.rungs else self.steps

    def trunk_of(self, steps: int) -> int:
        """Of a `wsd` run of so many steps, those before the decay: what a longer run continues."""
        return steps - round(self.decay * steps)

    def without_unread(self) -> TrainRecipe:
        """The same run, with the fields that it does not read at their neutral value."""
        neutral: dict[str, Any] = {f.name: f.metadata.get("neutral") for f in fields(self)}
        return replace(self, **{name: neutral[name] for name in READ_WITH if not self.reads(name)})

    def settled(self, device: str, sequence_length: int) -> TrainRecipe:
        """The same run with its efficiency decided, by the kind of device and never by a timing: a plan says the same
        everywhere. What is as unset is left unset.

        device: `cpu` or `cuda`.
        """
        chosen: dict[str, Any] = {}
        if self.efficiency == "auto":
            short = sequence_length <= LONGEST_BY_PRODUCTS and self.precision != "fp32" and self.documents != "apart"
            on_cpu = {"attention": "products" if short else "kernel"}
            chosen = {"loss": "chunked", **({"compile": True} if device == "cuda" else on_cpu)}
        given = {name: getattr(self, name) for name in PLAIN}
        values = {name: chosen.get(name) if value is None else value for name, value in given.items()}
        decided: dict[str, Any] = {name: None if value == PLAIN[name] else value for name, value in values.items()}
        return replace(self, efficiency="none", **decided)

    def reads(self, name: str) -> bool:
        """Whether the value of a field means anything for this run."""
        key, value = READ_WITH.get(name, (name, getattr(self, name)))
        return bool(getattr(self, key) == value)

    @property
    def teacher_online(self) -> bool:
        """Whether a teacher computes at every step."""
        return self.teacher != "none" and self.teacher_logits == "online"

    @property
    def teacher_stored(self) -> bool:
        return self.teacher != "none" and self.teacher_logits == "stored"

    def tokens_of(self, sequence_length: int) -> int | None:
        """The number of tokens that it trains on; None for epochs, which depend on the corpus."""
        if self.epochs is not None:
            return None
        return self.tokens or (self.last_step or 0) * self.batch_size * sequence_length

    def micro_batch_size(self, processes: int) -> int:
        """Sequences that each of the processes computes at once. Raises ValueError where they cannot share a batch."""
        share = self.batch_size // processes
        size = min(self.micro_batch or share, share)
        if not size or self.batch_size % (size * processes):
            micro = self.micro_batch or "unset"
            raise ValueError(
                f"batch_size = {self.batch_size}: {processes} processes with micro_batch {micro} cannot share it evenly"
            )
        return size


@dataclass(frozen=True)
class ElasticRecipe(TrainRecipe):
    """One training in which layouts are sampled, so that each of them can be cut from it by a conversion."""

    pattern: Pattern = "even"
    """The rule that places the KV layers."""
    kv_layers: tuple[Dimension, ...] = ()
    """Of each layout, with its `kv_heads` in the same place of the other list; the base's own layout is always among
    them. Where one list is empty, each entry of the other goes with every divisor of the base's layers, or with every
    number that its KV heads can be merged into."""
    kv_heads: tuple[Dimension, ...] = ()
    layouts_per_step: Dimension = 1
    """Layouts in one optimizer step, for equal parts of its batch."""
    align: bool = True
    """Turn the heads that merge into one frame before the training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kv_layers and self.kv_heads and len(self.kv_layers) != len(self.kv_heads):
            raise ValueError(
                f"kv_layers has {len(self.kv_layers)} entries and kv_heads {len(self.kv_heads)}: they go in pairs, or "
                "one of them is empty"
            )
        if self.batch_size % self.layouts_per_step:
            raise ValueError(f"layouts_per_step = {self.layouts_per_step}: must divide batch_size {self.batch_size}")
        if self.strategy != "ddp":
            raise ValueError(f"strategy = {self.strategy}: elastic training takes ddp")
        if self.rungs:
            raise ValueError(f"rungs = {list(self.rungs)}: an elastic training has one length; only uptrain has rungs")
        if self.teacher_stored:
            raise ValueError("teacher_logits = stored: the teacher of an elastic training computes them; set online")
        if self.hidden_weight:
            raise ValueError(f"hidden_weight = {self.hidden_weight:g}: an elastic training learns from logits alone")
        if self.compile:
            raise ValueError("compile = True: an elastic training computes another model for every sequence; unset it")
        if self.train == "lora":
            raise ValueError("train = lora: an elastic training merges the weights themselves; valid: all, kv")


@dataclass(frozen=True)
class TeacherRecipe(Choices):
    """The largest predictions of a base on training text, computed once for all runs that learn from them."""

    top_k: Dimension = 1024
    """At most so many tokens have their probability stored at each place; that of all others is stored as one
    number."""
    tokens: Positive | None = None
    """So many, padding included, in whole rows of the corpus; all of them if it has fewer. Unset: as many as a run
    trains on."""
    seed: Seed = 42
    """Which rows."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    batch_size: Positive = runtime_field(8)
    """Rows at once."""
    threads: Threads = runtime_field(1)

    def for_run(self, run: TrainRecipe, sequence_length: int, vocab_size: int) -> TeacherRecipe:
        """With what is left to the run and the vocabulary filled in; `tokens` stays unset for a run that counts
        epochs."""
        batch = run.batch_size * sequence_length
        wanted = run.tokens_of(sequence_length)
        whole = None if wanted is None else -(-wanted // batch) * batch
        return replace(self, top_k=min(self.top_k, vocab_size), tokens=self.tokens or whole)

    def row_bytes(self, sequence_length: int, vocab_size: int) -> int:
        """What a row of the corpus takes on disk, with its tokens (mlkv/train/teacher.py says how)."""
        known, id_bytes = min(self.top_k, vocab_size), 2 if vocab_size < 2**16 else 4
        ids = 0 if known == vocab_size else id_bytes * known
        return sequence_length * id_bytes + (sequence_length - 1) * (ids + 2 * (known + 1))
