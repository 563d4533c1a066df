"""How long the tables of a large sweep take from its files, and how much memory: 10,000 finished steps.

    python benchmarks/gather.py [DIR]

Fills a store (in DIR, where it stays for the next time, or in a temporary directory) through its own interface:
layouts × learning rates × seeds, four tasks of 500 samples each with every sample's outcome. Then, each in a process of
its own: `mlkv gather` and `mlkv table` (all kinds in Markdown, with paired bootstrap), and what one would write instead
(every record through pandas.json_normalize, then a pivot), which has no reasons, no statistics and no layouts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mlkv.evaluate.outcomes import Outcomes, save
from mlkv.layout import KVLayout
from mlkv.patterns import family_of, make, name_of
from sweeps.store.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.turns import arguments, circumstances, report
from tests.support.records import record_of, save_sweep

STEPS = 10_000
LAYERS, HEADS, HEAD_DIM = 24, 16, 64
TASKS = ("arc_easy", "lambada_openai", "piqa", "sciq")
SAMPLES = 500
NAME = "bench"
NAIVE = """
import json, sys
from pathlib import Path
import pandas as pd
records = [json.loads(path.read_text()) for path in Path(sys.argv[1]).glob("steps/*/*/done.json")]
cells = pd.json_normalize(records, "metrics", ["id", "kind", "wall_seconds", "code"], record_prefix="cell.")
table = cells.pivot_table(index="id", columns="cell.metric", values="cell.value")
cells.to_csv(Path(sys.argv[2]) / "cells.csv")
table.to_csv(Path(sys.argv[2]) / "table.csv")
"""
OURS = """
import sys
from sweeps.cli import main
out = "{out}"
for words in (["gather", "{name}", "-o", out + "/cells.csv"], ["table", "{name}", "-o", out]):
    try:
        main([*words, "--store", sys.argv[1]])
    except SystemExit as end:
        assert end.code == 0, end.code
"""


def layouts() -> Iterator[KVLayout]:
    for kv_layers, kv_heads in product(range(1, LAYERS + 1), (1, 2, 4, 8, 16)):
        yield make("even", LAYERS, HEADS, kv_layers, kv_heads)


def variants() -> Iterator[dict[str, Any]]:
    """Rows of a plan; every layout with 4 learning rates and 3 seeds."""
    for layout, rate, seed in product(layouts(), ("1e-4", "3e-4", "6e-4", "1e-3"), (1, 2, 3, 4)):
        label = f"{name_of(layout)} {layout.kv_layers}×{layout.kv_heads[0]} uptrain.lr={rate} uptrain.seed={seed}"
        own = f"{layout.kv_layers:02}{layout.kv_heads[0]:02}{rate}{seed}"
        yield {
            "variant": label,
            "baseline": "mha" if layout.kv_layers == LAYERS and layout.kv_heads[0] == HEADS else None,
            "overrides": {"uptrain.lr": rate, "uptrain.seed": str(seed)},
            "config": {},
            "pattern": "even",
            "family": family_of(layout),
            "kv_layers": layout.kv_layers,
            "kv_heads": list(layout.kv_heads),
            "budget": layout.budget,
            "layout": layout.as_dict(),
            "kv_bytes_per_token": layout.kv_bytes_per_token(HEAD_DIM),
            "parameters": 400_000_000 - layout.budget,
            "steps": {
                "corpus": "corpus-0",
                "base": "base-0",
                "convert": f"convert-{own}",
                "uptrain": f"uptrain-{own}",
                "evaluate": {task: f"evaluate-{own}{task}" for task in TASKS},
                "measure": f"measure-{layout.kv_layers:02}{layout.kv_heads[0]:02}",
            },
        }


def fill(root: Path) -> int:
    """A store with STEPS finished steps, and how many there are."""
    store, rows, ids = Store.open(root), [], dict[str, dict[str, Any]]()
    for row in variants():
        own = row["steps"]
        steps = [own["corpus"], own["base"], own["convert"], own["uptrain"], *own["evaluate"].values(), own["measure"]]
        if len(ids.keys() | set(steps)) > STEPS:
            break
        rows.append(row)
        for id in steps:
            entry = {"kind": id.rsplit("-", 1)[0], "label": id, "parents": {}, "variants": []}
            ids.setdefault(id, entry)["variants"].append(row["variant"])
    hardness = np.random.default_rng(0).random((len(TASKS), SAMPLES))
    for number, id in enumerate(ids):
        finish(store, id, hardness, number)
    save_sweep(store, NAME, {"accuracy": [[task, "acc"] for task in TASKS], "axis": None, "steps": ids}, rows)
    return len(ids)


def finish(store: Store, id: str, hardness: np.ndarray, number: int) -> None:
    claim = store.step(id).claim()
    assert claim
    metrics: list[dict[str, Any]] = [
        {"metric": "train_loss", "value": 2.7 + number % 97 / 1000, "stderr": None, "n": 50}
    ]
    if id.startswith("evaluate"):
        random = np.random.default_rng(number)
        task = next(i for i, task in enumerate(TASKS) if id.endswith(task))
        right = (hardness[task] + 0.1 * random.standard_normal(SAMPLES) < 0.5).astype(float)
        outcomes = Outcomes(np.arange(SAMPLES), right, np.ones(SAMPLES))
        save({"acc": outcomes}, claim.attempt.out)
        share = float(right.mean())
        error = (share * (1 - share) / SAMPLES) ** 0.5
        metrics = [{"metric": name, "value": share, "stderr": error, "n": SAMPLES} for name in ("acc", "acc_norm")]
    elif id.startswith("measure"):
        values = {"cache_bytes": 1e6, "cache_bytes_per_token": 1e3, "peak_bytes": 2e6, "tokens_per_second": 50.0}
        metrics = [
            {"metric": name, "value": value * batch, "stderr": None, "n": None, "batch": batch, "context": 2048}
            for batch in (1, 8, 64)
            for name, value in values.items()
        ]
    record = {"wall_seconds": 1.0, "device_seconds": 1.0, "peak_memory_bytes": 2**30, "code": "c0de", "facts": {}}
    store.step(id).publish(
        claim, record_of(claim, {**record, "metrics": metrics, "versions": {"torch": "2"}, "host": "n", "inputs": {}})
    )
    claim.attempt.finish("done", "", 0)
    claim.release()


def cost(script: str, *words: str) -> dict[str, float]:
    """Seconds and peak resident GiB of a process that runs `script`."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", script, *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, status
    seconds = time.perf_counter() - start
    cpu = used.ru_utime + used.ru_stime
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_gib": round(used.ru_maxrss / 2**20, 3)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", metavar="DIR", type=Path)
    given, where = parser.parse_args(), circumstances()
    with tempfile.TemporaryDirectory() as temporary:
        place = given.folder or Path(temporary)
        root, out = place / "store", Path(temporary) / "out"
        out.mkdir()
        if not Store(root).sweep_names():
            start = time.perf_counter()
            print(f"{fill(root)} finished steps in {time.perf_counter() - start:.0f} s")
        count = len(Store(root).sweep(NAME).plan.steps)
        ours = cost(OURS.format(name=NAME, out=out), str(root))
        print(f"gather and tables: {ours}")
        naive = cost(NAIVE, str(root), str(out))
        print(f"records through pandas.json_normalize: {naive}")
        sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    numbers = {
        "finished_steps": count,
        "ours": ours,
        "naive": naive,
        "ratio_seconds": ours["seconds"] / naive["seconds"],
        "ratio_memory": ours["peak_gib"] / naive["peak_gib"],
        "bytes_written": sizes,
    }
    report("gather", where, numbers, given.save)


if __name__ == "__main__":
    main()
