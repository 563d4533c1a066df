"""The store's promises: one runner per step, records last, nothing half-written, corruption seen."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import binary, dictionaries, text

from sweeps.store import stepdir
from sweeps.store.files import last_line, read_json, write_atomic, write_json, write_once
from sweeps.store.schema import LoggedRow, Runtime, Spec
from sweeps.store.stepdir import Claim
from sweeps.store.store import Store, StoreError
from sweeps.store.user_cache import user_cache
from tests.support.read_back import present
from tests.support.records import record_of, save_sweep

ID = "corpus-0123456789abcdef"
SPEC = Spec(kind="corpus", schema=1, slice={}, parents={}, pinned={})


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    """What is shown here does not depend on it, and thousands of them take their time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda descriptor: None)
        yield


def begin(store: Store, step_id: str = ID) -> Claim:
    claim = store.step(step_id).claim()
    assert claim
    return claim


def finish(claim: Claim, files: dict[str, bytes]) -> bool:
    for name, content in files.items():
        (claim.attempt.out / name).write_bytes(content)
    published = claim.step.publish(claim, record_of(claim))
    claim.attempt.finish("done", "", 0)
    claim.release()
    return published


def test_tests_leave_the_users_cache_alone() -> None:
    assert user_cache("digests").parents[1].name.startswith("mlkv-test-cache-")


def test_states_of_a_step_from_first_to_last(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    step = store.step(ID)
    assert step.state().name == "PENDING"
    claim = begin(store)
    claim.attempt.metrics_file.write_text('{"step": 1, "steps": 9}\n{"step": 2, "ste')
    state = step.state()
    assert (state.name, state.progress) == ("RUNNING", LoggedRow(fields={"step": 1, "steps": 9}))
    claim.attempt.finish("failed", "loss is NaN at step 3", 1)
    claim.release()
    assert (step.state().name, step.state().reason) == ("FAILED", "loss is NaN at step 3")
    assert finish(begin(store), {"a": b"1"})
    assert (step.state().name, step.state().attempt) == ("DONE", 2)
    assert step.claim() is None


def test_one_of_many_gets_the_claim(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    with ThreadPoolExecutor(16) as pool:
        claims = list(pool.map(lambda _: store.step(ID).claim(), range(64)))
    assert sum(claim is not None for claim in claims) == 1


def test_the_claim_of_a_dead_process_is_taken_over_once(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    imports = "from pathlib import Path; from sweeps.store.store import Store"
    code = f"{imports}; Store(Path({str(tmp_path)!r})).step({ID!r}).claim()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert store.step(ID).state().name == "LOST"
    with ThreadPoolExecutor(16) as pool:
        claims = [claim for claim in pool.map(lambda _: store.step(ID).claim(), range(64)) if claim]
    assert [claim.attempt.number for claim in claims] == [2]


def test_another_hosts_claim_lives_as_long_as_its_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path)
    claim = begin(store)
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert store.step(ID).state().name == "RUNNING"
    assert store.step(ID).claim() is None
    monkeypatch.setattr(stepdir, "stale_seconds", lambda: -1.0)
    monkeypatch.setattr(stepdir, "LISTEN_SECONDS", 0.0)
    assert store.step(ID).state().name == "LOST"
    second = begin(store)
    assert finish(second, {"a": b"second"})
    assert not finish(claim, {"a": b"first, too late"})
    assert (store.step(ID).out / "a").read_bytes() == b"second"
    assert present(store.step(ID).record()).attempt == second.attempt.number


def test_output_published_without_a_record_is_made_again(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    claim = begin(store)
    (claim.attempt.out / "a").write_bytes(b"half")
    claim.attempt.out.rename(claim.step.out)  # killed here, before the record
    claim.release()
    assert finish(begin(store), {"a": b"whole"})
    assert (store.step(ID).out / "a").read_bytes() == b"whole"


@given(dictionaries(text("abc", min_size=1, max_size=4), binary(min_size=1, max_size=64), min_size=1), st.data())
def test_one_flipped_bit_is_seen_and_the_record_withdrawn(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], data: st.DataObject
) -> None:
    store = Store.open(tmp_path_factory.mktemp("store"))
    step = store.step(ID)
    assert finish(begin(store), files)
    assert step.corrupted() is None
    name = data.draw(st.sampled_from(sorted(files)))
    bit = data.draw(st.integers(0, 8 * len(files[name]) - 1))
    content = bytearray(files[name])
    content[bit // 8] ^= 1 << bit % 8
    (step.out / name).write_bytes(content)
    wrong = step.corrupted()
    assert wrong
    assert name in wrong
    step.set_aside(wrong)
    assert (step.state().name, step.record()) == ("PENDING", None)
    assert name in step.state().reason
    assert finish(begin(store), files)
    assert step.corrupted() is None


def test_a_withdrawn_record_overwrites_none_of_the_others(tmp_path: Path) -> None:
    """Although one in between was deleted by hand."""
    step = Store.open(tmp_path).step(ID)
    for reason in ("first", "second"):
        assert finish(begin(Store(tmp_path)), {"a": b"1"})
        step.set_aside(reason)
    (step.path / "done.corrupt-1.json").unlink()
    assert finish(begin(Store(tmp_path)), {"a": b"1"})
    step.set_aside("third")
    assert sorted(path.name for path in step.path.glob("done.*.json")) == ["done.corrupt-2.json", "done.corrupt-3.json"]


def test_a_missing_output_is_corruption(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    assert finish(begin(store), {"a": b"1", "b": b"2"})
    (store.step(ID).out / "b").unlink()
    assert store.step(ID).corrupted() == "b is missing"


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"store = .*file.*cannot be written .*MLKV_STORE"):
        Store.open(tmp_path / "file")


def test_numbered_plans_of_a_sweep(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    plan: dict[str, Any] = {"steps": {}, "accuracy": []}
    rows = [{"variant": "MHA-4"}]
    assert save_sweep(store, "a", plan, rows).number == 1
    assert save_sweep(store, "a", plan, rows).number == 1
    assert save_sweep(store, "a", plan, [*rows, {"variant": "MQA-2"}]).number == 2
    assert [len(store.sweep("a", n).variants) for n in (1, 2)] == [1, 2]
    assert store.sweep("a").number == 2
    with pytest.raises(StoreError, match=r"sweep b: .*sweeps there: a"):
        store.sweep("b")


def test_steps_are_found_by_a_beginning_that_tells_them_apart(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    for step_id in ("base-00aa", "base-00ab"):
        store.step(step_id).write_spec(SPEC, Runtime())
    assert store.find("base-00ab").id == "base-00ab"
    with pytest.raises(StoreError, match="2 steps"):
        store.find("base-00a")
    with pytest.raises(StoreError, match="no step"):
        store.find("base-1")


def test_a_spec_is_written_once_and_its_how_follows_the_last_plan(tmp_path: Path) -> None:
    step = Store.open(tmp_path).step(ID)
    step.write_spec(replace(SPEC, slice={"seed": 1}), Runtime(fields={"micro_batch": 8}))
    step.write_spec(replace(SPEC, slice={"seed": 2}), Runtime(fields={"micro_batch": 4}))
    spec = step.spec()
    assert spec
    assert (spec.slice, step.how().fields) == ({"seed": 1}, {"micro_batch": 4})


def test_atomic_writes_leave_nothing_behind(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "1")
    write_atomic(tmp_path / "a", "2")
    assert not write_once(tmp_path / "a", "3")
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "b", float("nan"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert read_json(tmp_path / "a") == 2


@given(st.lists(st.text("xyz", max_size=30000), max_size=4), st.text("torn", max_size=5))
def test_the_last_complete_line_of_a_growing_file(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], torn: str
) -> None:
    path = tmp_path_factory.mktemp("log") / "rows"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + torn)
    found = last_line(path, block=40000)
    assert found == (json.dumps(lines[-1]) if lines else "")
