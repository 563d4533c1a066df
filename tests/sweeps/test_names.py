"""Names that become paths: one rule, at plan time, and no name leads elsewhere, hides or is written in two ways."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.planning.compose import Composer
from sweeps.planning.grammar import points
from sweeps.planning.parse import parse
from sweeps.store.errors import StoreError, UserError
from sweeps.store.names import MAX_BYTES, check_name
from sweeps.store.store import Store
from tests.support.records import save_sweep
from tests.support.shell import exit_status

GOOD = [
    "quickstart",
    "mlkv_table-small",
    "a",
    "7",
    "a.b",
    "_x",
    "lr=3e-4,6e-4",
    "v1+2",
    "größe",
    "数据",
    "x" * MAX_BYTES,
]
BAD = {
    "slash": "a/b",
    "up": "../../x",
    "dots": "..",
    "dot": ".",
    "hidden": ".x",
    "option": "-x",
    "absolute": "/tmp/x",
    "backslash": "a\\b",
    "empty": "",
    "space": "my sweep",
    "space at the end": "a ",
    "newline": "a\nb",
    "null": "a\0b",
    "escape": "\x1b[31mred",
    "right to left": "a\u202eb",
    "joiner": "a\u200db",
    "long": "x" * (MAX_BYTES + 1),
    "very long": "x" * 300,
    "long in bytes": "ü" * MAX_BYTES,
    "decomposed": unicodedata.normalize("NFD", "größe"),
    "ligature": "ﬁne",
    "full width": "ａ",
    "star": "a*",
    "shell": "$(x)",
    "tilde": "~",
    "surrogate": "\udc80",
}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    status, printed = exit_status(*arguments), capsys.readouterr()
    assert (status, printed.out) == (2, "")
    return printed.err


@pytest.mark.parametrize("name", GOOD)
def test_good_names(name: str, tmp_path: Path) -> None:
    check_name("name", name)
    store = Store.open(tmp_path)
    save_sweep(store, name, {"steps": {}})
    assert store.sweep_names() == [name]
    assert store.sweep(name).path.parent.parent == tmp_path / "sweeps"


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_bad_names_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    for refuse in (
        lambda: check_name("name", name),
        lambda: save_sweep(Store(tmp_path), name, {"steps": {}}),
        lambda: Store(tmp_path).save_import(name, ""),
        lambda: Store(tmp_path).tracking(name),
    ):
        with pytest.raises(StoreError, match=r"^(name|sweep) = ") as error:
            refuse()
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 300
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=120))
def test_whatever_passes_is_a_plain_name(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    try:
        check_name("name", name)
    except StoreError:
        return
    folder = tmp_path_factory.mktemp("names")
    (folder / f".{name}.0123456789ab").mkdir()
    (folder / name).mkdir()
    assert (folder / name).resolve().parent == folder.resolve()
    assert {path.name for path in folder.iterdir()} == {name, f".{name}.0123456789ab"}
    assert unicodedata.normalize("NFC", name) == name


@pytest.mark.parametrize("command", ["sweep", "plan", "fetch", "run"])
@pytest.mark.parametrize("name", ["a/b", "../../x", "..", ".x", "x" * 300, "'a b'"])
def test_a_sweep_is_refused_before_anything_is_written(
    command: str, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kind = ["measure"] if command == "run" else []
    error = refused(capsys, command, *kind, "--store", str(tmp_path / "store"), f"name={name}")
    assert error.startswith("mlkv: name = ")
    assert error.count("\n") == 1
    assert not (tmp_path / "store" / "sweeps").exists()
    assert not (tmp_path / "store" / "steps").exists()


@pytest.mark.parametrize("name", ["a/b", "../../x", "", ".x", "x" * 300, "a b"])
def test_an_import_is_refused_before_anything_is_read(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = refused(capsys, "import-results", str(tmp_path / "nowhere"), "--store", str(tmp_path / "s"), "--name", name)
    assert error.startswith("mlkv: name = ")
    assert error.count("\n") == 1


def test_no_sweep_hides_behind_an_import_and_no_import_behind_a_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(tmp_path)
    store.save_import("theirs", "sweep\n")
    error = refused(capsys, "plan", "--store", str(tmp_path), "name=theirs", "evaluate=none", "measure=none")
    assert "name = theirs: is that of imported results" in error
    with pytest.raises(StoreError, match="is that of imported results"):
        save_sweep(store, "theirs", {"steps": {}})
    save_sweep(store, "ours", {"steps": {}})
    with pytest.raises(StoreError, match="is a sweep's"):
        store.save_import("ours", "")


@pytest.mark.parametrize("command", ["status", "gather", "report", "retry", "cancel", "sync", "table", "dashboard"])
@pytest.mark.parametrize("name", ["../x", "../sweeps/a", "a/1", "", "..", "x" * 300, "a\0"])
def test_reading_by_a_name_stays_in_the_store(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if (command, name) == ("sync", ".."):
        return  # a directory, of which sync takes any
    monkeypatch.chdir(tmp_path)
    store = Store.open(tmp_path / "store")
    (store.root / "steps").mkdir()
    for saved in (store, Store.open(tmp_path / "store" / "x")):
        save_sweep(saved, "a", {"steps": {}})
    error = refused(capsys, command, "--store", str(store.root), name)
    assert "not in" in error or "x" * 300 in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("key", ["name", "reports"])
def test_the_name_of_a_sweep_is_not_swept(key: str) -> None:
    with pytest.raises(UserError, match=f"{key}: cannot be swept; run one sweep for each of {key}=a, {key}=b"):
        next(points(Composer(), [f"{key}=a,b"]))


@pytest.mark.parametrize("project", ["runs", "sweeps", "reports", "a/b", ".."])
def test_a_project_that_w_and_b_misreads(project: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store.open(tmp_path)
    (tmp_path / "steps").mkdir()
    save_sweep(store, "a", {"steps": {}})
    error = refused(capsys, "sync", "a", "--store", str(tmp_path), "--project", project)
    assert f"project = {project}" in error
    assert error.count("\n") == 1
    values = Composer()([f"tracking.project={project}"])
    with pytest.raises(UserError, match=f"project = {project}"):
        parse(values)


def test_a_name_that_the_file_system_takes_for_another_one_is_refused(tmp_path: Path) -> None:
    """A second entry for the same folder stands for a file system that ignores case."""
    store = Store.open(tmp_path / "store")
    save_sweep(store, "table", {"steps": {}, "accuracy": [], "axis": None})
    store.save_import("theirs", "x")
    store.check_sweep_name("Table")
    store.check_import_name("Theirs")
    (store.root / "sweeps" / "Table").symlink_to(store.root / "sweeps" / "table")
    (store.root / "imports" / "Theirs.csv").symlink_to(store.root / "imports" / "theirs.csv")
    with pytest.raises(StoreError, match=r"name = Table: this file system takes it for \S+/sweeps/table; choose"):
        store.check_sweep_name("Table")
    with pytest.raises(StoreError, match=r"name = Theirs: this file system takes it for \S+/imports/theirs\.csv"):
        store.check_import_name("Theirs")
