"""The recipe of each kind of step: plain dataclasses, which YAML fills in. Those of trainings: training_recipes.py.

A `runtime_field` says where or how fast, and does not change the result: it stays out of a step's identity.
Cross-field rules raise ValueError in `__post_init__`; types, ranges and choices are checked where YAML is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from .cache.formats import AS_COMPUTED, CacheName
from .merges import MERGES, WIDENINGS
from .patterns import PATTERNS
from .registry import NameOf
from .shape import FLOAT32, INT32, INT64, Choices, DecoderShape, Dimension, Positive, added

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


FEWEST_ITEM_TOKENS = 5
"""Of which a fifth is what a task item asks for (mlkv/corpus/items.py)."""

FEWEST_RECALL_TOKENS = 32
"""For the nearest items at least (mlkv/corpus/recall_items.py)."""
RECALL_ROWS = "half of them of 64 tokens, copies in parts of 64"
"""How generated rows are drawn (mlkv/corpus/recall.py): part of the identity of a corpus that has any."""


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
    lengths: tuple[Dimension, ...] = added(())
    """Tokens of the questions of a task of RULER, each length a member of its own."""


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
