"""Tables of rows: a file outside the repository adds rows to them, and a file that cannot is named in one line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mlkv.merges import MERGES, merge_named
from mlkv.recipes import ConvertRecipe
from mlkv.registry import ExtensionError, Registry, extensions, files_of, load, load_extensions
from mlkv.shape import DecoderShape

BUILT_IN = ["mean", "pairwise", "first", "random", "aligned", "svd", "fisher"]
ADDS = "from mlkv.merges import MERGES\nMERGES['{name}'] = MERGES['mean']\n"


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    (tmp_path / "extensions").mkdir()
    return tmp_path


def write(config_dir: Path, name: str, text: str) -> Path:
    path = config_dir / "extensions" / name
    path.write_text(text)
    return path


def test_a_file_is_read_where_a_name_is_unknown_and_not_before(config_dir: Path) -> None:
    path = write(config_dir, "mine.py", ADDS.format(name="mine"))
    calls: list[Path] = []
    with extensions(lambda: calls.append(config_dir) or files_of(config_dir)):  # type: ignore[func-returns-value]
        assert callable(MERGES["mean"])
        assert calls == []
        assert MERGES["mine"] is MERGES["mean"]
        assert ConvertRecipe(merge="mine").merge == "mine"
        file = MERGES.extension("mine")
        assert file is not None
        assert (file.path, file.digest) == (path, hashlib.sha256(path.read_bytes()).hexdigest())
        assert MERGES.pins("mine") == {"extension merge": file.digest}
        assert MERGES.pins("mean") == {}
        assert "nonsense" not in MERGES
        assert calls == [config_dir]
    assert "mine" not in MERGES


def test_a_row_may_be_of_any_type_that_built_in_ones_have(config_dir: Path) -> None:
    write(
        config_dir, "a.py", "from mlkv.merges import MERGES, Merge, first\nMERGES['a'] = Merge(first, frames='any')\n"
    )
    with extensions(lambda: files_of(config_dir)):
        assert merge_named("a").calibrated
        assert not merge_named("first").calibrated


def test_a_table_that_is_listed_has_the_rows_of_extensions_last(config_dir: Path) -> None:
    write(config_dir, "b.py", ADDS.format(name="b"))
    write(config_dir, "a.py", ADDS.format(name="a"))
    write(config_dir, "_helper.py", "1 / 0")
    with extensions(lambda: files_of(config_dir)):
        assert [*MERGES] == [*BUILT_IN, "a", "b"]
        with pytest.raises(
            ValueError, match=r"^merge = c: must be one of mean, pairwise, first, random, aligned, svd, fisher, a, b$"
        ):
            ConvertRecipe(merge="c")
        with pytest.raises(
            ValueError, match=r"^merge = c: must be one of mean, pairwise, first, random, aligned, svd, fisher, a, b$"
        ):
            MERGES.choose("c")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("x = 1", "adds no row to any table"),
        ("\nx = (", "line 2: '(' was never closed"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (ADDS.format(name="mean"), "merge mean exists already (built in)"),
        (ADDS.format(name="two") + "1 / 0", "ZeroDivisionError: division by zero"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("class Mine(BaseException): ...\nraise Mine('own')", "Mine: own"),
        ("x = 1\0", "source code string cannot contain null bytes"),
        ("from mlkv.merges import MERGES\nMERGES[3] = MERGES['mean']", "merge 3: its name must be text"),
        ("from mlkv.merges import MERGES\nMERGES['b'] = 3", "merge b: must be a function or a Merge, not int"),
        (
            "from mlkv.patterns import PATTERNS\nPATTERNS['b'] = lambda layers, kv_layers: (0,)",
            "pattern b: must be a Pattern, not function",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(config_dir: Path, text: str, reason: str) -> None:
    path = write(config_dir, "bad.py", text)
    with extensions(lambda: files_of(config_dir)):
        for _ in range(2):  # and the second look finds no half of it
            with pytest.raises(ExtensionError, match=f"^extension {re.escape(f'{path}: {reason}')}$"):
                list(MERGES)
    assert [*MERGES] == BUILT_IN


def test_a_file_that_imports_the_file_beside_it_is_told_that_it_stands_alone(config_dir: Path) -> None:
    write(config_dir, "_helper.py", "")
    write(config_dir, "a.py", "import _helper")
    with extensions(lambda: files_of(config_dir)), pytest.raises(ExtensionError, match="imports what is installed"):
        load_extensions()


def test_an_interrupt_while_a_file_runs_is_an_interrupt(config_dir: Path) -> None:
    write(config_dir, "a.py", ADDS.format(name="mine") + "raise KeyboardInterrupt")
    with extensions(lambda: files_of(config_dir)):
        with pytest.raises(KeyboardInterrupt):
            load_extensions()
        write(config_dir, "a.py", ADDS.format(name="mine"))
        assert [*MERGES][len(BUILT_IN) :] == ["mine"], "which was not there already"


def test_what_a_file_prints_does_not_go_where_tables_are_written(
    config_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(config_dir, "a.py", "print('loaded')\n" + ADDS.format(name="mine"))
    with extensions(lambda: files_of(config_dir)):
        load_extensions()
    assert capsys.readouterr() == ("", "loaded\n")


def test_an_error_of_a_row_names_its_file_and_one_of_a_built_in_row_stays(config_dir: Path) -> None:
    path = write(config_dir, "a.py", ADDS.format(name="mine"))
    with extensions(lambda: files_of(config_dir)):
        message = re.escape(f"extension {path}: merge mine: KeyError: 'x'")
        with pytest.raises(ExtensionError, match=message), MERGES.running("mine"):
            raise KeyError("x")
        with pytest.raises(ValueError, match="expected"), MERGES.running("mine", ValueError):
            raise ValueError("expected")
        with pytest.raises(KeyError, match="x"), MERGES.running("mean"):
            raise KeyError("x")


def test_two_files_cannot_add_one_name(config_dir: Path) -> None:
    first = write(config_dir, "a.py", ADDS.format(name="mine"))
    second = write(config_dir, "b.py", "# another\n" + ADDS.format(name="mine"))
    message = re.escape(f"extension {second}: merge mine exists already ({first})")
    with extensions(lambda: files_of(config_dir)), pytest.raises(ExtensionError, match=message):
        load_extensions()


def test_a_copy_of_a_file_that_ran_adds_nothing_again(config_dir: Path, tmp_path: Path) -> None:
    path = write(config_dir, "a.py", ADDS.format(name="mine"))
    copy = tmp_path / "copy.py"
    copy.write_bytes(path.read_bytes())
    with extensions(lambda: [path, copy]):
        assert [*MERGES][len(BUILT_IN) :] == ["mine"]


def test_a_file_must_have_the_digest_that_was_planned(config_dir: Path) -> None:
    path = write(config_dir, "a.py", ADDS.format(name="mine"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text("# edited\n" + path.read_text())
    with extensions(list):
        with pytest.raises(ExtensionError, match="was edited"):
            load(path, digest)
        path.unlink()
        with pytest.raises(ExtensionError, match="cannot be read"):
            load(path, digest)


def test_an_extension_may_derive_its_rows_from_those_that_are_there(config_dir: Path) -> None:
    write(config_dir, "a.py", "from mlkv.merges import MERGES\nMERGES[f'{len(MERGES)}'] = MERGES['first']\n")
    with extensions(lambda: files_of(config_dir)):
        assert MERGES[str(len(BUILT_IN))] is MERGES["first"]


def test_a_dataclass_of_an_extension_finds_its_module(config_dir: Path) -> None:
    lines = (
        "from __future__ import annotations",
        "from dataclasses import dataclass",
        "from mlkv.merges import MERGES",
        "@dataclass(frozen=True)",
        "class Weighted:",
        "    power: float = 2.0",
        "    def __call__(self, layers, fresh):",
        "        return fresh",
        "MERGES['mine'] = Weighted()",
    )
    write(config_dir, "a.py", "\n".join(lines))
    with extensions(lambda: files_of(config_dir)):
        assert repr(MERGES["mine"]) == "Weighted(power=2.0)"


def test_without_extensions_a_table_is_a_mapping() -> None:
    table: Registry[Callable[..., object]] = Registry("shape", {"one": DecoderShape})
    assert dict(table) == {"one": DecoderShape}
    assert (len(table), "one" in table, "two" in table) == (1, True, False)
