"""Tasks that a function scores, without lm-eval: a new one is one row. No torch: plans read the names."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..context import MetricRow
from ..registry import Registry
from ..signature import Chance

if TYPE_CHECKING:
    from ..hf import MLKVForCausalLM
    from ..recipes import EvaluateRecipe
    from .batch_size import BatchSize
    from .outcomes import Outcomes


@dataclass(frozen=True)
class Scoring:
    """What the function of a task gets.

    model: the checkpoint's, in evaluation mode; autocast to `precision` (fp32 or bf16) is on. checkpoint: its folder,
    with its tokenizer. corpus: the corpus step's output, for tasks that are made of it. progress: is called with how
    many samples are done and how many there are, and raises Interrupted where the step has to stop. base: the folder of
    the untouched base, for tasks that compare a checkpoint with it; `load_model` of mlkv/evaluate/models.py loads it.
    """

    recipe: EvaluateRecipe
    model: MLKVForCausalLM
    checkpoint: Path
    corpus: Path | None
    precision: str
    progress: Callable[[int, int], None]
    base: Path | None = None

    @property
    def batch_size(self) -> BatchSize:
        """How many texts a pass reads: `batch_size.at(TOKENS)` of so many tokens each, whatever the recipe says."""
        from .batch_size import BatchSize

        return BatchSize.of(self.recipe.batch_size, self.model)


@dataclass(frozen=True)
class Scores:
    """What it returns. `outcomes`: by metric, what each sample contributed, so that two checkpoints can be compared on
    the same samples; left out, tables compare by standard errors alone. `chance`: by metric, what it is without a
    model; left out, nothing says where a score has collapsed."""

    metrics: list[MetricRow]
    outcomes: Mapping[str, Outcomes] = field(default_factory=dict)
    chance: Mapping[str, Chance] = field(default_factory=dict)


Score = Callable[[Scoring], Scores]


@dataclass(frozen=True)
class Task:
    """`score`: a function, or `module:function` as text where importing the module should wait until a step runs.
    `of_corpus`: its samples are made of the corpus's held-out documents. `of_base`: it compares a checkpoint with the
    base that this was made of; the untouched base and what is trained from scratch are not scored. `of_library`: its
    text is the standard library of this Python, whose digest is part of the step."""

    score: str | Score
    of_corpus: bool = False
    of_base: bool = False
    of_library: bool = False

    def scores(self, scoring: Scoring) -> Scores:
        function = cast(Score, pkgutil.resolve_name(self.score)) if isinstance(self.score, str) else self.score
        return function(scoring)


BITS_PER_BYTE, AGREEMENT = "bits_per_byte", "agreement"
CONTEXT_GAIN, COPYING, ENTRY_TEST = "context_gain", "copying", "entry_test"
POSITION_LOSS, RETRIEVAL = "position_loss", "retrieval"
DOMAIN_CODE, DOMAIN_PROSE, DOMAIN_RECALL = "domain_code", "domain_prose", "domain_recall"
TASKS = Registry(
    "task",
    {
        BITS_PER_BYTE: Task("mlkv.evaluate.bits:score", of_corpus=True),
        AGREEMENT: Task("mlkv.evaluate.agreement:score", of_corpus=True, of_base=True),
        CONTEXT_GAIN: Task("mlkv.evaluate.entry:context_gain", of_corpus=True),
        COPYING: Task("mlkv.evaluate.entry:copying", of_corpus=True),
        ENTRY_TEST: Task("mlkv.evaluate.entry:entry_test", of_corpus=True),
        POSITION_LOSS: Task("mlkv.evaluate.position_loss:score", of_corpus=True),
        RETRIEVAL: Task("mlkv.evaluate.retrieval:score", of_corpus=True),
        DOMAIN_CODE: Task("mlkv.evaluate.domains:code", of_corpus=True, of_library=True),
        DOMAIN_PROSE: Task("mlkv.evaluate.domains:prose", of_corpus=True, of_library=True),
        DOMAIN_RECALL: Task("mlkv.evaluate.domains:recall", of_corpus=True),
    },
)
