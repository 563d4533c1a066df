"""`mlkv audit`: finished steps are run again elsewhere, and what comes out is compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlkv.context import MetricRow, Outcome
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.registry import KINDS
from sweeps.steps.step import Step
from sweeps.store.store import Store
from sweeps.worker import supervisor
from sweeps.worker.audit import audit, drawn
from sweeps.worker.compare import TOLERANCES, Verdict, compare
from sweeps.worker.supervisor import Worker
from tests.support.packs import tree
from tests.support.records import save_sweep, some_record
from tests.support.rows import replace_row
from tests.support.shell import Shell, exit_status
from tests.support.workers_here import planned, workers_here

CORPUS = Step("corpus", {"source": "python_stdlib", "seed": 1})
SCORE = Step("evaluate", {"task": "cloze"}, {"corpus": CORPUS.id})
SPEED = Step("measure", {"dtype": "fp32"})


@dataclass
class Machine:
    """What steps give here."""

    score: float = 0.5
    token: int = 7
    speeds: Iterator[float] = field(default_factory=lambda: iter(range(1, 100)))

    def corpus(self, execution: Execution) -> Outcome:
        (execution.out / "train.bin").write_bytes(bytes([self.token] * 5))
        return Outcome()

    def evaluate(self, execution: Execution) -> Outcome:
        assert (execution.inputs["corpus"] / "train.bin").read_bytes() == bytes([7] * 5)
        (execution.out / "results.json").write_text(json.dumps(self.score))
        return Outcome([MetricRow("acc", self.score)])

    def measure(self, execution: Execution) -> Outcome:
        """No two measurements take the same time."""
        speed = next(self.speeds)
        return Outcome([MetricRow("tokens_per_second", speed, batch=1), MetricRow("cache_bytes", 64.0, batch=1)])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine()
    for kind in ("corpus", "evaluate", "measure"):
        replace_row(monkeypatch, KINDS, kind, StepKind(getattr(machine, kind)))
    with workers_here():
        yield machine


@pytest.fixture
def store(machine: Machine, tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "store")
    steps = (CORPUS, SCORE, SPEED)
    for step in steps:
        planned(store.root, step)
    save_sweep(store, "s", {"steps": {step.id: {"kind": step.kind, "parents": step.parents} for step in steps}})
    assert Worker(store).run([step.id for step in steps]) == 0
    return store


def verdicts(store: Store, capsys: pytest.CaptureFixture[str], *words: str, status: int) -> dict[str, tuple[str, str]]:
    before = tree(store.root)
    capsys.readouterr()
    assert exit_status("audit", "s", "--store", str(store.root), "--json", *words) == status
    assert tree(store.root) == before, "an audit writes nothing to the store"
    steps = json.loads(capsys.readouterr().out)["steps"]
    return {step["kind"]: (step["verdict"], step["reason"]) for step in steps}


def test_what_comes_out_again_is_equal_and_times_are_not_compared(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    found = verdicts(store, capsys, "--sample", "9", status=0)
    assert found == {
        "corpus": ("equal", "1 outputs bit-equal"),
        "evaluate": ("equal", "1 outputs bit-equal"),
        "measure": ("equal", "all numbers equal"),
    }


def test_a_difference_is_judged_by_its_kind(store: Store, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.score *= 1 + TOLERANCES["evaluate"].numbers / 2
    assert verdicts(store, capsys, status=0)["evaluate"][0] == "within tolerance"
    machine.score = 0.6
    assert verdicts(store, capsys, status=1)["evaluate"] == ("different", "differs in acc by 0.17")
    machine.score, machine.token = 0.5, 8
    assert verdicts(store, capsys, status=1)["corpus"] == ("different", "differs in train.bin")


def test_what_cannot_be_run_again_is_said_and_is_not_equal(
    store: Store, machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.step(CORPUS.id).set_aside("not needed", "pruned")
    found = verdicts(store, capsys, "--sample", "2", status=1)
    assert found == {
        "evaluate": ("not run", f"its input {CORPUS.id} was pruned, or set aside"),
        "measure": ("equal", "all numbers equal"),
    }
    replace_row(monkeypatch, KINDS, "measure", StepKind(lambda execution: Outcome([MetricRow("x", float("nan"))])))
    assert "ended as FAILED: metric x: value = nan" in verdicts(store, capsys, status=1)["measure"][1]


def test_a_result_that_was_edited_does_not_hold(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    (store.step(SCORE.id).out / "results.json").write_text("0.9")
    reason = "is not as it was recorded: results.json does not have the content that was recorded"
    assert verdicts(store, capsys, status=1)["evaluate"] == ("different", reason)


def test_another_machine_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"host": "there", "device": "cpu", "versions": {"torch": "3"}}
    monkeypatch.setattr(supervisor, "_machine", lambda: there)
    assert audit(store, SCORE.id).changes == ["host here → there", "torch None → 3"]


def test_the_seed_decides_which_steps_are_drawn(store: Store) -> None:
    ids = [CORPUS.id, SCORE.id, SPEED.id, "base-0123456789abcdef"]
    orders = {tuple(drawn(store, ids, seed)) for seed in range(20)}
    assert {frozenset(order) for order in orders} == {frozenset(ids[:3])}
    assert len(orders) > 3
    assert drawn(store, ids[::-1], 5) == drawn(store, ids, 5)


@pytest.mark.parametrize(
    ("kind", "far", "verdict", "reason"),
    [
        ("convert", 1e-5, Verdict.WITHIN, "bits differ in model.safetensors; weights by 1e-05 of 0.0001 allowed"),
        ("convert", 1e-3, Verdict.DIFFERENT, "differs in model.safetensors by 0.001"),
        (
            "uptrain",
            1.0,
            Verdict.WITHIN,
            "bits differ in model.safetensors; weights by 1; numbers by 0 of 0.01 allowed",
        ),
        ("mine", 1e-9, Verdict.DIFFERENT, "differs in model.safetensors by 1e-09"),
    ],
)
def test_weights_are_compared_by_their_tensors(
    kind: str, far: float, verdict: Verdict, reason: str, tmp_path: Path
) -> None:
    """Of a training the loss decides, and of a kind that an extension adds every bit."""
    records = []
    for name, factor in (("a", 1.0), ("b", 1.0 + far)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((4,), factor, dtype=torch.float64)}, tmp_path / name / "model.safetensors")
        outputs = {"model.safetensors": {"sha256": name, "bytes": 1}, "hf.py": {"sha256": name, "bytes": 1}}
        records.append(some_record(kind=kind, outputs=outputs, metrics=[{"metric": "train_loss", "value": 2.0}]))
    found = compare(records[0], tmp_path / "a", records[1], tmp_path / "b")
    assert (found.verdict, found.files, found.reason) == (verdict, ["model.safetensors"], reason)
    assert found.weights["model.safetensors"] == pytest.approx(far, rel=1e-3)
    (tmp_path / "b" / "model.safetensors").unlink()
    lost = compare(records[0], tmp_path / "a", records[1], tmp_path / "b")
    assert lost.verdict is Verdict.DIFFERENT


def test_bad_arguments_end_in_one_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("s", "--sample", "0"), ("t",), ("s", "--seed", "x")):
        assert exit_status("audit", *words, "--store", str(store.root)) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.long(minutes=1)
def test_a_real_training_is_bit_equal_and_a_pack_of_it_too(undisturbed: Shell, tmp_path: Path) -> None:
    """Steps compute in processes of their own, as they do in jobs."""
    printed = undisturbed("audit", "tiny", "--sample", "2", "--seed", "1")
    assert printed.count("bit-equal") == 2
    undisturbed("pack", "tiny", str(tmp_path / "x.mlkv"), "--weights", "last")
    other = Shell(tmp_path)
    other("unpack", "x.mlkv")
    assert "was unpacked without" in other("audit", "tiny", "--sample", "9", status=1)
