"""What a metric is called, which way is better, and how it is printed. The one place that knows a direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlkv.registry import Registry
from sweeps.store.schema import CONVERTED

if TYPE_CHECKING:
    from analysis.data.frame import Row

_LONGEST = 1e12
COMPUTED = "computed"
"""The kind of a cell that is computed from others."""
CONVERTED_PREFIX = f"{CONVERTED}."
"""Before a task, in the name of a column: its scores of the conversion before uptraining."""


@dataclass(frozen=True)
class Metric:
    """`scale` turns a stored value into the printed one (accuracies are stored as shares and printed in percent).

    A metric that no step records has `compute`: a function from the cells of one variant (rows of the long table with a
    value; columns in analysis/data/frame.py) to the value and its standard error, which may be None; or None where a
    cell is missing. `everywhere`: every table of scores has a column for it, also where the plan averages other scores.
    """

    label: str
    higher_is_better: bool
    scale: float = 1.0
    digits: int = 3
    compute: Callable[[Sequence[Row]], tuple[float, float | None] | None] | None = None
    everywhere: bool = False
    words: tuple[str, str] | None = None
    """What 0 and 1 are printed as."""

    @property
    def arrow(self) -> str:
        """Which way is better, for a heading."""
        return "↑" if self.higher_is_better else "↓"

    def text(self, value: float, stderr: float | None = None) -> str:
        """`43.94 ± 1.02`: the printed value, with its standard error where there is one."""
        if self.words and value in (0, 1):
            return self.words[int(value)]
        printed = fixed(value * self.scale, self.digits)
        return printed if stderr is None else f"{printed} ± {fixed(stderr * self.scale, self.digits)}"

    def difference(self, value: float) -> str:
        """A signed difference in printed units; `+0.00` never reads `-0.00`."""
        printed = value * self.scale
        if abs(printed) >= _LONGEST:
            return fixed(printed, self.digits, "+")
        return fixed(round(printed, self.digits) + 0.0, self.digits, "+")


def fixed(number: float, digits: int, sign: str = "") -> str:
    """`3,386,411.39`: with so many decimals; `1.2e+30` where that has more digits than anyone reads."""
    return f"{number:{sign},.{digits}f}" if abs(number) < _LONGEST else f"{number:{sign}.3g}"


def _percent(label: str) -> Metric:
    return Metric(label, higher_is_better=True, scale=100.0, digits=2)


def _cost(label: str, digits: int = 3) -> Metric:
    return Metric(label, higher_is_better=False, digits=digits)


def plain_name(name: str) -> str:
    """Without the filter that lm-eval put the answers through: `exact_match,strict-match` → `exact_match`."""
    return name.partition(",")[0]


class _Metrics(Registry[Metric]):
    """A metric by its name, with or without a filter behind it."""

    def __getitem__(self, name: str) -> Metric:
        return super().__getitem__(plain_name(str(name)))


METRICS = _Metrics(
    "metric",
    {
        "accuracy": _percent("accuracy"),
        "acc": _percent("acc"),
        "acc_norm": _percent("acc norm"),
        "acc_bytes": _percent("acc bytes"),
        "exact_match": _percent("exact match"),
        "f1": _percent("F1"),
        "string_match": _percent("string match"),
        "mcc": _percent("MCC"),
        "bits_per_byte": _cost("bits per byte"),
        "byte_perplexity": _cost("byte perplexity"),
        "word_perplexity": _cost("word perplexity", 2),
        "perplexity": _cost("perplexity", 2),
        "loss": _cost("loss"),
        "train_loss": _cost("training loss"),
        "train_kl": _cost("training KL from the base"),
        "train_cross_entropy": _cost("training cross-entropy"),
        "train_hidden": _cost("training distance of hidden states"),
        "nats_per_token": _cost("nats per token"),
        "agreement": Metric("agreement with the base", True, scale=100.0, digits=1, everywhere=True),
        "kl": Metric("KL from the base", False, everywhere=True),
        "copying": Metric("nats per copied token", False, everywhere=True),
        "context_gain": Metric("gain from context (nats)", True, everywhere=True),
        "retrieval_gain": Metric("gain from a retrieved passage (nats)", True, everywhere=True),
        "related_gain": Metric("gain over another passage (nats)", True, everywhere=True),
        "entry_test": Metric("entry test", True, digits=2, everywhere=True, words=("fails", "passes")),
    },
)

TASKS = Registry(
    "task label",
    {
        "arc_easy": "ARC-e",
        "arc_challenge": "ARC-c",
        "boolq": "BoolQ",
        "heldout_choice2": "2-way choice",
        "heldout_choice4": "4-way choice",
        "heldout_cloze": "cloze",
        "hellaswag": "HellaSwag",
        "lambada_openai": "LAMBADA",
        "openbookqa": "OBQA",
        "piqa": "PIQA",
        "sciq": "SciQ",
        "wikitext": "WikiText",
        "winogrande": "WinoGrande",
        "bits_per_byte": "bits per byte",
        "agreement": "agreement with the base",
        "position_loss": "loss by position",
        "domain_code": "code",
        "domain_prose": "prose",
        "domain_recall": "recall text",
        "recall_copy": "copying (words)",
        "recall_kv": "key-value retrieval",
        "recall_associative": "associative recall",
    },
)


def metric(name: str) -> Metric:
    """The metric called `name`. Raises ValueError where its direction is not known: a guess would crown a loser."""
    try:
        return METRICS[name]
    except KeyError:
        raise ValueError(f"metric = {name}: direction unknown; choose from {', '.join(METRICS)}") from None


def task_label(task: str) -> str:
    return TASKS.get(task, task.replace("_", " "))


def score_label(task: str, name: str) -> str:
    """How a (task, metric) is headed: `ARC-e`, `LAMBADA perplexity`, `bits per byte`; of a conversion before uptraining
    `bits per byte, converted`."""
    if task.startswith(CONVERTED_PREFIX):
        return f"{score_label(task.removeprefix(CONVERTED_PREFIX), name)}, {CONVERTED}"
    plain, _, filtered = name.partition(",")
    label = METRICS[plain].label if plain in METRICS else plain.replace("_", " ")
    if filtered:
        label = f"{label} ({filtered})"
    if task in ("bits_per_byte", "agreement", "entry_test", "retrieval", COMPUTED):
        return label
    known = task_label(task)
    return known if name == "acc" or label == known else f"{known} {label}"
