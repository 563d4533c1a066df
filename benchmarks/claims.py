"""What this project says of its speed: each claim, the benchmark that shows it, and the bar it has to meet.

docs/performance.md is the table of these claims with the newest results (`python -m benchmarks --table`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Needs = Literal["cpu", "gpu", "slurm"]
"""`slurm`: its daemons, to be started as root."""


@dataclass(frozen=True)
class Claim:
    """`benchmark`: its file's name without .py. `key`: where the result has the number, parts joined
    by points. `at_least` or `at_most` is the bar."""

    what: str
    beside: str
    benchmark: str
    key: str
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "×"
    needs: Needs = "cpu"

    @property
    def options(self) -> tuple[str, ...]:
        """What its benchmark is run with."""
        return ("--device", "cuda") if self.needs == "gpu" else OPTIONS.get(self.benchmark, ())

    @property
    def result(self) -> str:
        """The name of its benchmark's results."""
        return f"{self.benchmark}-cuda" if self.needs == "gpu" else self.benchmark

    def met(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    @property
    def bar(self) -> str:
        sign, value = ("≥", self.at_least) if self.at_least is not None else ("≤", self.at_most)
        return f"{sign} {value:g} {self.unit}".rstrip()


OPTIONS: dict[str, tuple[str, ...]] = {
    "quickstart": ("--before", "3fd85bb"),
    "report": ("--before", "3fd85bb"),
    "search": ("--slow-runs", "50"),
    "starting": ("--steps", "650", "--only-forked"),
    "tracking": ("ratio",),
}
"""What a benchmark is run with, where its defaults do not show the claim."""

CLAIMS: tuple[Claim, ...] = (
    Claim("plan 1,000 variants", "its own seconds", "plan", "plan_seconds", at_most=5, unit="s"),
    Claim("plan 1,000 variants", "composing each with Hydra", "plan", "ratio", at_most=0.11),
    Claim("its power, at three seeds", "planning them", "plan", "power_share", at_most=0.1),
    Claim("`mlkv --help`", "its own seconds", "again", "help_seconds", at_most=0.2, unit="s"),
    Claim("`mlkv status` of a finished sweep", "its own seconds", "again", "status_seconds", at_most=0.8, unit="s"),
    Claim("the quickstart's line again", "its own seconds", "again", "again_seconds", at_most=1.5, unit="s"),
    Claim("a line of 5,000 steps again", "its own seconds", "again", "again_large_seconds", at_most=4, unit="s"),
    Claim("figures of 325 variants", "the same at 3fd85bb", "report", "figure_ratio.median", at_most=1),
    Claim("report of 325 variants", "the same at 3fd85bb", "report", "report_ratio.median", at_most=1),
    Claim("the quickstart from nothing", "the same at 3fd85bb", "quickstart", "ratio.median", at_most=0.8),
    Claim("queue 200 variants on SLURM", "hydra-submitit-launcher", "launch", "ratio", at_most=0.5, needs="slurm"),
    Claim("a sweep of 24 tiny variants", "its steps' own seconds", "starting", "forked_seconds_ratio", at_most=1.3),
    Claim("score the quickstart's tasks", "lm-eval's command", "evaluation", "command_ratio.median", at_least=2.3),
    Claim("the same after imports", "lm-eval's evaluation", "evaluation", "evaluation_ratio.median", at_least=2.0),
    Claim(
        *("a new task on nine finished checkpoints", "a job for each of them", "evaluation"),
        *("more_checkpoints_ratio.median",),
        at_most=1.0,
    ),
    Claim(
        *("front that TPE finds, an eighth of a table tried", "random search", "search"),
        *("ground_truth_recall.over_random.tpe",),
        at_least=1,
    ),
    Claim(
        *("the same at equal cost, scoring layouts before any training", "random search", "search"),
        *("ground_truth_recall.over_random.tpe halved",),
        at_least=1.05,
    ),
    Claim("a 30-second step that W&B follows", "the same step without W&B", "tracking", "online_ratio", at_most=1.05),
    Claim("the same while W&B's server is down", "the same step without W&B", "tracking", "down_ratio", at_most=1.05),
    Claim("decoding step of MLKV-3, fp32", "GPTNeoX's MHA, StaticCache", "decode", "mha_fp32_ratio", at_least=3.2),
    Claim("decoding step of MLKV-3, bf16", "GPTNeoX's MHA, StaticCache", "decode", "mha_bf16_ratio", at_least=8),
    Claim("decoding step of MLKV-3", "transformers' attention, same layout", "decode", "same_lowest", at_least=1),
    Claim("compiled step of GQA-2", "transformers' compiled", "decode", "compiled_ratio", at_least=5),
    Claim("compiled step of GQA-2", "transformers' fastest", "decode", "compiled_ratio_to_faster", at_least=1.15),
    Claim("training, tokens per second", "Trainer with GPTNeoX", "training", "ratio.median", at_least=1.05),
    Claim("training, peak memory", "Trainer with GPTNeoX", "training", "peak_ratio.median", at_most=0.62),
    Claim(
        "MFU of Pythia-160M, bf16", "the GPU's peak", "training", "ours_mfu_160m", at_least=0.4, unit="", needs="gpu"
    ),
    Claim(
        "MFU of Pythia-410M, bf16", "the GPU's peak", "training", "ours_mfu_410m", at_least=0.4, unit="", needs="gpu"
    ),
    Claim("bytes per second of a step, MHA", "of a copy", "decode", "mha_share", at_least=0.6, unit="", needs="gpu"),
    Claim("bytes per second of a step, MQA", "of a copy", "decode", "mqa_share", at_least=0.4, unit="", needs="gpu"),
    Claim("largest batch of MLKV-6, Pythia-160M, 2,048 tokens, in 2 GiB", "MHA", "largest_batch", "ratio", 20),
    Claim("the same in a GPU's memory", "MHA", "largest_batch", "ratio", 20, needs="gpu"),
)
