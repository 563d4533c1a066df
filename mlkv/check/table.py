"""The checks, one row each, and their run over one model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from . import generation, gradients, memory, passes, saving, sharing
from .results import Found, Report, Result, Skipped, State
from .subject import Subject, load_subject, one_line

BOUNDS = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""The largest difference that rounding explains, as a part of the largest value. In float64 too, models round
positions and norms to float32."""
GRADIENT_FACTOR = 10
"""Gradients are sums of many terms, and a parameter's are judged by themselves: so many times that bound."""


@dataclass(frozen=True)
class Check:
    """name: in the output and in JSON, where it stays.
    subject: what it is about; checks of one subject stand together.
    measure: raises Skipped where it does not apply; any other error is a fault of the model.
    """

    name: str
    subject: str
    measure: Callable[[Subject], Found]
    factor: float = 1

    def run(self, subject: Subject) -> Result:
        try:
            with torch.no_grad():
                found = self.measure(subject)
        except Skipped as reason:
            return Result(self.name, self.subject, "skipped", reason=str(reason))
        except Exception as error:  # a model may raise anything, and the other checks are still worth their time
            return Result(self.name, self.subject, "FAIL", reason=one_line(error))
        bound = BOUNDS[subject.model.dtype] * self.factor if found.bound is None else found.bound
        if not math.isfinite(found.difference):
            return Result(self.name, self.subject, "FAIL", None, bound, f"not finite {found.note}".strip())
        state: State = "pass" if found.difference <= bound else "FAIL"
        return Result(self.name, self.subject, state, found.difference, bound, found.note)


CHECKS = (
    Check("repeated", "passes", passes.repeated),
    Check("causal", "passes", passes.causal),
    Check("batched", "passes", passes.batched),
    Check("eager", "passes", passes.eager),
    Check("padded", "passes", passes.padded),
    Check("cached", "caches", passes.cached),
    Check("chunked", "caches", passes.chunked),
    Check("unequal", "caches", passes.unequal),
    Check("static", "caches", passes.static),
    Check("cache_bytes", "caches", memory.cache_bytes),
    Check("greedy", "generation", generation.greedy),
    Check("beams", "generation", generation.beams),
    Check("sources", "sharing", sharing.sources),
    Check("use_cache", "training", gradients.with_cache, GRADIENT_FACTOR),
    Check("checkpointing", "training", gradients.default, GRADIENT_FACTOR),
    Check("not_reentrant", "training", gradients.not_reentrant, GRADIENT_FACTOR),
    Check("reentrant", "training", gradients.reentrant, GRADIENT_FACTOR),
    Check("round_trip", "saving", saving.round_trip),
)


def run(subject: Subject) -> Iterator[Result]:
    """Every check's result as soon as it is there. Where the first pass fails, no other check can say more."""
    first, *others = CHECKS
    result = first.run(subject)
    yield result
    for check in others:
        if result.state == "FAIL":
            yield Result(check.name, check.subject, "skipped", reason="a pass fails")
        else:
            yield check.run(subject)


def report(path: Path, subject: Subject, checks: tuple[Result, ...]) -> Report:
    from importlib.metadata import version

    return Report(
        model=str(path),
        model_type=subject.config.model_type,
        weights=subject.weights,
        compared="logits" if subject.has_head else "hidden states",
        dtype=str(subject.model.dtype).removeprefix("torch."),
        device=subject.model.device.type,
        seed=subject.seed,
        tokens=subject.ids.shape[1],
        versions={name: version(name) for name in ("mlkv", "torch", "transformers")},
        checks=checks,
    )


__all__ = ["CHECKS", "Check", "load_subject", "report", "run"]
