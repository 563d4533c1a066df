"""What a sweep costs beside its steps: 24 tiny variants, their jobs forked from one process, and each importing anew.

    python benchmarks/starting.py [--variants 24] [--steps 300] [--rounds 1] [--only-forked]

A store gets a corpus and a base. Copies of it then run the same line of N variants, each a conversion, an uptraining
and an evaluation, in turns:

- `forked`: `mlkv sweep` as it is; `fresh`: with MLKV_FORK_SERVER=0.
- `own`: the same steps one after another in one process, behind those of a further variant, which imports what they
  need. The sum of their own seconds is what a sweep would take that starts at no cost.

`…_seconds_ratio` is wall seconds × slots over that sum. `…_processor_seconds` are those of all processes, which say
more on a machine that others use too. Figures are medians over the rounds.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from slurm.jobs import THREAD_VARIABLES
from slurm.local import visible_cores
from sweeps.store.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.turns import ROOT, arguments, circumstances, report

CONF = ROOT / "tests" / "conf"
WORDS = ["fox", "jumps", "over", "lazy", "dog", "while", "seven", "wizards", "vex", "jackals", "near", "lakes"]
ORDER = ("corpus", "base", "convert", "uptrain", "evaluate")


class Cost(NamedTuple):
    wall: float
    processor: float


def run(command: Sequence[str], folder: Path, **environment: str) -> Cost:
    """What a command and all that it started took, in seconds."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "MLKV_STORE": str(folder / "store")} | environment
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (folder / "log.txt").open("a") as log:
        subprocess.run([sys.executable, "-m", *command], cwd=folder, env=env, stdout=log, stderr=log, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def line(text: Path, steps: int, rates: Sequence[str], name: str) -> list[str]:
    return [
        *("experiment=tiny", f"name={name}", f"corpus.files=[{text}/*.txt]", "layout=mqa", "sweep.baselines=[]"),
        *("evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]", "evaluate.axis=null", "measure.batch_sizes=[]"),
        *(f"uptrain.lr={','.join(rates)}", f"uptrain.steps={steps}", f"uptrain.save_every={steps}"),
        *("cluster.slots=1", f"reports={text.parent / 'reports'}", "--config-dir", str(CONF)),
    ]


def written(folder: Path) -> Path:
    """24 small documents, always the same."""
    folder.mkdir()
    for i in range(24):
        chosen = (WORDS[(i * 7 + j * j + j // 5) % len(WORDS)] for j in range(1200))
        (folder / f"{i:02}.txt").write_text(" ".join(chosen))
    return folder


def steps_alone(folder: Path, text: Path, steps: int, rates: Sequence[str]) -> Cost:
    """What the variants' steps take by themselves: computed in one process behind those of another variant, less what
    a process takes for such another variant."""
    store = Store(folder / "store")
    threads = dict.fromkeys(THREAD_VARIABLES, str(visible_cores()))
    planned, costs = [], []
    for name, wanted in (("one", ["9e-4"]), ("other", ["8e-4"]), ("all", rates)):
        run(["sweeps.cli", "fetch", *line(text, steps, wanted, name)], folder)  # plans, and finds nothing to bring
        planned.append([id for id in by_kind(store.sweep(name).plan.steps) if not store.step(id).record()])
    one, other, variants = planned
    for ids in (one, [*other, *variants]):
        costs.append(run(["sweeps.worker", str(store.root), *ids], folder, CUDA_VISIBLE_DEVICES="", **threads))
    records = [store.step(id).record() for id in variants if id not in one]
    return Cost(sum(r.wall_seconds for r in records if r), costs[1].processor - costs[0].processor)


def by_kind(ids: Iterable[str]) -> list[str]:
    return sorted(ids, key=lambda id: ORDER.index(id.rsplit("-", 1)[0]))


def one_round(
    prepared: Path, text: Path, steps: int, rates: Sequence[str], compared: Sequence[str]
) -> dict[str, float]:
    found: dict[str, float] = {}
    for how in (*compared, "own"):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / how
            shutil.copytree(prepared, folder)
            if how == "own":
                cost = steps_alone(folder, text, steps, rates)
            else:
                planned = line(text, steps, rates, "variants")
                cost = run(["sweeps.cli", "sweep", *planned], folder, MLKV_FORK_SERVER=str(int(how == "forked")))
            found |= {f"{how}_seconds": cost.wall, f"{how}_processor_seconds": cost.processor}
    return found


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(found[name] for found in rounds), 2) for name in rounds[0]}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--variants", type=int, default=24)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only-forked", action="store_true", help="leave out `fresh`, which takes the longest")
    given, where = parser.parse_args(), circumstances()
    compared = ["forked"] if given.only_forked else ["forked", "fresh"]
    rates = [f"{i}e-5" for i in range(1, given.variants + 1)]
    with tempfile.TemporaryDirectory() as temporary:
        text, prepared = written(Path(temporary) / "text"), Path(temporary) / "prepared"
        prepared.mkdir()
        run(["sweeps.cli", "sweep", *line(text, 4, ["8e-4"], "prepared")], prepared)
        rounds = [one_round(prepared, text, given.steps, rates, compared) for _ in range(given.rounds)]
    found: dict[str, Any] = medians(rounds)
    for how in compared:
        for what in ("seconds", "processor_seconds"):
            ratios = [each[f"{how}_{what}"] / each[f"own_{what}"] for each in rounds]
            found[f"{how}_{what}_ratio"] = float(f"{statistics.median(ratios):.3f}")
    settings = {"variants": given.variants, "uptrain_steps": given.steps, "slots": 1, "rounds": given.rounds}
    report("starting", where, settings | found, given.save)


if __name__ == "__main__":
    main()
