"""`mlkv pack` and `mlkv unpack`: what another person's results are in a store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.data import curves
from analysis.figures.drawing import draw
from analysis.statistics.sources import load
from analysis.tables.paper import make_tables
from analysis.tables.rendering import markdown
from sweeps.cli.current import is_current
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan
from sweeps.planning.reconcile import Costs, read_states, to_run
from sweeps.sharing.packing import pack
from sweeps.sharing.unpacking import unpack
from sweeps.store.states import StepState
from sweeps.store.store import Store, StoreError
from sweeps.worker.supervisor import BLOCKED, Worker
from tests.support.hub import COMMIT, TOKEN, uploads
from tests.support.packs import Packed, contents, fill, finish, tree
from tests.support.processes import PATIENCE
from tests.support.read_back import present
from tests.support.shell import ROOT, exit_status
from tests.support.workers_here import workers_here

Planner = Callable[[Sequence[str]], Plan]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def bob(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "bob")


def missing(plan: Plan, store: Store) -> list[str]:
    return [step.id for step in to_run(plan.steps, read_states(plan.steps, store))]


def tables(store: Store) -> dict[str, str]:
    """Without the notes, which say whose results they are."""
    return {kind: markdown(replace(made, notes=[])) for kind, made in make_tables(load(store, "tiny"), []).items()}


def test_what_was_unpacked_counts_as_done_and_shows_the_same(ada: Packed, bob: Store) -> None:
    done = unpack(bob, ada.file())
    assert sorted(done.new) == sorted(ada.plan.steps)
    assert missing(ada.plan, bob) == []
    freeze(ada.plan, bob, ada.line)
    assert missing(ada.plan, bob) == [], "nor where the line runs here"
    assert tables(bob) == tables(ada.store)
    ours, theirs = load(bob, "tiny"), load(ada.store, "tiny")
    apart = ["origin", "machine"]
    pd.testing.assert_frame_equal(ours.table.drop(columns=apart), theirs.table.drop(columns=apart))
    rows, original = (curves.of_store(store, store.sweep("tiny")) for store in (bob, ada.store))
    pd.testing.assert_frame_equal(rows, original)
    assert ours.notes == [
        f"from Ada: 20 of 20 steps, packed as of {ada.store.sweep('tiny').plan.created}",
        "note: a first look",
    ]
    assert {step.state().reason for step in bob.steps()} == {"from Ada"}
    assert "from Ada: 20 of 20 steps" in present(draw("pareto", ours)).get_supxlabel()
    assert all(step.corrupted() is None and step.seal_holds() for step in bob.steps())


def test_times_keep_their_machine_and_foretell_nothing_here(ada: Packed, bob: Store) -> None:
    unpack(bob, ada.file())
    measured = load(bob, "tiny").table.query("kind == 'measure'")
    assert set(measured["machine"]) == {"node-1, cpu, torch 2.13.0, python 3.11, from Ada"}
    assert set(load(ada.store, "tiny").table.query("kind == 'measure'")["machine"]) == {
        "node-1, cpu, torch 2.13.0, python 3.11"
    }
    assert Costs.of_store(bob).seconds_per_work == {}
    assert Costs.of_store(ada.store).seconds_per_work != {}


def test_a_table_with_trainings_of_two_people_says_who_made_which(ada: Packed, bob: Store, planner: Planner) -> None:
    unpack(bob, ada.file("all"))
    both = planner([*ada.line, "layout=mqa,mlkv", "layout.kv_layers=1"])
    freeze(both, bob, ada.line)
    for id in missing(both, bob):
        finish(bob, both.steps[id])
    (table,) = make_tables(load(bob, "tiny"), ["training"]).values()
    assert table.headers[-1] == "from"
    assert {row[-1].text for row in table.rows} == {"Ada", "here"}
    assert "not comparable" in table.notes[0]


def test_equal_content_is_equal_bytes_and_names_no_place(ada: Packed, tmp_path: Path, text_files: Path) -> None:
    again = tmp_path / "again.mlkv"
    pack(ada.store, ada.store.sweep("tiny"), again, by="Ada", weights="none")
    assert again.read_bytes() == ada.file().read_bytes()
    files = contents(again)
    places = [str(each).encode() for each in (ada.folder, text_files, tmp_path, Path.home())]
    assert not [name for name, content in files.items() for place in places if place in content]
    assert json.loads(files["sweep/plan.json"])["command"] == [
        "mlkv",
        "sweep",
        "experiment=tiny",
        "corpus.files=[…/*.txt]",
        *ada.line[2:],
    ]
    assert not [name for name in files if name.endswith((".py", ".safetensors", ".log"))]
    assert any(name.endswith("acc.samples") for name in files)


def test_unpacking_twice_is_the_same_as_once(ada: Packed, bob: Store) -> None:
    unpack(bob, ada.file())
    before = tree(bob.root)
    assert sorted(unpack(bob, ada.file()).same) == sorted(ada.plan.steps)
    assert tree(bob.root) == before


def test_a_step_runs_here_where_its_weights_are_needed_and_were_not_packed(
    ada: Packed, bob: Store, planner: Planner
) -> None:
    unpack(bob, ada.file())
    more = planner([*ada.line, "evaluate.converted=[bits_per_byte]", "name=more"])
    before = read_states(more.steps, bob)
    wanted = missing(more, bob)
    kinds = [more.steps[id].kind for id in wanted]
    assert kinds[0] == "corpus", "parents first"
    assert set(kinds) == {"corpus", "base", "convert", "evaluate"}
    assert [more.steps[id].kind for id, state in before.items() if state.name is StepState.DONE].count("uptrain") == 2
    assert "from Ada, without the outputs that are needed" in before[wanted[0]].reason
    freeze(more, bob, ada.line)
    for id in wanted:
        finish(bob, more.steps[id], seed=1)  # another machine made other weights
    assert missing(more, bob) == []
    assert bob.step(wanted[0]).state().reason == "another result is kept beside, from Ada"
    assert not bob.step(wanted[0]).origin()


def test_packed_weights_fill_in_what_an_earlier_pack_left_out(ada: Packed, bob: Store) -> None:
    unpack(bob, ada.file())
    last = next(row for row in bob.sweep("tiny").variants if row.steps.uptrain).steps
    assert last.uptrain
    assert last.convert
    assert len(unpack(bob, ada.file("last")).filled) == 3
    assert bob.step(last.uptrain).left_out() == []
    assert bob.step(last.convert).left_out() == ["model.safetensors"]
    unpack(bob, ada.file("all"))
    assert not [step for step in bob.steps() if step.left_out()]
    assert not list(bob.root.rglob("*.py")), "code stays where it is"


def test_another_result_of_a_step_is_kept_beside_and_never_chosen(
    ada: Packed, bob: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(bob, ada.plan, ada.line, seed=1)
    before = tables(bob)
    done = unpack(bob, ada.file())
    assert sorted(done.beside) == sorted(ada.plan.steps)
    assert tables(bob) == before
    again = unpack(bob, ada.file())
    assert (again.beside, sorted(again.same)) == ([], sorted(ada.plan.steps))
    store = ("--store", str(bob.root))
    capsys.readouterr()
    assert exit_status("why", "tiny", "MQA-2", *store) == 0
    assert "DONE another result is kept beside, from Ada" in capsys.readouterr().out
    assert exit_status("show", "tiny", "MQA-2", *store, "--json") == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert all(each["from"] == "from Ada" and not each["same"] for step in steps for each in step["others"])
    assert all(step["from"] is None and len(step["others"]) == 1 for step in steps)
    assert "20 steps have another result too, which is not shown here: mlkv show" in load(bob, "tiny").notes


def test_a_name_is_taken_by_another_plan_alone(ada: Packed, bob: Store, planner: Planner) -> None:
    other = planner([*ada.line, "uptrain.steps=5"])
    freeze(other, bob, ada.line)
    before = tree(bob.root)
    with pytest.raises(StoreError, match="name = tiny: is that of a sweep here with another plan; --name"):
        unpack(bob, ada.file())
    assert tree(bob.root) == before
    unpack(bob, ada.file(), "hers")
    assert set(bob.sweep("hers").plan.steps) == set(ada.plan.steps)
    assert set(bob.sweep("tiny").plan.steps) == set(other.steps)


def test_a_failed_step_becomes_done_and_keeps_its_logs(ada: Packed, bob: Store) -> None:
    freeze(ada.plan, bob, ada.line)
    corpus = bob.step(next(iter(ada.plan.steps)))
    corpus.note_not_begun("failed", "no disk", "it went wrong")
    unpack(bob, ada.file())
    assert corpus.state().reason == "from Ada"
    assert [path.read_text() for path in corpus.path.glob("attempts-*/1/err.log")] == [
        "it went wrong\nfailed: no disk\n"
    ]


def test_a_running_step_is_left_alone(ada: Packed, bob: Store) -> None:
    freeze(ada.plan, bob, ada.line)
    claim = bob.step(next(iter(ada.plan.steps))).claim()
    assert claim
    assert unpack(bob, ada.file()).running == [claim.step.id]
    assert claim.holds()
    claim.release()
    claim.attempt.finish("interrupted", "", None)
    assert unpack(bob, ada.file()).new == [claim.step.id]


def test_what_is_packed_on_still_says_whose_it_is(ada: Packed, bob: Store, tmp_path: Path) -> None:
    unpack(bob, ada.file())
    pack(bob, bob.sweep("tiny"), tmp_path / "b.mlkv", by="Bob", weights="none")
    carol = Store.open(tmp_path / "carol")
    unpack(carol, tmp_path / "b.mlkv")
    assert {step.state().reason for step in carol.steps()} == {"from Ada"}


def test_only_a_sound_result_is_packed(ada: Packed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ada.folder / "store", tmp_path / "store")
    store, target = Store(tmp_path / "store"), tmp_path / "x.mlkv"
    samples = next(path for path in (store.root / "steps").rglob("acc.samples"))
    samples.write_bytes(samples.read_bytes()[:-1] + b"x")
    line = ("pack", "tiny", str(target), "--store", str(store.root))
    assert exit_status(*line) == 2
    assert "is not as its record says" in capsys.readouterr().err
    target.write_text("mine")
    assert exit_status(*line) == 2
    assert "exists and is no pack" in capsys.readouterr().err
    assert exit_status(*line, "--by", "../x") == 2
    assert exit_status(*line, "--weights", "some") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"store", "x.mlkv"}


def test_the_commands_say_what_they_did(ada: Packed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, store = str(tmp_path / "p.mlkv"), ("--store", str(tmp_path / "new"))
    assert exit_status("pack", "tiny", file, "--by", "", "--store", str(ada.store.root)) == 0
    assert capsys.readouterr().out.endswith("by nobody in particular\n")
    assert exit_status("unpack", file, *store) == 0
    assert capsys.readouterr().out.startswith("tiny, from another store:\n    20 steps count as done\n")
    assert exit_status("unpack", file, str(ada.file()), *store, "--json") == 0
    packs = json.loads(capsys.readouterr().out)["packs"]
    assert [(each["by"], len(each["same"])) for each in packs] == [(None, 20), ("Ada", 20)]
    assert exit_status("retry", "tiny", *store) == 2
    assert "its plan was unpacked (from another store) and knows no files of this machine" in capsys.readouterr().err
    assert exit_status("unpack", *store) == 2
    assert exit_status("unpack", file, str(ada.file()), "--name", "x", *store) == 2


def test_a_job_that_was_planned_before_waits_for_what_was_left_out(ada: Packed, bob: Store) -> None:
    """Another one may have unpacked the results of a step meanwhile; the next round of the sweep runs it."""
    freeze(ada.plan, bob, ada.line)
    score = next(step for step in ada.plan.steps.values() if step.kind == "evaluate")
    unpack(bob, ada.file())
    bob.step(score.id).set_aside("to be run again")
    with workers_here():
        assert Worker(bob).run([score.id]) == BLOCKED
    (parent,) = (bob.step(id) for id in score.parents.values() if not bob.step(id).record())
    assert [other.words for other in parent.others()] == ["from Ada"]


def test_a_page_from_before_is_not_current(ada: Packed, bob: Store, tmp_path: Path) -> None:
    """What was unpacked was finished before the page was written, and is new to it."""
    freeze(ada.plan, bob, ada.line)
    page = tmp_path / "index.html"
    page.write_text("drawn")
    unpack(bob, ada.file())
    assert not is_current(page, bob, bob.sweep("tiny"))
    later = time.time() + 60
    os.utime(page, (later, later))
    assert is_current(page, bob, bob.sweep("tiny"))


SHARED = """
import sys
from sweeps.cli import main
main(sys.argv[1:])
"""


def shared(home: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`mlkv` in a process of its own: the hub's client reads its address once."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env = {**others, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", SHARED, *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE)


@pytest.mark.long
def test_packs_go_through_a_dataset_repository(ada: Packed, bob: Store, tmp_path: Path) -> None:
    with uploads() as hub:
        there = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
        line = ("pack", "tiny", "--by", "Ada", "--store", ada.store.root, "--push", "ada/results")
        done = shared(tmp_path / "home", *line, **there)
        assert (done.returncode, done.stdout) == (0, f"{hub.url}/ada/results/commit/{COMMIT}\n"), done.stderr
        assert hub.private == {"ada/results": True}
        assert hub.repositories["ada/results"] == {"tiny.mlkv": ada.file().read_bytes()}
        pulled = ("unpack", "--store", bob.root, "--pull")
        done = shared(tmp_path / "home", *pulled, "ada/results", **there)
        assert done.returncode == 0, done.stderr
        assert {step.state().reason for step in bob.steps()} == {"from Ada"}
        before = tree(bob.root)
        for content in (ada.file().read_bytes()[:-9], b"hello"):
            hub.repositories["ada/results"] = {"tiny.mlkv": content}
            done = shared(tmp_path / "home", *pulled, "ada/results", **there)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        done = shared(tmp_path / "home", *pulled, "ada/nothing", **there)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert tree(bob.root) == before
