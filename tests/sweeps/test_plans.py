"""Frozen plans: whole or not there, numbered one after the other, and damage to one is its own sweep's affair."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sweeps.dispatch import submit
from sweeps.planning.config import ClusterConfig
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan
from sweeps.planning.reconcile import saved_graph
from sweeps.store.errors import UserError
from sweeps.store.plans import ABANDONED_SECONDS, SweepFolder
from sweeps.store.store import SavedSweep, Store, StoreError
from sweeps.store.typed_json import as_json
from tests.support.records import save_sweep, some_record

STEPS = {"base-1": {"kind": "base", "label": "b", "parents": {}, "variants": ["MHA-4", "MQA-2"]}}
PLAN = {"steps": STEPS, "accuracy": []}
ROWS = [{"variant": "MHA-4"}, {"variant": "MQA-2"}]
OPERATIONS = ("mkdir", "fsync", "rename", "open", "io.open")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path)


def save(store: Store, name: str = "a", rows: list[dict[str, Any]] = ROWS, **changes: Any) -> SavedSweep:
    return save_sweep(store, name, {**PLAN, **changes}, rows)


def labels(store: Store) -> list[str]:
    return [row.variant for row in store.sweep("a").variants]


@contextmanager
def failing(operation: str, number: int, code: int = errno.ENOSPC) -> Iterator[list[int]]:
    """The `number`-th time (from 0) that this process does it, the file system refuses; a list of what it did."""
    module, name = (io, "open") if operation == "io.open" else (os, operation)
    real = getattr(module, name)
    calls: list[int] = []

    def refuse(*arguments: Any, **named: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == number + 1:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, refuse)
        yield calls


def is_clean(store: Store) -> bool:
    """Every plan that is there is whole, and nothing else is."""
    for folder in (store.root / "sweeps").glob("*"):
        for path in folder.iterdir():
            if not path.name.isdigit() or {f.name for f in path.iterdir()} != {
                "plan.json",
                "variants.jsonl",
                "overrides.txt",
            }:
                return False
    return not any(folder.problem() for folder in store.sweep_folders())


def attempt(store: Store) -> StoreError | None:
    """Save the plan; why that failed."""
    try:
        save(store)
    except StoreError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        *((operation, errno.ENOSPC) for operation in OPERATIONS),
        *(("rename", code) for code in (errno.EIO, errno.EDQUOT, errno.ESTALE)),
    ],
)
def test_a_fault_at_any_moment_leaves_a_whole_plan_or_none(tmp_path: Path, operation: str, code: int) -> None:
    for number in range(20):
        store = Store.open(tmp_path / str(number))
        save(store, accuracy=[["before", "acc"]])
        with failing(operation, number, code) as calls:
            error = attempt(store)
        assert is_clean(store)
        assert store.sweep("a").number in ((1, 2) if error else (2,))
        message = str(error or f"sweep a: {os.strerror(code)}")
        assert (message.startswith("sweep a: "), os.strerror(code) in message, "\n" in message) == (True, True, False)
        assert (save(store).number, labels(store)) == (2, ["MHA-4", "MQA-2"])
        if len(calls) <= number:
            assert number > 0, "the fault was never met"
            return
    pytest.fail("always another call")


@pytest.mark.parametrize("number", range(5))
def test_a_launcher_killed_at_any_moment_bricks_nothing(store: Store, number: int) -> None:
    """Nothing is tidied up after it: what it left is what a later launcher finds."""
    with failing("fsync", number), pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        assert attempt(store)
    assert not any(folder.problem() for folder in store.sweep_folders())
    assert save(store).number == 1
    assert store.sweep_names() == ["a"]


def test_what_a_dead_launcher_left_goes_in_the_end(store: Store) -> None:
    old, fresh = (store.root / "sweeps" / "a" / name for name in (".new-old", ".new-fresh"))
    for path in (old, fresh):
        path.mkdir(parents=True)
        (path / "variants.jsonl").write_text("{}\n")
    before = fresh.stat().st_mtime - ABANDONED_SECONDS - 1
    os.utime(old, (before, before))
    save(store)
    assert (old.exists(), fresh.exists()) == (False, True)
    assert store.sweep_names() == ["a"]


@pytest.mark.parametrize("leftover", [[], ["overrides.txt"], ["overrides.txt", "variants.jsonl"]])
def test_a_folder_without_a_plan_keeps_no_name(store: Store, leftover: list[str]) -> None:
    """As earlier code left it when it died in between."""
    for number in ("1", "2"):
        (store.root / "sweeps" / "a" / number).mkdir(parents=True)
        for name in leftover:
            (store.root / "sweeps" / "a" / number / name).write_text("")
    assert store.sweep_names() == []
    with pytest.raises(StoreError, match=r"sweep a: .*2 has no plan.json: run the sweep's line again"):
        store.sweep("a")
    assert save(store).number == 3
    assert store.sweep("a").number == 3
    assert [folder.problem() for folder in store.sweep_folders()] == [None]


def test_the_line_of_a_sweep_with_an_unfinished_plan_makes_a_new_one(store: Store) -> None:
    save(store)
    (store.root / "sweeps" / "a" / "2").mkdir()
    assert store.sweep("a").number == 1
    assert "2 has no plan.json: run the sweep's line again, which makes a new plan" in str(store.sweep_problem("a"))
    assert (save(store).number, save(store).number, store.sweep_problem("a")) == (3, 3, None)


def together(count: int, do: Callable[[int], SavedSweep]) -> list[int]:
    """Plan numbers that so many launchers got who began at one moment."""
    gate = threading.Barrier(count)

    def one(i: int) -> int:
        gate.wait()
        return do(i).number

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize("round", range(3))
def test_launchers_of_the_same_sweep_share_a_plan(store: Store, round: int) -> None:
    assert together(8, lambda _: save(store)) == [1] * 8
    assert is_clean(store)


def test_a_plan_that_another_launcher_writes_after_the_comparison_is_shared(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SweepFolder._latest

    def latest(folder: SweepFolder) -> SavedSweep | None:
        found = real(folder)
        monkeypatch.undo()
        save(store)  # the other launcher
        return found

    monkeypatch.setattr(SweepFolder, "_latest", latest)
    assert save(store).number == 1
    assert is_clean(store)


def test_launchers_of_different_plans_get_a_number_each(store: Store) -> None:
    numbers = together(8, lambda i: save(store, accuracy=[[str(i), "acc"]]))
    assert sorted(numbers) == list(range(1, 9))
    assert {store.sweep("a", n).plan.accuracy[0][0] for n in numbers} == {str(i) for i in range(8)}
    assert is_clean(store)


def test_a_rename_whose_answer_got_lost_has_made_the_plan(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def rename(*paths: Any) -> None:
        real(*paths)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "rename", rename)
    assert save(store).number == 1
    assert is_clean(store)


# Damage


def plan_file(store: Store, name: str) -> Path:
    return store.root / "sweeps" / name / "1" / "plan.json"


def variants_file(store: Store, name: str) -> Path:
    return store.root / "sweeps" / name / "1" / "variants.jsonl"


def cut(path: Path, part: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Store], object]] = {
    "plan cut": lambda store: cut(plan_file(store, "b")),
    "plan empty": lambda store: cut(plan_file(store, "b"), 0),
    "plan gone": lambda store: plan_file(store, "b").unlink(),
    "plan is noise": lambda store: plan_file(store, "b").write_bytes(bytes(range(256))),
    "plan of another shape": lambda store: plan_file(store, "b").write_text("[1, 2]"),
    "plan without steps": lambda store: plan_file(store, "b").write_text("{}"),
    "plan is null": lambda store: plan_file(store, "b").write_text("null"),
    "plan nested without end": lambda store: plan_file(store, "b").write_text("[" * 100_000),
    "plan is a folder": lambda store: make_folder(plan_file(store, "b")),
    "variants cut": lambda store: cut(variants_file(store, "b")),
    "variants cut at a line": lambda store: variants_file(store, "b").write_text('{"variant": "MHA-4"}\n'),
    "variants without their last character": lambda store: variants_file(store, "b").write_text(
        '{"variant": "MHA-4"}\n{"variant": "MQA-2"'
    ),
    "variants empty": lambda store: cut(variants_file(store, "b"), 0),
    "variants gone": lambda store: variants_file(store, "b").unlink(),
    "variants are noise": lambda store: variants_file(store, "b").write_bytes(bytes(range(256))),
    "variants of another shape": lambda store: variants_file(store, "b").write_text("1\n2\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan_is_named_and_the_others_go_on(store: Store, damage: str) -> None:
    for name in ("a", "b", "c"):
        save(store, name)
    DAMAGES[damage](store)
    problems = {folder.name: folder.problem() for folder in store.sweep_folders()}
    assert (problems["a"], problems["c"]) == (None, None)
    assert problems["b"]
    assert problems["b"].startswith("sweep b: ")
    assert f"{store.root}/sweeps/b/1" in problems["b"]
    assert "\n" not in problems["b"]
    with pytest.raises(StoreError, match="sweep b: "):
        store.sweep("b")
    assert labels(store) == ["MHA-4", "MQA-2"]
    planned = store.planning("base-1")
    assert planned
    assert planned.name in ("a", "c")
    assert (save(store, "b").number, store.sweep("b").number) == (2, 2), "its line makes a new plan"


def test_a_file_without_its_last_newline_is_whole(store: Store) -> None:
    save(store)
    path = variants_file(store, "a")
    path.write_text(path.read_text().rstrip("\n"))
    assert labels(store) == ["MHA-4", "MQA-2"]


# What is written beside the plan


def test_specs_that_cannot_be_written_leave_no_plan(planner: Callable[[list[str]], Plan], store: Store) -> None:
    plan = planner(["layout=mqa", "measure=none"])
    with (
        failing("fsync", 3),
        pytest.raises(StoreError, match=r"sweep unnamed: its steps cannot be written to .*space"),
    ):
        freeze(plan, store, [])
    assert store.sweep_names() == []
    assert not list(store.root.rglob(".*")), "nothing half-written"
    assert len(freeze(plan, store, []).plan.steps) == len(plan.steps)


def test_a_record_whose_spec_was_deleted_gets_it_again(planner: Callable[[list[str]], Plan], store: Store) -> None:
    plan = planner(["layout=mqa", "measure=none"])
    saved = freeze(plan, store, [])
    step = store.step(next(iter(plan.steps)))
    (step.path / "done.json").write_text(json.dumps(as_json(some_record(attempt=1))))
    (step.path / "spec.json").unlink()
    with pytest.raises(StoreError, match=r"spec.json is gone from .*; run the sweep's line again"):
        saved_graph(store, saved)
    freeze(plan, store, [])
    assert set(saved_graph(store, saved)) == set(plan.steps)


def test_code_that_cannot_be_copied_is_one_line(store: Store) -> None:
    cluster, saved = ClusterConfig(), save(store, cluster={}, tracking={"mode": "off"})
    with (
        failing("rename", 0),
        pytest.raises(UserError, match=r"^store = .*: the code cannot be copied there \(No space"),
    ):
        submit.start_local([], cluster, store, saved)
