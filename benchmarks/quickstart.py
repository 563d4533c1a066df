"""The quickstart from nothing, timed, and what its numbers must satisfy.

    python benchmarks/quickstart.py [FOLDER]

Runs `mlkv sweep experiment=quickstart` in FOLDER (default: a temporary one), then the same line again, then the same
variants without uptraining. Reports wall seconds, the held-out losses in nats per token, where a smaller budget did
better than a larger one by more than 0.01, and how much uptraining won for each reduced layout. The last line is one
JSON object.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from sweeps.store.store import Store

TOLERATED_NATS = 0.01
LEAST_GAIN_NATS = 0.01
"""A conversion by `svd` leaves little to win (the mean left 0.3 and more), but uptraining has to win some of it."""


def sweep(folder: Path, *overrides: str) -> float:
    """Wall seconds of one command."""
    environment = {**os.environ, "MLKV_STORE": str(folder / "store")}
    command = [sys.executable, "-m", "sweeps.cli", "sweep", "experiment=quickstart", *overrides]
    start = time.perf_counter()
    with (folder / "log.txt").open("a") as log:
        subprocess.run(command, cwd=folder, env=environment, stdout=log, check=True)
    return round(time.perf_counter() - start, 1)


def losses(store: Store, name: str) -> dict[str, tuple[float, float]]:
    """Variant → its KV heads and its held-out loss in nats per token."""
    found: dict[str, tuple[float, float]] = {}
    for row in store.sweep(name).variants:
        record = store.step(row.steps.evaluate["bits_per_byte"]).record()
        assert record
        [nats] = [m.value for m in record.metrics if m.metric == "nats_per_token"]
        found[row.variant] = (row.budget, round(nats or 0.0, 4))
    return found


def out_of_order(found: dict[str, tuple[float, float]]) -> list[str]:
    """Pairs in which the smaller budget is better by more than the tolerance; the untouched base is not trained on."""
    trained = {name: value for name, value in found.items() if name != "untouched"}
    return [
        f"{small} < {large}"
        for small, (small_budget, small_loss) in trained.items()
        for large, (large_budget, large_loss) in trained.items()
        if small_budget < large_budget and small_loss < large_loss - TOLERATED_NATS
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        seconds, again = sweep(folder), sweep(folder)
        sweep(folder, "name=converted", "uptrain=none", "measure=none")
        store = Store(folder / "store")
        trained, converted = losses(store, "quickstart"), losses(store, "converted")
    gains = {name: round(converted[name][1] - loss, 3) for name, (_, loss) in trained.items() if name in converted}
    reduced = {name: gain for name, gain in gains.items() if name != "untouched" and not name.startswith("MHA")}
    result = {
        "benchmark": "quickstart",
        "seconds": seconds,
        "seconds_again": again,
        "nats_per_token": {name: loss for name, (_, loss) in trained.items()},
        "out_of_order": out_of_order(trained),
        "gain_over_converted_nats": gains,
        "gained_too_little": [name for name, gain in reduced.items() if gain < LEAST_GAIN_NATS],
        "machine": f"{os.cpu_count()} cores {platform.machine()}, python {platform.python_version()}",
        "torch": version("torch"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
