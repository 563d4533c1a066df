"""The quickstart from nothing, timed, and what its numbers must satisfy.

    python benchmarks/quickstart.py [FOLDER] [--before REVISION [--rounds N]]

Runs `mlkv sweep experiment=quickstart` in FOLDER (default: a temporary one), then the same line again, then the same
variants without uptraining. With `--before`, the code of a git revision runs the line from nothing too, with the same
packages, in turns with ours, and `ratio` is ours over that. Each run has a folder of its own in FOLDER. Reports wall
seconds, the held-out losses in nats per token, where a smaller budget did better than a larger one by more than 0.01,
and how much uptraining won for each reduced layout. The last line is one JSON object.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from sweeps.store.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.earlier import code_at, variables
from benchmarks.turns import arguments, circumstances, in_turns, ratio, report

TOLERATED_NATS = 0.01
LEAST_GAIN_NATS = 0.01
"""A conversion by `svd` leaves little to win (the mean left 0.3 and more), but uptraining has to win some of it."""


def sweep(code: Path, folder: Path, *overrides: str) -> float:
    """Wall seconds of one command of this code."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **variables(code), "MLKV_STORE": str(folder / "store")}
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
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="where to run it (default: a temporary folder)")
    parser.add_argument("--before", metavar="REVISION", help="a git revision whose quickstart runs in turns with ours")
    parser.add_argument("--rounds", type=int, default=1)
    given, where = parser.parse_args(), circumstances()
    with tempfile.TemporaryDirectory() as temporary, code_at(None) as now, code_at(given.before) as before:
        folder = (given.folder or Path(temporary)).absolute()
        codes = {"now": now, **({"before": before} if given.before else {})}
        rounds = {name: iter(range(given.rounds)) for name in codes}

        def run(name: str) -> None:
            sweep(codes[name], folder / f"{name}-{next(rounds[name])}")

        seconds = in_turns({name: partial(run, name) for name in codes}, given.rounds, warmups=0)
        ours = folder / "now-0"
        again = sweep(now, ours)
        sweep(now, ours, "name=converted", "uptrain=none", "measure=none")
        store = Store(ours / "store")
        trained, converted = losses(store, "quickstart"), losses(store, "converted")
    gains = {name: round(converted[name][1] - loss, 3) for name, (_, loss) in trained.items() if name in converted}
    reduced = {name: gain for name, gain in gains.items() if name != "untouched" and not name.startswith("MHA")}
    numbers = {
        "seconds": seconds,
        "ratio": ratio(seconds["now"], seconds["before"]) if given.before else None,
        "seconds_again": again,
        "nats_per_token": {name: loss for name, (_, loss) in trained.items()},
        "out_of_order": out_of_order(trained),
        "gain_over_converted_nats": gains,
        "gained_too_little": [name for name, gain in reduced.items() if gain < LEAST_GAIN_NATS],
    }
    report("quickstart", where, numbers, given.save)


if __name__ == "__main__":
    main()
