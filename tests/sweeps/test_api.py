"""mlkv.load: what it gives is what the commands give, and docs/python.md says so in lines that run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import mlkv
from analysis.figures.kinds import FIGURES
from mlkv.hf import MLKVForCausalLM
from mlkv.shape import DecoderShape
from tests.support.commands import OLD_STORE, nothing_computes
from tests.support.filler import FIGURES as VARIANTS
from tests.support.filler import HEAD_DIM, HEADS, LAYERS, Filler
from tests.support.seeded import keep
from tests.support.shell import ROOT, exit_status

PAGE = (ROOT / "docs" / "python.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
OLD = mlkv.load(OLD_STORE / "store")
DOCUMENTS = 40


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Filler:
    """Some variants of the quickstart, done; the documents' bits are there, and the weights of one."""
    few = {label: VARIANTS[label] for label in ("untouched", "MHA-36", "MQA-6", "MLKV-6")}
    filler = Filler(tmp_path_factory.mktemp("api") / "store", few, "quickstart")
    shape = DecoderShape(
        64, width=HEADS * HEAD_DIM, layers=LAYERS, heads=HEADS, head_dim=HEAD_DIM, mlp_width=8, context=64
    )
    model = MLKVForCausalLM.from_shape(shape, filler.layout("MLKV-6"), seed=0)
    steps = filler.variant("MLKV-6")["steps"]
    filler.shared()
    for label in few:
        if label != "MLKV-6":
            filler.train(label)
        bits = VARIANTS[label][2] + np.random.default_rng(0).normal(size=DOCUMENTS)
        cell = {"metric": "bits_per_byte", "value": float(bits.mean()), "stderr": 0.1, "n": DOCUMENTS}
        filler.done(
            filler.variant(label)["steps"]["evaluate"]["bits_per_byte"],
            [cell],
            leave=keep(bits, metric="bits_per_byte"),
        )
        filler.measure(label)
    filler.done(steps["convert"], [])
    filler.done(steps["uptrain"], [], leave=model.save_pretrained)
    return filler


@pytest.fixture
def here(quickstart: Filler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A working directory in which `store` is that store."""
    import matplotlib.pyplot as plt

    (tmp_path / "store").symlink_to(quickstart.store.root)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    plt.close("all")


def test_the_page_runs_as_written(here: Path) -> None:
    files = tree(here / "store")
    namespace: dict[str, object] = {}
    for block in BLOCKS:
        exec(block, namespace)
    assert tree(here / "store") == files, "nothing writes to the store"
    results, paired = namespace["results"], namespace["paired"]
    assert isinstance(results, pd.DataFrame)
    assert results.set_index("variant")["quality"]["MQA-6"] == pytest.approx(VARIANTS["MQA-6"][2], abs=0.5)
    assert isinstance(paired, pd.DataFrame)
    difference = (paired["MLKV-6"] - paired["MHA-36"]).to_numpy()
    assert difference == pytest.approx(np.full(DOCUMENTS, VARIANTS["MLKV-6"][2] - VARIANTS["MHA-36"][2]))
    assert "uptrain" in Path(str(namespace["directory"])).parts
    assert (here / "pareto.svg").stat().st_size > 1000


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_page_names_every_method_and_only_columns_that_are_there(here: Path) -> None:
    store = mlkv.load("store")
    public = [name for name in dir(mlkv.Store) if not name.startswith("_") and name != "path"]
    assert [name for name in public if f"`store.{name}" not in PAGE] == []
    columns = store.results("quickstart").columns
    named = re.findall(r"^\| (`.*?`) \| (?!is)", PAGE.partition("## Results")[2].partition("[results.md]")[0], re.M)
    for name in re.findall(r"`(\w+)`", " ".join(named)):
        assert name.replace("x_", "quality_").replace("x", "quality", name == "x") in columns, name


def test_tables_are_those_of_the_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    csv, logged = tmp_path / "cells.csv", tmp_path / "curves.csv"
    line = ["gather", "old", "-o", str(csv), "--curves", str(logged), "--store", str(OLD.path)]
    assert exit_status(*line) == 0
    assert OLD.cells("old").to_csv(index=False) == csv.read_text()
    assert OLD.curves("old").drop(columns="label").to_csv(index=False) == logged.read_text()
    capsys.readouterr()
    exit_status("status", "--json", "--store", str(OLD.path))
    counts = {each["name"]: each["counts"] for each in json.loads(capsys.readouterr().out)["sweeps"]}
    for name, sweep in OLD.sweeps.items():
        if sweep.problem is None:
            assert sweep.states == {state: count for state, count in counts[name].items() if count}
            assert OLD.states(name)["state"].value_counts().to_dict() == sweep.states
            assert sweep.done == (set(sweep.states) == {"DONE"})
    assert "no sweep can be called nested/one" in str(OLD.sweeps["nested/one"].problem)
    assert OLD.imports == ["theirs"]
    assert list(OLD.results("theirs")["state"]) == ["IMPORTED"]
    assert len(OLD.results("published/mlkv")) > 3


def test_several_results_are_one_table() -> None:
    together = OLD.results("old", "theirs")
    assert set(together["variant"]) == {*OLD.results("old")["variant"], *OLD.results("theirs")["variant"]}
    assert OLD.cells("sweep/old", "theirs")["sweep"].value_counts()["old"] == len(OLD.cells("old"))
    with pytest.raises(ValueError, match="old: is named twice"):
        OLD.results("old", "old")
    assert OLD.figure(["old", "theirs"], "layouts").has_data()


def test_a_plan_is_that_of_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["experiment=old", "layout.kv_layers=2,1"]
    with nothing_computes(tmp_path):
        exit_status("plan", *words, "--config-dir", str(OLD_STORE / "conf"), "--json", "--store", str(OLD.path))
        printed = json.loads(capsys.readouterr().out)
        plan = OLD.plan(*words, config_dir=OLD_STORE / "conf")
    assert list(plan.steps["id"]) == [step["id"] for step in printed["steps"]]
    assert list(plan.variants["variant"]) == [variant["variant"] for variant in printed["variants"]]
    assert (plan.name, plan.expected_seconds) == (printed["name"], printed["expected_seconds"])
    assert set(plan.missing["state"]) == set(plan.steps["state"]) - {"DONE"}


def test_samples_make_the_score() -> None:
    samples = OLD.samples("old")
    sums = samples.groupby(["variant", "task", "metric"])[["part", "weight"]].sum()
    cells = OLD.cells("old").dropna(subset=["value"]).set_index(["variant", "task", "metric"])["value"]
    assert len(sums) == 12
    assert (sums["part"] / sums["weight"]).to_dict() == pytest.approx(cells[sums.index].to_dict())
    one = OLD.samples("old", variant="MQA", task="heldout_choice2", metric="acc")
    assert set(one["variant"]) == {"MQA-2"}
    assert set(one["score"]) <= {0.0, 1.0}
    assert OLD.samples("stopped").empty


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no store": (lambda: mlkv.load("nowhere"), "store = nowhere: no such directory"),
    "another directory": (lambda: mlkv.load(ROOT / "docs"), "no store there"),
    "sweep": (lambda: OLD.results("odl"), "did you mean old? valid: measured, old, stopped, theirs"),
    "sweep of steps": (lambda: OLD.states("stoped"), "did you mean stopped? valid: measured, old, stopped"),
    "import": (lambda: OLD.curves("theirs"), "theirs: imported results have no steps"),
    "published": (lambda: OLD.cells("published/mlk"), "no such published set"),
    "variant": (lambda: OLD.checkpoint("old", "MHA-5"), "did you mean MHA-4? valid: MHA-4, MLKV-2"),
    "failed": (lambda: OLD.checkpoint("old", "MHA-4"), "`mlkv retry old` runs it"),
    "not done": (lambda: OLD.checkpoint("stopped", "MLKV-2"), "not done; the sweep's line runs it"),
    "gone": (lambda: OLD.checkpoint("old", "MLKV-2"), "is done, but generation_config.json is not in"),
    "task": (
        lambda: OLD.samples("old", task="heldout_choice3"),
        "task = heldout_choice3: not scored by old; did you mean",
    ),
    "override": (lambda: OLD.plan("experiment=quickstat"), "did you mean quickstart"),
    "config_dir": (lambda: OLD.plan(config_dir="nowhere"), "config_dir = nowhere: no such directory"),
    "figure": (lambda: OLD.figure("old", "paretto"), "figure = paretto: choose from "),
    "nothing to draw": (lambda: OLD.figure("old", "spectrum"), "nothing to draw for old"),
    "axes": (lambda: OLD.figure("old", "memory", ax=[]), "ax: must be the axes of one panel, not list"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_line(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_pruned_weights_are_refused(tmp_path: Path) -> None:
    filler = Filler(tmp_path / "store", {"MQA-6": VARIANTS["MQA-6"]})
    filler.shared()
    filler.train("MQA-6")
    filler.store.step(filler.variant("MQA-6")["steps"]["uptrain"]).set_aside("no sweep needs it", "pruned")
    with pytest.raises(ValueError, match=r"is PENDING \(set aside: no sweep needs it\), not done; the sweep's line"):
        mlkv.load(str(filler.store.root)).checkpoint("demo", "MQA-6")


def test_the_store_of_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLKV_STORE", str(OLD.path))
    assert mlkv.load().path == OLD.path
    assert mlkv.load(os.fspath(OLD.path)).path == OLD.path


@pytest.mark.parametrize("kind", ["pareto_loss", "memory", "layouts", "tasks"])
def test_a_figure_is_drawn_into_axes_of_the_callers(kind: str, here: Path) -> None:
    store, before = mlkv.load("store"), dict(matplotlib.rcParams)
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    own = store.figure("quickstart", kind)
    assert own.figure is not figure
    if len(own.figure.axes) > 1:
        with pytest.raises(ValueError, match="ax: this figure has panels of its own; leave it out"):
            store.figure("quickstart", kind, ax=left)
        assert not left.has_data()
        return
    assert store.figure("quickstart", kind, ax=left) is left
    assert (left.get_xlabel(), left.get_xlim()) == (own.get_xlabel(), own.get_xlim())
    assert not right.has_data()
    assert not right.texts
    texts = {text.get_text().replace("\n", " ") for text in left.texts}
    names = {text.get_text() for text in own.texts}
    assert names <= texts, "the same names"
    figure.canvas.draw()
    inside = figure.bbox
    for text in left.texts:
        box = text.get_window_extent()
        assert inside.x0 <= box.x0, text.get_text()
        assert inside.y0 <= box.y0, text.get_text()
    assert dict(matplotlib.rcParams) == before
    assert figure.get_layout_engine() is not None


def test_a_figure_that_makes_its_own_axes_takes_none(here: Path) -> None:
    row = FIGURES["memory"]
    FIGURES["alone"] = type(row)("one of an extension", lambda source, published: Figure(), "nothing")
    try:
        ax = Figure().subplots()
        with pytest.raises(ValueError, match="ax: this figure makes its own axes; leave it out"):
            mlkv.load("store").figure("quickstart", "alone", ax=ax)
    finally:
        del FIGURES["alone"]
