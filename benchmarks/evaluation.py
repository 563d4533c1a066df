"""Evaluations: the quickstart's tasks beside lm-eval's own command, and a new task on checkpoints that are done.

    python benchmarks/evaluation.py [--rounds 6] [--precision fp32] [--checkpoints 9] [--store DIR] [--save]

One checkpoint of the quickstart, trained for a few steps, is scored on its three tasks for lm-eval, 200 questions each,
at 32 texts a pass with one thread, in turns:

- `command`: `mlkv sweep` where these evaluations are all that is missing, its report included, beside `lm_eval run`.
- `evaluation`: the same in processes that have imported everything, from the folder of the checkpoint to the scores,
  without the command's search for task definitions. lm-eval gets 1,000 resamples for a perplexity's error here, as
  mlkv takes; its command has no option for them and takes 100,000.

The scores must be equal: accuracies exactly, perplexities to a millionth. `more_checkpoints`: `mlkv sweep` with
another task on N finished checkpoints, one job for each of them, over the jobs that it makes by itself.

--store takes a finished quickstart's store in place of a short training; it is copied.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mlkv.evaluate.task_names import TASKS_FOLDER
from sweeps.store.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.turns import ROOT, arguments, circumstances, in_turns, ratio, report

TASKS = ("heldout_choice4", "heldout_choice2", "heldout_cloze")
LIMIT, BATCH_SIZE, RESAMPLES = 200, 32, 1000
ONE = ["layout.kv_layers=3", "layout.kv_heads=2", "sweep.baselines=[]"]
BEGIN = "ready"
"""What a process prints when it has imported everything."""

Scores = dict[str, float]
"""`TASK/METRIC` → value."""


class Bench:
    """A store with finished checkpoints and no evaluations, and what both sides compute on it."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options, self.prepared = folder, options, folder / "prepared"
        # Else a short training, which any line with these values shares.
        self.short = [] if options.store else ["base.steps=24", "uptrain.steps=4"]
        if options.store:
            shutil.copytree(options.store, self.prepared, symlinks=True)
        else:
            layouts = [] if options.checkpoints > 1 else ONE
            self.sweep(self.prepared, "prepared", [*layouts, "evaluate=none"])
        shutil.rmtree(self.prepared / "steps" / "evaluate", ignore_errors=True)
        [line] = self._checkpoints(self.prepared, ONE)
        self.checkpoint = self.prepared / "steps" / "uptrain" / line / "out"
        self.corpus = next((self.prepared / "steps" / "corpus").glob("*/out"))
        self.tasks = self._definitions()

    def sweep(self, store: Path, name: str, words: Sequence[str], command: str = "sweep") -> str:
        line = ["experiment=quickstart", f"name={name}", "measure=none", "tracking=off", *self.short, *words]
        env = self._environment() | {"MLKV_STORE": str(store)}
        argv = [sys.executable, "-m", "mlkv", command, *line, f"reports={self.folder / 'reports'}"]
        done = subprocess.run(argv, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(argv)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    def ours(self) -> Scores:
        """The command, on a store that lacks the evaluations."""
        store = self.copy("ours")
        self.sweep(store, "scored", [*ONE, *self.wanted(TASKS)])
        return _stored(store, "scored")

    def theirs(self) -> Scores:
        out = self.folder / "theirs"
        shutil.rmtree(out, ignore_errors=True)
        model = f"pretrained={self.checkpoint},trust_remote_code=True,{_precision(self.options.precision)}"
        argv = ["run", "--model", "hf", "--model_args", model, "--tasks", ",".join(TASKS), "--device", "cpu"]
        argv += ["--include_path", str(self.tasks), "--batch_size", str(BATCH_SIZE), "--limit", str(LIMIT)]
        command = [sys.executable, "-m", "lm_eval", *argv, "--output_path", str(out)]
        subprocess.run(command, cwd=self.folder, env=self._environment(), capture_output=True, check=True)
        [path] = out.rglob("results_*.json")
        return _of_lm_eval(json.loads(path.read_text()))

    def more(self, name: str, per_job: int | None) -> float:
        """Seconds of the command with a new task on every checkpoint."""
        store, start = self.copy(name), time.perf_counter()
        words = [f"cluster.checkpoints_per_job={per_job}"] if per_job else []
        self.sweep(store, name, [*self.wanted(["heldout_cloze"]), *words])
        return time.perf_counter() - start

    def copy(self, name: str) -> Path:
        store = self.folder / name
        shutil.rmtree(store, ignore_errors=True)
        return Path(shutil.copytree(self.prepared, store, symlinks=True))

    def wanted(self, tasks: Sequence[str]) -> list[str]:
        values = {"tasks": f"[{','.join(tasks)}]", "accuracy": f"[[{tasks[0]},acc]]", "axis": "null", "converted": "[]"}
        values |= {"limit": str(LIMIT), "batch_size": str(BATCH_SIZE), "precision": self.options.precision}
        return [f"evaluate.{name}={value}" for name, value in values.items()]

    def process(self, side: str) -> Process:
        return Process(self, side)

    def _checkpoints(self, store: Path, words: Sequence[str]) -> list[str]:
        self.sweep(store, "planned", [*words, "evaluate=none"], "fetch")  # plans, and finds nothing to bring
        steps = Store(store).sweep("planned").plan.steps
        return [id for id in steps if id.startswith("uptrain-")]

    def _definitions(self) -> Path:
        """The tasks as lm-eval reads them: with the corpus's items as their data."""
        folder = self.folder / "tasks"
        folder.mkdir()
        for task in TASKS:
            definition = yaml.safe_load((TASKS_FOLDER / f"{task}.yaml").read_text())
            definition["dataset_kwargs"] = {"data_files": {"test": str(self.corpus / "tasks" / f"{task}.jsonl")}}
            (folder / f"{task}.yaml").write_text(yaml.safe_dump(definition))
        return folder

    def _environment(self) -> dict[str, str]:
        quiet = {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        own = {"HF_HOME": str(self.folder / "hf"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return {**os.environ, **quiet, **own, "PYTHONPATH": str(ROOT)}


class Process:
    """A process that has imported what one side needs, and evaluates whenever it is asked to."""

    def __init__(self, bench: Bench, side: str) -> None:
        self.scores: Scores = {}
        places = [str(path) for path in (bench.checkpoint, bench.corpus, bench.tasks)]
        argv = [sys.executable, str(Path(__file__)), "--inside", side, *places, "--precision", bench.options.precision]
        self._process = subprocess.Popen(
            argv,
            cwd=bench.folder,
            env=bench._environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer(BEGIN)

    def run(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.scores = json.loads(self._answer("{"))

    def close(self) -> None:
        self._process.communicate()

    def _answer(self, start: str) -> str:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith(start):
                return line
        raise SystemExit("a process that was to evaluate ended")


def inside(side: str, places: Sequence[str], precision: str) -> None:
    """What `Process` runs. Each time a checkpoint is new to it: nothing that is kept for later evaluations counts."""
    checkpoint, corpus, tasks = map(Path, places)
    evaluate = _inside_ours(checkpoint, corpus, precision) if side == "ours" else _theirs(checkpoint, tasks, precision)
    print(BEGIN, flush=True)
    for _ in sys.stdin:
        print(json.dumps(evaluate()), flush=True)


def _inside_ours(checkpoint: Path, corpus: Path, precision: str) -> Any:
    from mlkv.context import Context
    from mlkv.evaluate import harness, harness_model, step, task_cache
    from mlkv.evaluate.models import LastModel, LastTokenizer
    from mlkv.recipes import EvaluateRecipe

    assert harness  # imported here: the step does it when it runs
    assert harness_model

    def evaluate() -> Scores:
        step.CHECKPOINT, step.TOKENIZER = LastModel(), LastTokenizer()
        task_cache.forget()
        found: Scores = {}
        for task in TASKS:
            recipe = EvaluateRecipe(task, limit=LIMIT, batch_size=BATCH_SIZE, precision=precision)  # type: ignore[arg-type]
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "out").mkdir()
                context = Context(Path(folder) / "work", lambda row: None)
                outcome = step.run(recipe, Path(folder) / "out", context, checkpoint=checkpoint, corpus=corpus)
            found |= {f"{task}/{row.metric}": row.value for row in outcome.metrics if row.value is not None}
        return found

    return evaluate


def _theirs(checkpoint: Path, tasks: Path, precision: str) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.models import huggingface
    from lm_eval.tasks import TaskManager

    assert huggingface
    manager = TaskManager(include_path=str(tasks))
    model = {"pretrained": str(checkpoint), "trust_remote_code": True}
    model |= dict(part.split("=") for part in _precision(precision).split(","))

    def evaluate() -> Scores:
        results = simple_evaluate(
            model="hf",
            model_args=model,
            tasks=list(TASKS),
            task_manager=manager,
            batch_size=BATCH_SIZE,
            limit=LIMIT,
            device="cpu",
            bootstrap_iters=RESAMPLES,
        )
        assert results is not None
        return _of_lm_eval(results)

    return evaluate


def _precision(precision: str) -> str:
    """Of lm-eval's model: autocast for bf16 and a softmax in float32, as mlkv computes."""
    return "mixed_precision_dtype=bfloat16,softmax_dtype=float32" if precision == "bf16" else "dtype=float32"


def _of_lm_eval(results: Mapping[str, Any]) -> Scores:
    return {
        f"{task}/{key.removesuffix(',none')}": value
        for task, values in results["results"].items()
        for key, value in values.items()
        if key.endswith(",none") and not key.endswith("_stderr,none")
    }


def _stored(store: Path, name: str) -> Scores:
    opened, found = Store(store), Scores()
    for id in opened.sweep(name).plan.steps:
        if id.startswith("evaluate-") and (record := opened.step(id).record()):
            task = json.loads((opened.step(id).out / "results.json").read_text())["task"]
            found |= {f"{task}/{row.metric}": row.value for row in record.metrics if row.value is not None}
    return found


def check_equal(ours: Scores, theirs: Scores) -> None:
    """Raises SystemExit unless accuracies are equal and perplexities equal to a millionth."""
    exact = {name for name in theirs if "perplexity" not in name}
    near = {name: abs(ours.get(name, 0.0) / value - 1) <= 1e-6 for name, value in theirs.items() if name not in exact}
    if ours.keys() != theirs.keys() or any(ours[name] != theirs[name] for name in exact) or not all(near.values()):
        raise SystemExit(f"scores differ: {ours} and {theirs}")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--checkpoints", type=int, default=9, help="1: leave more_checkpoints out")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--inside", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.inside[0], options.inside[1:], options.precision)
        return
    where = circumstances()
    numbers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        check_equal(bench.ours(), bench.theirs())
        whole = in_turns({"ours": bench.ours, "theirs": bench.theirs}, options.rounds, warmups=0)
        processes = {side: bench.process(side) for side in ("ours", "theirs")}
        alone = in_turns({side: process.run for side, process in processes.items()}, options.rounds)
        for process in processes.values():
            process.close()
        check_equal(*(processes[side].scores for side in ("ours", "theirs")))
        for name, seconds in (("command", whole), ("evaluation", alone)):
            numbers[f"{name}_ratio"] = ratio(seconds["theirs"], seconds["ours"])
            numbers |= {f"{name}_{side}_seconds": statistics.median(each) for side, each in seconds.items()}
        if options.checkpoints > 1:
            more = in_turns(
                {"alone": lambda: bench.more("alone", 1), "together": lambda: bench.more("together", None)},
                max(1, options.rounds // 3),
                warmups=0,
            )
            numbers["more_checkpoints_ratio"] = ratio(more["together"], more["alone"])
            numbers |= {f"more_checkpoints_{how}_seconds": statistics.median(each) for how, each in more.items()}
    settings = {"precision": options.precision, "limit": LIMIT, "batch_size": BATCH_SIZE, "threads": 1}
    report("evaluation", where, settings | numbers, options.save)


if __name__ == "__main__":
    main()
