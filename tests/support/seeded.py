"""Results of layouts with several seeds: as a long table, and as a store that keeps samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.data import frame
from mlkv.evaluate.outcomes import Outcomes, save
from tests.support.filler import Filler
from tests.support.records import save_sweep

TASK = "four_way"


def seeded(values: Mapping[str, Mapping[int, float | None]], *, stderr: float | None = 0.001) -> pd.DataFrame:
    """The long table of layouts with several seeds each; `MHA` is the baseline, ten times as large as the others."""
    rows = []
    for layout, seeds in values.items():
        for seed, value in seeds.items():
            name = f"{layout} uptrain.seed={seed}"
            rows.append(
                {
                    "variant": name,
                    "replicate_of": layout,
                    "baseline": "mha" if layout == "MHA" else None,
                    "mha": f"MHA uptrain.seed={min(values['MHA'])}",
                    "kv_bytes_per_token": 100 if layout == "MHA" else 10,
                    "kind": "evaluate",
                    "task": "t",
                    "metric": "acc",
                    "in_axis": False,
                    "in_accuracy": True,
                    "value": value,
                    "stderr": stderr,
                    "state": "DONE" if value is not None else "RUNNING",
                    "reason": None if value is not None else "step 3 of 9",
                    "step": name,
                }
            )
    return frame.make(rows)


def keep(answers: NDArray[np.float64], units: NDArray[np.int64] | None = None, metric: str = "acc") -> Any:
    """Leaves the outcomes of a task's samples in a step's output."""

    def leave(out: Path) -> None:
        own = np.arange(len(answers)) if units is None else units
        save({metric: Outcomes(own, answers, np.ones(len(answers)))}, out)

    return leave


def with_seeds(filler: Filler, root: Path, layouts: tuple[str, ...] = ("MHA-36", "MLKV-6"), seeds: int = 3) -> Any:
    """A store like the filler's, planned with these layouts and so many seeds of each; nothing has run."""
    named = {f"{layout} uptrain.seed={seed}": layout for layout in layouts for seed in range(1, seeds + 1)}
    crowd = type(filler)(root, {name: filler.figures[layout] for name, layout in named.items()})
    for variant in crowd.variants:
        layout, _, seed = variant["variant"].partition(" uptrain.seed=")
        variant["overrides"]["uptrain.seed"] = int(seed)
        variant["baseline"] = "mha" if layout == layouts[0] else None
        measure = next(v for v in crowd.variants if v["variant"].startswith(f"{layout} "))["steps"]["measure"]
        variant["steps"]["measure"] = measure
    plan = {**crowd.plan, "accuracy": [[TASK, "acc"]], "axis": None}
    save_sweep(crowd.store, crowd.name, plan, crowd.variants)
    return crowd


def answered(crowd: Filler, answers: Mapping[str, NDArray[np.float64]], units: NDArray[np.int64] | None = None) -> None:
    """Finishes the task's evaluation of variants that answered its samples so."""
    for name, own in answers.items():
        value, count = float(own.mean()), len(own)
        metric = {"metric": "acc", "value": value, "stderr": (value * (1 - value) / count) ** 0.5, "n": count}
        crowd.done(crowd.variant(name)["steps"]["evaluate"][TASK], [metric], leave=keep(own, units))
