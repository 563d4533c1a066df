"""Packs that are damaged, hostile, newer or interrupted: refused in one line, and nothing of them stays."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeps.planning.freeze import freeze
from sweeps.sharing import container, unpacking
from sweeps.sharing.container import MAX_RATIO, PackError, check_name
from sweeps.sharing.unpacking import unpack
from sweeps.store.seal import sealed
from sweeps.store.store import Store
from sweeps.store.typed_json import as_json
from tests.support.packs import Files, Packed, contents, forged, tree, written
from tests.support.read_back import present
from tests.support.records import some_record
from tests.support.shell import exit_status


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def good(ada: Packed) -> Files:
    return contents(ada.file())


def refused(file: Path, root: Path, message: str = ".") -> None:
    store = Store.open(root)
    before = tree(store.root)
    with pytest.raises(PackError, match=message) as error:
        unpack(store, file)
    assert len(str(error.value).splitlines()) == 1
    assert tree(store.root) == before


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_refused_or_means_the_same(
    ada: Packed, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A byte that no reader looks at (a time stamp in a header) may be another one."""
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(ada.file().read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "x.mlkv").write_bytes(content)
    store = Store.open(folder / "store")
    try:
        unpack(store, folder / "x.mlkv")
    except PackError:
        assert list(store.root.iterdir()) == []
    else:
        assert contents(folder / "x.mlkv") == contents(ada.file())


ODD_NAMES = [
    *("../x", "steps/../../x", "/etc/x", "steps//x", "./x", "steps\\x", "C:/x", "x\n", "x ", "a/.", "…" * 400),
    *("steps/x.", "sweep/plan.json/", "", "sweep/\x7fplan.json", "x" * 300),
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_no_name_leads_out_or_is_spelled_in_an_odd_way(name: str, good: Files, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name|long"):
        check_name(name)
    refused(forged(tmp_path / "x.mlkv", {**good, name: b"x"}), tmp_path / "a" / "b" / "store")
    assert {path.name for path in tmp_path.iterdir()} == {"x.mlkv", "a"}


KINDS = {"a link": stat.S_IFLNK, "a device": stat.S_IFBLK, "a pipe": stat.S_IFIFO, "a folder": stat.S_IFDIR}


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_unpacked(kind: str, good: Files, tmp_path: Path) -> None:
    mode = {"sweep/note.txt": KINDS[kind] | 0o777}
    file = written(tmp_path / "x.mlkv", good.items(), lambda name: mode.get(name, 0o100644))
    refused(file, tmp_path / "store", "sweep/note.txt: is no regular file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_is_there_once_in_any_spelling(good: Files, tmp_path: Path) -> None:
    twice = written(tmp_path / "x.mlkv", [*good.items(), ("sweep/plan.json", good["sweep/plan.json"])])
    refused(twice, tmp_path / "store", "sweep/plan.json: is in it twice")
    other = next(name for name in good if name.endswith("config.json"))
    for spelled in (other.replace("config", "CONFIG"), f"{other}/x"):
        refused(forged(twice, {**good, spelled: b"{}"}), tmp_path / "store", "some systems take it for|is a file and a")


def test_a_bomb_is_refused_before_it_is_unpacked(good: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.mlkv"
    monkeypatch.setattr(container, "ALWAYS_ALLOWED", 2**20)
    name = next(name for name in good if name.endswith("config.json"))
    manifest = json.loads(good["manifest.json"])
    manifest["files"][name]["bytes"] = 2**40
    refused(written(file, [("manifest.json", json.dumps(manifest).encode()), *list(good.items())[1:]]), tmp_path / "s")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        bomb, step = bytes(3 * 2**20), name.rpartition("/")[0]
        manifest["files"] = {f"{step}/zeros": {"sha256": "0" * 64, "bytes": len(bomb)}}
        archive.writestr("manifest.json", json.dumps(manifest))
        archive.writestr(f"{step}/zeros", bomb)
    refused(file, tmp_path / "s", f"more than {MAX_RATIO} times its size")


def step_of(files: Files, kind: str) -> str:
    """The folder of the first step of a kind."""
    return "/".join(next(name for name in files if name.startswith(f"steps/{kind}-")).split("/")[:2])


def edited(files: Files, name: str, old: str, new: str) -> Files:
    assert old in files[name].decode()
    return {**files, name: files[name].decode().replace(old, new).encode()}


def another_step(files: Files) -> Files:
    spec = f"{step_of(files, 'base')}/spec.json"
    return edited(files, spec, '"steps": 6', '"steps": 7')


def edited_number(files: Files) -> Files:
    return edited(files, f"{step_of(files, 'base')}/done.json", '"wall_seconds": 10.0', '"wall_seconds": 1.0')


def another_output(files: Files) -> Files:
    name = next(name for name in files if name.endswith("config.json"))
    return {**files, name: b"{} "}


def foreign_record(files: Files) -> Files:
    record = as_json(sealed(some_record(id="base-0123456789abcdef", kind="base")))
    return {**files, f"{step_of(files, 'base')}/done.json": json.dumps(record).encode()}


def escaping_output(files: Files) -> Files:
    id = step_of(files, "base").removeprefix("steps/")
    outputs = {"../../../x": {"sha256": "0" * 64, "bytes": 1}}
    record = as_json(sealed(some_record(id=id, kind="base", outputs=outputs)))
    others = {name: content for name, content in files.items() if not name.startswith(f"steps/{id}/out/")}
    return {**others, f"steps/{id}/done.json": json.dumps(record).encode()}


def lost_step(files: Files) -> Files:
    base = step_of(files, "base")
    return {name: content for name, content in files.items() if not name.startswith(base)}


VARIANTS = "sweep/variants.jsonl"
HOSTILE: dict[str, tuple[Callable[[Files], Files], str]] = {
    "code": (lambda files: {**files, f"{step_of(files, 'base')}/out/model.py": b"1"}, "is nothing that a pack has"),
    "an extension": (lambda files: {**files, "code/extensions/x.py": b"1"}, "is nothing that a pack has"),
    "another step": (another_step, "is that of another step"),
    "an edited number": (edited_number, "was edited: its seal does not fit"),
    "another output": (another_output, "is not as the step's record says"),
    "a foreign record": (foreign_record, "is that of another step"),
    "an output elsewhere": (escaping_output, "leads out of the step's folder"),
    "a lost step": (lost_step, "has other steps, or another name, than the pack"),
    "a sweep elsewhere": (
        lambda files: edited(files, "sweep/plan.json", '"name": "tiny"', '"name": "../x"'),
        "plan.json",
    ),
    "what a terminal obeys": (lambda files: edited(files, "sweep/variants.jsonl", "MQA-2", "\\u001b[2J"), "control"),
    "a step of another kind": (
        lambda files: edited(files, VARIANTS, '"corpus": "corpus-', '"corpus": "base-'),
        "corpus step",
    ),
    "no settings": (
        lambda files: edited(files, VARIANTS, '"uptrain": {', '"uptrain": 3, "x": {'),
        "config.uptrain is no",
    ),
    "no plan": (lambda files: {name: files[name] for name in files if name != "sweep/plan.json"}, "has no sweep/plan"),
    "deep JSON": (lambda files: {**files, "sweep/plan.json": b"[" * 200_000}, "plan.json"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_does_not_belong_together_is_refused(case: str, good: Files, tmp_path: Path) -> None:
    change, message = HOSTILE[case]
    refused(forged(tmp_path / "x.mlkv", change(good)), tmp_path / "store", message)


EMPTY = json.dumps(
    {"format": "mlkv pack", "version": 1, "sweep": "s", "by": None, "packed": "", "made_by": "1", "weights": "none"}
).encode()
FOREIGN = {
    "no file": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "text": lambda path: path.write_text("hello"),
    "another zip": lambda path: written(path, [("x.txt", b"x")]),
    "another manifest": lambda path: written(path, [("manifest.json", b'{"version": 3}')]),
    "an empty pack": lambda path: forged(path, {"manifest.json": EMPTY}),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_file_is_refused_in_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FOREIGN[case](tmp_path / "x.mlkv")
    assert exit_status("unpack", str(tmp_path / "x.mlkv"), "--store", str(tmp_path / "store")) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_a_newer_version_is_refused_and_named(good: Files, tmp_path: Path) -> None:
    file = forged(tmp_path / "x.mlkv", good, version=2, weights={"new": "rules"})
    refused(file, tmp_path / "store", "has format version 2, and this mlkv reads up to 1; take a newer mlkv")


@pytest.mark.parametrize(("after", "reason"), [(0, OSError), (7, KeyboardInterrupt)])
def test_an_interruption_leaves_nothing_half_written(
    after: int, reason: type[BaseException], ada: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, place, count = Store.open(tmp_path / "store"), unpacking._place, [0]

    def interrupted(*arguments: object) -> None:
        if count[0] == after:
            raise reason
        count[0] += 1
        place(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(unpacking, "_place", interrupted)
        with pytest.raises(reason):
            unpack(store, ada.file())
    assert store.sweep_names() == []
    assert [path.name for path in store.root.iterdir()] == (["steps"] if after else [])
    assert len([present(step.record()) for step in store.steps()]) == after
    assert all(step.corrupted() is None for step in store.steps())
    unpack(store, ada.file())
    unpack(whole := Store.open(tmp_path / "whole"), ada.file())
    assert tree(store.root) == tree(whole.root)


@pytest.mark.parametrize("moves", [0, 2, 3])
def test_a_step_that_was_planned_here_gets_its_record_last(
    moves: int, ada: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails at any of the moves that put its first step in place."""
    store, rename, count = Store.open(tmp_path / "store"), Path.rename, [0]
    freeze(ada.plan, store, ada.line)

    def failing(path: Path, target: Path) -> Path:
        if ".unpack-" in str(path):
            count[0] += 1
            if count[0] > moves:
                raise OSError("the disk is gone")
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        with pytest.raises(OSError, match="the disk is gone"):
            unpack(store, ada.file())
    done = [step for step in store.steps() if step.record()]
    assert len(done) == moves // 3, "out, attempts and origin.json are moved before the record is written"
    assert all(step.corrupted() is None and step.origin() for step in done)
    assert not [step for step in store.steps() if step.claims.read()]
    assert len(unpack(store, ada.file()).new) == len(ada.plan.steps) - len(done)
    assert all(present(step.record()) and step.corrupted() is None for step in store.steps())
