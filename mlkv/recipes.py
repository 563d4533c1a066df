"""The recipe of each kind of step: plain dataclasses, which YAML fills in.

A `runtime_field` says where or how fast, and does not change the result: it stays out of a step's identity.
Cross-field rules raise ValueError in `__post_init__`; types, ranges and choices are checked where YAML is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from .cache.formats import AS_COMPUTED, CacheName
from .merges import MERGES, WIDENINGS
from .patterns import PATTERNS
from .registry import NameOf
from .shape import FLOAT32, INT32, INT64, Choices, DecoderShape, Dimension, Positive, Real, added

Merge = Annotated[str, NameOf(MERGES)]
Widening = Annotated[str, NameOf(WIDENINGS)]
Pattern = Annotated[str, NameOf(PATTERNS)]
Count = Annotated[int, Ge(0), Le(INT64)]
Share = Annotated[float, Ge(0), Le(1)]
Factor = Annotated[float, Ge(0), Le(FLOAT32)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
"""What every library takes; numpy takes no more."""
Threads = Annotated[int, Gt(0), Le(8192)]
"""Linux has no more processors (its NR_CPUS)."""
ADDRESSES = 2**47
"""Bytes that a process can address on a 64-bit machine."""


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
FEWEST_ITEM_TOKENS = 5
"""Of which a fifth is what a task item asks for (mlkv/corpus/items.py)."""

FEWEST_RECALL_TOKENS = 32
"""For the nearest items at least (mlkv/corpus/recall_items.py)."""


def runtime_field(default: Any) -> Any:
    """A field that changes where or how fast a step runs, not its result."""
    return field(default=default, metadata={"runtime": True})


@dataclass(frozen=True)
class CorpusRecipe(Choices):
    """Text → tokenizer → packed token blocks, with documents held out by a hash of their name or content."""

    source: Literal["python_stdlib", "text_files", "files", "hf"] = "python_stdlib"
    """`files`: a document for each text file and for each row of a file of rows, by suffix. `text_files`: each file is
    a document. `hf`: a dataset of the hub, or a copy of one."""
    files: tuple[str, ...] = runtime_field(())
    """Paths and globs, and for `files` also folders; their content is what counts."""
    dataset: str | None = runtime_field(None)
    subset: str | None = None
    split: str = "train"
    revision: str | None = runtime_field(None)
    text_column: str = "text"
    take: Positive | None = None
    """`hf`, `files`: the first so many documents after a seeded shuffle."""
    fraction: Annotated[float, Gt(0), Le(1)] | None = None
    """`hf`, `files`: this share of the documents, chosen by a hash."""
    shuffle_buffer: Positive = 10_000
    tokenizer: Literal["train", "model", "published"] | None = None
    """Trained on this text; the base model's; or that of `tokenizer_from`. Unset: the base model's if its weights are
    converted, as they know no other tokens; else one trained on this text."""
    tokenizer_from: str | None = runtime_field(None)
    """A directory, or the name of a hub model, at `tokenizer_revision`."""
    tokenizer_revision: str | None = runtime_field(None)
    vocab_size: Dimension = 2048
    sequence_length: Annotated[int, Ge(2), Le(INT32)] = 256
    """At least 2, as nothing predicts a row's first token."""
    packing: Literal["stream", "whole_documents"] = "stream"
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.05
    task_items: Count = 600
    """Items made from held-out documents for each of the tasks in conf/tasks."""
    seed: Seed = 42
    recall: Annotated[float, Ge(0), Lt(1)] = added(0.0)
    """This share of the training rows is generated: copies, and keys with values (mlkv/corpus/recall.py)."""
    recall_items: Count = added(0)
    """Items at each distance for each of the tasks recall_copy, recall_kv and recall_associative."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == "hf" and not self.dataset:
            raise ValueError("dataset is empty: source hf needs the name of a hub dataset")
        if self.source in ("text_files", "files") and not self.files:
            raise ValueError(f"files is empty: source {self.source} needs at least one path or glob")
        if self.tokenizer is None and self.tokenizer_from:
            raise ValueError(f"tokenizer_from = {self.tokenizer_from}: set tokenizer = published to use it")
        if self.tokenizer == "published" and not self.tokenizer_from:
            raise ValueError(
                "tokenizer_from is empty: tokenizer published needs a directory or the name of a hub model"
            )
        if self.take and self.fraction:
            raise ValueError("take and fraction are both set: choose one")
        if self.task_items and self.sequence_length < FEWEST_ITEM_TOKENS:
            raise ValueError(
                f"sequence_length = {self.sequence_length}: task items take at least {FEWEST_ITEM_TOKENS} tokens; "
                "task_items = 0 makes none"
            )
        if (self.recall or self.recall_items) and self.sequence_length < FEWEST_RECALL_TOKENS:
            name, value = ("recall", self.recall) if self.recall else ("recall_items", self.recall_items)
            raise ValueError(
                f"{name} = {value:g}: generated text needs rows of at least {FEWEST_RECALL_TOKENS} tokens "
                f"(sequence_length = {self.sequence_length})"
            )


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
    rungs: tuple[Positive, ...] = added(())
    """Lengths, in steps, of runs that each continue the one before; the last one is this run's. `warmup` is a share of
    the first."""
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
        if self.rungs and self.schedule != "wsd":
            raise ValueError(
                f"rungs = [{listed}]: a run with schedule {self.schedule} is not continued, as its rate depends on its "
                "length; set schedule=wsd"
            )
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs = [{listed}]: must rise from each to the next")
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(f"decay = {self.decay:g}: with warmup {self.warmup:g} more than the whole run")

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
class ConvertRecipe(Choices):
    """How a base becomes a checkpoint with fewer KV heads, or (`scratch`) how one is initialised without a base.

    `none` makes no checkpoint: shapes are measured, which takes no weights."""

    start: Literal["convert", "scratch", "none"] = "convert"
    merge: Merge = "mean"
    widening: Widening = "none"
    seed: Seed = 42
    grouping: Literal["adjacent", "similar"] = added("adjacent")
    """Which heads of a layer become one: neighbours, or those that lose least by it on the calibration."""


@dataclass(frozen=True)
class CalibrateRecipe:
    """What a base computes on a little training text. Only merges that align or weigh heads, and a grouping by
    similarity, need it."""

    tokens: Positive = 8192
    """At least this many, in whole rows of the corpus."""
    seed: Seed = 42
    """Which rows."""
    threads: Threads = runtime_field(1)


@dataclass(frozen=True)
class SimilarityRecipe:
    """How alike the layers and heads of a base are on held-out text."""

    windows: Count = 0
    """So many, of the corpus's sequence length, spread evenly over the held-out text; 0: no similarities."""
    queries: Positive = 32
    """Places in each window whose attention is compared."""
    damage: bool = True
    """Also what it costs when a layer reads the keys and values of another."""
    batch_size: Positive = runtime_field(8)
    """Windows at once."""
    threads: Threads = runtime_field(1)


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


@dataclass(frozen=True)
class EvaluateRecipe(Choices):
    """One lm-eval task on one checkpoint, or `bits_per_byte` on the corpus's held-out documents."""

    task: str
    few_shot: Count | dict[str, Count] | None = None
    """Examples before each question; for a group whose tasks differ in it, a number for each task. Unset: the task's
    own."""
    limit: Positive | None = None
    seed: Seed = 1234
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    batch_size: Positive | Literal["auto"] = runtime_field(32)
    """`auto`: as many as the memory that is free has room for, halved where it runs out all the same."""
    threads: Threads = runtime_field(1)
    cache: CacheName = added(AS_COMPUTED)
    """Attention reads keys and values as a cache of this format gives them back."""


@dataclass(frozen=True)
class MeasureRecipe(Choices):
    """Decode memory and speed at given batch sizes and contexts. No weights: random ones of the right shape."""

    batch_sizes: tuple[Dimension, ...] = (1, 8)
    contexts: tuple[Dimension, ...] = (256,)
    new_tokens: Dimension = 16
    protocol: Literal["prefill", "warm", "filled"] = added("prefill")
    """`prefill`: a prompt of `contexts` tokens into a cache allocated at its full length. `warm`: the same cache, which
    counts as filled without a prompt. `filled`: a cache that begins with `contexts` random keys and values and grows
    with every token (arXiv 2406.09297's code)."""
    repeats: Annotated[int, Gt(0), Le(1_000_000)] = 3
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Threads = 1
    memory_gib: Factor = added(0.0)
    """The largest batch is searched that fits in so many GiB, with the weights (mlkv/measure/largest_batch.py). 0: in
    all memory of a GPU, and on a CPU not at all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, numbers in (("batch_sizes", self.batch_sizes), ("contexts", self.contexts)):
            if twice := [number for number in numbers if numbers.count(number) > 1]:
                raise ValueError(f"{name} has {twice[0]} more than once: a cell is measured once")
        if self.batch_sizes and not self.contexts:
            raise ValueError("contexts is empty: set at least one, or choose measure = none")

    def check_fit(self, shape: DecoderShape) -> None:
        """Raises ValueError where learned positions end before the longest context."""
        longest = max(self.contexts, default=0)
        if self.batch_sizes and shape.positions == "learned" and longest + self.new_tokens > shape.context:
            raise ValueError(f"contexts = {longest}: with new_tokens it exceeds the {shape.context} positions")
