"""A small real store, filled through its own interface: the quickstart's nine variants with their figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from analysis.page.report import write_page
from analysis.statistics.sources import load
from mlkv.layout import KVLayout
from mlkv.patterns import family_of, make
from sweeps.store.store import Store
from tests.support.records import MEASURED, record_of, save_sweep

HEADS, LAYERS, HEAD_DIM = 6, 6, 32
ACCURACY = [["cloze", "acc"], ["four_way", "acc"], ["two_way", "acc"]]
TASKS = ["bits_per_byte", "cloze", "four_way", "two_way"]
FIGURES = {  # variant: (KV layers, KV heads, bits per byte, share correct on each task)
    "untouched": (6, 6, 2.201, (0.085, 0.460, 0.705)),
    "MHA-36": (6, 6, 2.206, (0.088, 0.455, 0.702)),
    "GQA-12": (6, 2, 2.245, (0.087, 0.441, 0.690)),
    "MLKV-12": (2, 6, 2.276, (0.081, 0.432, 0.688)),
    "MQA-6": (6, 1, 2.295, (0.088, 0.425, 0.670)),
    "MLKV-6": (3, 2, 2.330, (0.079, 0.419, 0.665)),
    "MLKV-3": (3, 1, 2.344, (0.087, 0.413, 0.660)),
    "MLKV-2": (2, 1, 2.372, (0.085, 0.409, 0.652)),
    "MLKV-1": (1, 1, 2.404, (0.088, 0.415, 0.638)),
}
BASELINES = {"untouched": "untouched", "MHA-36": "mha"}


def step_id(kind: str, *names: str) -> str:
    return f"{kind}-{abs(hash_of('/'.join(names))):016x}"


def hash_of(text: str) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class Filler:
    """A store with one saved sweep, and the means to let its steps finish or fail."""

    def __init__(
        self, root: Path, figures: dict[str, Any] = FIGURES, name: str = "demo", converted: Iterable[str] = ()
    ) -> None:
        """`converted`: tasks that conversions are scored on."""
        self.store, self.figures, self.name = Store.open(root), figures, name
        self.converted = list(converted)
        self.variants = [self._variant(label) for label in figures]
        self.plan: dict[str, Any] = {
            "command": ["mlkv", "sweep", "experiment=quickstart"],
            "accuracy": ACCURACY,
            "axis": ["bits_per_byte", "bits_per_byte"],
            "steps": self._steps(),
        }
        save_sweep(self.store, name, self.plan, self.variants)

    def layout(self, label: str) -> KVLayout:
        kv_layers, kv_heads = self.figures[label][:2]
        return make("even", LAYERS, HEADS, kv_layers, kv_heads)

    def _variant(self, label: str) -> dict[str, Any]:
        layout = self.layout(label)
        converted = label != "untouched"
        return {
            "variant": label,
            "baseline": BASELINES.get(label),
            "config": {"uptrain": {"steps": 50, "lr": 1e-3}, "model": {"layers": LAYERS}, "evaluate": {"few_shot": 2}},
            "overrides": {"layout.budget": layout.budget},
            "pattern": "even",
            "family": family_of(layout),
            "kv_layers": layout.kv_layers,
            "kv_heads": list(layout.kv_heads),
            "budget": layout.budget,
            "layout": layout.as_dict(),
            "head_dim": HEAD_DIM,
            "kv_element_bytes": 2,
            "kv_bytes_per_token": layout.kv_bytes_per_token(HEAD_DIM),
            "parameters": 3_500_000 + layout.budget,
            "steps": {
                "corpus": step_id("corpus"),
                "base": step_id("base"),
                "convert": step_id("convert", label) if converted else None,
                "uptrain": step_id("uptrain", label) if converted else None,
                "evaluate": {task: step_id("evaluate", label, task) for task in TASKS},
                "measure": step_id("measure", label),
                **({"converted": self._of_conversion(label)} if converted and self.converted else {}),
            },
        }

    def _of_conversion(self, label: str) -> dict[str, str]:
        return {task: step_id("evaluate", label, "converted", task) for task in self.converted}

    def _steps(self) -> dict[str, Any]:
        steps: dict[str, Any] = {}
        for row in self.variants:
            own = row["steps"]
            checkpoint = own["uptrain"] or own["base"]
            self._plan(steps, row, own["corpus"], {})
            self._plan(steps, row, own["base"], {"corpus": own["corpus"]})
            if own["convert"]:
                self._plan(steps, row, own["convert"], {"base": own["base"]})
                self._plan(steps, row, own["uptrain"], {"start": own["convert"], "corpus": own["corpus"]})
            for evaluate in own["evaluate"].values():
                self._plan(steps, row, evaluate, {"checkpoint": checkpoint, "corpus": own["corpus"]})
            for evaluate in own.get("converted", {}).values():
                self._plan(steps, row, evaluate, {"checkpoint": own["convert"], "corpus": own["corpus"]})
            self._plan(steps, row, own["measure"], {})
        return steps

    @staticmethod
    def _plan(steps: dict[str, Any], row: dict[str, Any], step: str, parents: dict[str, str]) -> None:
        kind = step.rsplit("-", 1)[0]
        entry = steps.setdefault(
            step, {"kind": kind, "label": f"{kind} {row['variant']}", "parents": parents, "variants": []}
        )
        entry["variants"].append(row["variant"])

    def variant(self, label: str) -> dict[str, Any]:
        return next(row for row in self.variants if row["variant"] == label)

    def done(
        self,
        step: str,
        metrics: list[dict[str, Any]],
        seconds: float = 10.0,
        leave: Callable[[Path], None] = lambda out: None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """`leave` writes the step's output."""
        claim = self.store.step(step).claim()
        assert claim is not None
        leave(claim.attempt.out)
        record = {**MEASURED, "wall_seconds": seconds, "device_seconds": seconds, "metrics": metrics}
        record |= {"facts": facts or {}}
        assert self.store.step(step).publish(claim, record_of(claim, record))
        claim.attempt.finish("done", "", 0)
        claim.release()

    def fail(self, step: str, reason: str, log: str = "") -> None:
        claim = self.store.step(step).claim()
        assert claim is not None
        claim.attempt.stderr.write_text(log)
        claim.attempt.finish("failed", reason, 1)
        claim.release()

    def shared(self) -> None:
        self.done(step_id("corpus"), [])
        self.done(step_id("base"), [{"metric": "loss", "value": 4.19, "stderr": None, "n": 300}], 160.0)

    def train(self, label: str) -> None:
        own = self.variant(label)["steps"]
        if own["convert"]:
            self.done(own["convert"], [])
            self.done(
                own["uptrain"],
                [{"metric": "loss", "value": self.figures[label][2] * 1.9, "stderr": None, "n": 50}],
                22.0,
            )

    def evaluate(self, label: str, task: str) -> None:
        bits, shares = self.figures[label][2:4]
        metrics = [{"metric": "bits_per_byte", "value": bits, "stderr": 0.004, "n": 400}]
        if task != "bits_per_byte":
            share = shares[TASKS.index(task) - 1]
            metrics = [{"metric": "acc", "value": share, "stderr": (share * (1 - share) / 250) ** 0.5, "n": 250}]
        self.done(self.variant(label)["steps"]["evaluate"][task], metrics, 3.0)

    def evaluate_conversion(self, label: str, task: str, value: float) -> None:
        """Bits per byte before uptraining."""
        metrics = [{"metric": "bits_per_byte", "value": value, "stderr": 0.004, "n": 400}]
        self.done(self.variant(label)["steps"]["converted"][task], metrics, 3.0)

    def measure(self, label: str, batches: tuple[int, ...] = (1, 8), failed: tuple[int, ...] = ()) -> None:
        """256 tokens and 16 decoded after them."""
        per_token = self.layout(label).kv_bytes_per_token(HEAD_DIM)
        values = [
            {"batch": b, "cache_bytes": per_token * 272.0 * b, "cache_bytes_per_token": per_token} for b in batches
        ]
        values += [{"batch": batch, "oom": 1.0} for batch in failed]
        metrics = [
            {"metric": name, "value": value, "stderr": None, "n": None, "batch": cell["batch"], "context": 256}
            for cell in values
            for name, value in cell.items()
            if name != "batch"
        ]
        self.done(self.variant(label)["steps"]["measure"], metrics, 4.0)

    def everything(self) -> None:
        self.shared()
        for label in self.figures:
            self.train(label)
            for task in TASKS:
                self.evaluate(label, task)
            self.measure(label)


Few = Callable[[Iterable[str]], Filler]
"""Makes a sweep of these variants alone."""


def write_report(store: Store, name: str, out: Path) -> list[Path]:
    """The report of a sweep as `mlkv report` writes it; its files, the page first."""
    return write_page(store, load(store, name), out)
