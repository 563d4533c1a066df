"""A store that earlier code made (old_store/README.md) is read, planned, resumed, reported and pruned by this code."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from sweeps.planning import resolve
from sweeps.planning.compose import Composer
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.reconcile import read_states, replaced, saved_graph, to_run
from sweeps.planning.resolve import Resolver
from sweeps.steps.verify import edited
from sweeps.store.prune import prunable
from sweeps.store.store import Store
from sweeps.store.typed_json import as_json
from sweeps.tracking.sync import sweep_runs
from sweeps.worker import supervisor
from tests.support.commands import fix_versions
from tests.support.shell import exit_status
from tests.support.workers_here import ChildHere

FOLDER = Path(__file__).with_name("old_store")
EXPERIMENT = ["experiment=old", "evaluate.converted=[]"]
"""conf/evaluate/held_out did not score conversions then."""
SECOND = [
    "layout.kv_layers=2,1,2",
    "layout.kv_heads=1,2,2",
    "uptrain.lr=1e-3,1e-3,1e30",
    "sweep.zip=[layout.kv_layers,layout.kv_heads,uptrain.lr]",
    "sweep.baselines=[untouched]",
]
STOPPED = [
    "name=stopped",
    "uptrain.steps=60000",
    "uptrain.save_every=200",
    "uptrain.log_every=100",
    "sweep.baselines=[]",
    "evaluate.tasks=[bits_per_byte]",
    "evaluate.accuracy=[]",
]
FAILED = "uptrain-426fc9a7f690d7d8"
BLOCKED = ("evaluate-904432e3f7f71e97", "evaluate-3f80e5494246b287")
INTERRUPTED_UPTRAIN = "uptrain-a50be37732b336d5"
ADVICE = "run the sweep's line again, which makes a new plan, or delete {}"
INTERRUPTED_MEASURE = "measure-db818ef0c7711baf"
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one's own, which is the working directory."""
    shutil.copytree(FOLDER, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "old"


@pytest.fixture
def store(folder: Path) -> Store:
    return Store(folder / "store")


@pytest.fixture
def mlkv(store: Store, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: its exit status and what it printed."""

    def run(command: str, *arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        status, printed = exit_status(command, "--store", str(store.root), *arguments), capsys.readouterr()
        return status, printed.out + printed.err

    return run


def states(store: Store, name: str, number: int | None = None) -> Counter[str]:
    graph = saved_graph(store, store.sweep(name, number))
    return Counter(state.name for state in read_states(graph, store).values())


def not_measured(ids: Iterable[str]) -> set[str]:
    """Measurements have other ids since they are made in turns."""
    return {id for id in ids if not id.startswith("measure")}


def test_every_step_stands_as_it_did(store: Store) -> None:
    assert states(store, "old", 1) == {"DONE": 19}
    assert states(store, "old") == {"DONE": 16, "FAILED": 1, "PENDING": 2}
    assert states(store, "stopped") == {"DONE": 6, "PENDING": 2, "INTERRUPTED": 1, "LOST": 1}
    assert states(store, "measured") == {"DONE": 5, "INTERRUPTED": 1}


def test_status_lists_every_sweep(mlkv: Run, store: Store) -> None:
    _, printed = mlkv("status")
    assert "old: 16 done, 1 failed, 2 blocked" in printed
    assert "stopped: 6 done, 2 pending, 1 interrupted, 1 lost" in printed
    assert "measured: 5 done, 1 interrupted" in printed
    assert "nested/one: 10 done" in printed
    advice = f"move {store.root}/sweeps/nested/one to {store.root}/sweeps/nested-one"
    assert f"no sweep can be called nested/one: {advice}" in printed
    for command in ("status", "gather", "retry"):
        assert mlkv(command, "nested/one") == (2, f"mlkv: no sweep can be called nested/one: {advice}\n")
    (store.root / "sweeps" / "nested" / "one").rename(store.root / "sweeps" / "nested-one")
    assert mlkv("status", "nested-one")[0] == 0
    assert mlkv("status")[0] == 0


def test_status_of_one_and_why(mlkv: Run) -> None:
    status, printed = mlkv("status", "old")
    assert (status, "training diverged; lower lr" in printed) == (1, True)
    _, printed = mlkv("why", "old", "MHA-4")
    assert f"{FAILED} MHA-4: FAILED" in printed
    assert f"BLOCKED waits for {FAILED}" in printed
    _, printed = mlkv("why", "stopped", "MQA-2")
    assert "INTERRUPTED stopped after step" in printed


def test_logs_are_lines_to_read_of_a_step_a_label_or_a_label_of_a_sweep(mlkv: Run) -> None:
    status, printed = mlkv("logs", FAILED)
    assert status == 0
    assert "2/4  tokens 512  loss none  lr 8.53553e+29" in printed
    assert printed.endswith(f"{FAILED}: failed: loss = nan at step 2: training diverged; lower lr or raise warmup\n")
    assert "{" not in printed
    _, of_one = mlkv("logs", "old", "MQA-2 bits_per_byte")
    assert of_one.endswith("evaluate-cbd8ec4084758830: done in 0.1 s on elsewhere\n")
    _, of_all = mlkv("logs", "--follow", "old", "MQA-2")
    assert of_all.count("== ") == 7
    refusals = {
        ("MQA-2",): "is in the sweeps old, stopped; name one: `mlkv logs old 'MQA-2'`",
        ("old",): "is a sweep; name a label or a step of it too",
        ("nope",): "no step id begins so, and no sweep in",
        ("old", "nope"): "no variant or step of sweep old",
        ("old", BLOCKED[0]): "was never started",
        ("a", "b", "c"): "must be a step id, a label, or a sweep and a label",
    }
    for words, reason in refusals.items():
        status, printed = mlkv("logs", *words)
        assert (status, reason in printed, printed.count("\n")) == (2, True, 1)


def test_a_step_is_called_by_its_label_too(mlkv: Run) -> None:
    assert "MHA-4 bits_per_byte: BLOCKED" in mlkv("why", "old", "MHA-4 bits_per_byte")[1]


def test_gather_has_every_planned_cell(mlkv: Run, folder: Path) -> None:
    mlkv("gather", "old", "-o", "cells.csv", "--curves", "curves.csv")
    with (folder / "cells.csv").open() as file:
        cells = list(csv.DictReader(file))
    scores = {row["variant"]: row["value"][:7] for row in cells if row["metric"] == "bits_per_byte"}
    assert scores == {"untouched": "4.64596", "MQA-2": "4.61701", "MLKV-2": "4.61731", "MHA-4": ""}
    assert {row["state"] for row in cells if row["variant"] == "MHA-4" and row["kind"] == "evaluate"} == {"BLOCKED"}
    assert "train/loss" in (folder / "curves.csv").read_text()


def test_tables_and_the_report(mlkv: Run, folder: Path) -> None:
    status, printed = mlkv("table", "old")
    assert (status, "4.646" in printed, "MLKV-2" in printed) == (0, True, True)
    status, printed = mlkv("table", "theirs", "benchmarks", "--format", "csv")
    assert (status, "gqa" in printed) == (0, True)
    status, _ = mlkv("report", "old", "-o", "page")
    assert status == 0
    page = (folder / "page" / "index.html").read_text()
    assert all(label in page for label in ("untouched", "MQA-2", "MLKV-2", "MHA-4"))


def test_w_and_b_can_be_sent_all_of_it(store: Store) -> None:
    saved = store.sweep("old")
    runs = list(sweep_runs(store, saved))
    begun = [id for id in saved.plan.steps if store.step(id).attempts()]
    assert {run.id for run in runs} >= set(begun)
    assert len(runs) == len(begun) + len(saved.variants)


@pytest.fixture
def plan_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Plan]:
    """From a line to its plan, with the libraries that the store was made with."""
    fix_versions(monkeypatch)
    monkeypatch.setattr(resolve, "_file_pins", resolve._file_pins.__wrapped__)
    return lambda line: make_plan(Composer(FOLDER / "conf"), Resolver(store), [*EXPERIMENT, *line])


@pytest.mark.parametrize(
    ("line", "name", "number", "missing"),
    [
        ([], "old", 1, []),
        (SECOND, "old", 2, []),  # what failed waits for `retry`
        (STOPPED, "stopped", 1, ["uptrain", "evaluate", "uptrain", "evaluate"]),
    ],
)
def test_the_same_line_plans_the_same_steps(
    plan_of: Callable[[list[str]], Plan], store: Store, line: list[str], name: str, number: int, missing: list[str]
) -> None:
    steps = plan_of(line).steps
    before = saved_graph(store, store.sweep(name, number))
    assert not_measured(steps) == not_measured(before)
    stale = set(before) - set(steps)
    assert len(stale) == len(set(steps) - set(before)) > 0
    assert stale <= replaced(steps, store).keys(), "and the plan says so"
    todo = [step.kind for step in to_run(steps, read_states(steps, store)) if step.kind != "measure"]
    assert todo == missing


def test_what_an_option_scores_since_then_is_all_that_the_line_has_besides(
    plan_of: Callable[[list[str]], Plan], store: Store
) -> None:
    old, new = plan_of([]).steps, plan_of(["evaluate.converted=[bits_per_byte]"]).steps
    assert set(old) < set(new)
    besides = [new[id] for id in set(new) - set(old)]
    assert all(new[step.parents["checkpoint"]].kind == "convert" for step in besides)


def test_a_measurement_that_was_interrupted_says_why_it_is_not_finished(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "Child", ChildHere)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    step = store.step(INTERRUPTED_MEASURE)
    assert supervisor.Worker(store).run([step.id]) == supervisor.FAILED
    assert "measured in turns" in step.state().reason
    assert "run the sweep's line again" in step.state().reason


# What earlier code let happen

NESTED = {
    "evaluate-325368552d6ab8ab",
    "evaluate-d4384af2442824c0",
    "measure-2505081f4a4affad",
    "measure-bd064303424043ee",
}
"""Steps of `nested/one` alone."""
STRAY = {"evaluate-25f37978e4dad9e5", "evaluate-e0680f9b6759beb1", "uptrain-a214cee474a261c8"}
"""Steps of an earlier plan of `old` alone."""


def test_prune_drops_what_no_latest_plan_needs(mlkv: Run, store: Store) -> None:
    assert {each.step.id for each in prunable(store) if each.whole} == STRAY
    assert mlkv("prune", "--yes")[0] == 0
    assert not any(store.step(id).record() for id in STRAY)
    assert all(store.step(id).record() for id in NESTED), "a name that leads into a folder is a name still"
    assert all((store.step(id).out / "results.json").exists() for id in NESTED if id.startswith("evaluate"))
    assert all(store.step(id).record() for id in store.sweep("old").plan.steps if id != FAILED and id not in BLOCKED)


@pytest.mark.parametrize("damage", ["unlink", "cut"])
@pytest.mark.parametrize("name", ["old/2", "stopped/1", "nested/one/1"])
def test_prune_drops_nothing_while_a_plan_cannot_be_read(mlkv: Run, store: Store, name: str, damage: str) -> None:
    file = store.root / "sweeps" / name / "plan.json"
    content = file.read_bytes()
    file.unlink()
    if damage != "unlink":
        file.write_bytes(content[:100] if damage == "cut" else b"")
    before = set(store.root.rglob("*"))
    status, printed = mlkv("prune", "--yes")
    assert (status, printed.count("\n")) == (2, 1)
    assert "nothing is dropped while a plan cannot be read" in printed
    assert f"{store.root}/sweeps/{name}" in printed
    assert set(store.root.rglob("*")) == before


def test_one_damaged_sweep_leaves_the_others_their_status(mlkv: Run, store: Store) -> None:
    variants = store.root / "sweeps" / "stopped" / "1" / "variants.jsonl"
    variants.write_bytes(b"")
    (store.step(INTERRUPTED_MEASURE).path / "spec.json").write_text("{}")
    (store.step(FAILED).path / "attempts" / "1" / "exit.json").write_text('{"state": "fai')
    status, printed = mlkv("status")
    assert status == 1
    assert f"damaged: sweep stopped: {variants} is not whole: run the sweep's line again" in printed
    assert f"{INTERRUPTED_MEASURE}/spec.json: has no kind; delete it and run the sweep's line again" in printed
    assert "exit.json: is no JSON" in printed
    assert "; delete it and run the sweep's line again: the attempt counts as lost" in printed
    assert "nested/one: 10 done" in printed
    message = f"mlkv: sweep stopped: {variants} is not whole: {ADVICE.format(variants.parent)}\n"
    for command in ("status", "gather", "report", "sync", "retry", "cancel"):
        assert mlkv(command, "stopped") == (2, message)
    assert mlkv("gather", "measured")[0] == 0


def test_cancel_of_what_does_not_run_says_so(mlkv: Run) -> None:
    ended = "sweep old has ended (16 done, 1 failed, 2 blocked): nothing to cancel\n"
    assert mlkv("cancel", "old") == (0, ended)
    stopped = "no step of sweep stopped is running; if its command still runs, it stops now\n"
    assert mlkv("cancel", "stopped") == (0, stopped)


def test_its_line_mends_a_damaged_sweep(plan_of: Callable[[list[str]], Plan], store: Store) -> None:
    (store.root / "sweeps" / "stopped" / "1" / "plan.json").unlink()
    (store.step(INTERRUPTED_UPTRAIN).path / "spec.json").unlink()
    assert freeze(plan_of(STOPPED), store, STOPPED).number == 2
    found = read_states(saved_graph(store, store.sweep("stopped")), store)
    assert Counter(found[id].name for id in not_measured(found)) == {
        "DONE": 4,
        "PENDING": 2,
        "INTERRUPTED": 1,
        "LOST": 1,
    }


EDITS = {
    "evaluate": ("evaluate-c61c7b370095f245", "bits_per_byte"),
    "corpus": ("corpus-4c8bd4c9072feb1b", "train_tokens"),
    "measure": ("measure-24a0a4ec90a324da", "step_seconds"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edited_number_is_found(mlkv: Run, store: Store, kind: str) -> None:
    id, metric = EDITS[kind]
    step = store.step(id)
    assert edited(step) is None
    record = json.loads((step.path / "done.json").read_text())
    cell = next(cell for cell in record["metrics"] if cell["metric"] == metric)
    was, cell["value"] = cell["value"], 1.5 * cell["value"]
    (step.path / "done.json").write_text(json.dumps(record))
    assert f"it does not have {metric} = {str(was)[:5]}" in str(edited(step))
    if kind != "corpus":  # whose tokens the fixture does not have
        status, printed = mlkv("status", "old", "--verify")
        assert status == 1
        assert f"corrupt {id}: done.json was edited" in printed
        assert step.record() is None


def test_verify_says_what_it_cannot_check(mlkv: Run, store: Store) -> None:
    for step in store.steps():  # make up for what the fixture was reduced by
        if (record := step.record()) and step.corrupted():
            (step.path / "done.json").write_text(json.dumps({**as_json(record), "outputs": {}}))
    corpus = store.step("corpus-4c8bd4c9072feb1b")
    assert (corpus.out / "manifest.json").exists()
    status, printed = mlkv("status", "--verify")
    assert (status, "corrupt" in printed) == (0, False)
    assert "numbers not checked, as earlier code put no seal on their records: 1 base, 2 uptrain" in printed
