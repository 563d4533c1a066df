"""YAML files of a user: a fault is one line with the file and the line number, a scalar is what it looks like."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.planning.compose import Composer
from sweeps.planning.parse import parse
from sweeps.planning.yaml_files import read
from sweeps.store.errors import UserError

HEADER = "# @package _global_\n"


def experiment(folder: Path, content: str | bytes) -> Composer:
    path = folder / "experiment" / "mine.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Composer(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1\nb: 2", r"mine\.yaml, line 3: is no YAML \(expected"),
        ("uptrain:\n\tlr: 1", r"mine\.yaml, line 3: is no YAML \(found character '\\t'"),
        ("uptrain:\n  lr: 1\n  lr: 2", r"mine\.yaml, line 4: is no YAML \(key lr stands twice\)"),
        ("name: 'x", r"mine\.yaml, line \d: is no YAML \(found unexpected end"),
        ("- 1\n- 2", r"mine\.yaml: holds a list; a configuration is lines KEY: VALUE"),
        ("just text", r"mine\.yaml: holds the value just text; a configuration is lines KEY: VALUE"),
        ("name: !!python/object:os.system x", r"mine\.yaml, line 2: is no YAML \(could not determine a constructor"),
        ("uptrain: &a {b: *a}", r"mine\.yaml.*is nested too deeply, or in itself"),
        ("x: " + "[" * 3000, r"mine\.yaml.*is nested too deeply, or in itself"),
        (b"name: \xff\xfe", r"mine\.yaml: is not UTF-8 \(byte \d+\)"),
        ("a: \0", r"mine\.yaml.*(special characters|unacceptable character)"),
        ("uptrain:\n  lr: ${", r"mine\.yaml.*|uptrain\.lr"),
        ("defaults: 3", "mine"),
        ("defaults: [override /modle: tiny]", "modle"),
        ("defaults: [override /model: tni]", r"model = tni: valid: .*tiny"),
        ("defaults: [/experiment/mine]", "experiment=mine: its defaults lead back to itself"),
        ("defaults: [/experiment/other]", "other"),
        ("nope: 1", r"nope: unknown key"),
    ],
)
def test_a_fault_in_a_file_is_one_line(content: str | bytes, message: str, tmp_path: Path) -> None:
    header = HEADER.encode() if isinstance(content, bytes) else HEADER
    composer = experiment(tmp_path, header + content)  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as caught:
        parse(composer(["experiment=mine"]))
    assert str(caught.value).isprintable()


def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "experiment" / "mine.yaml").mkdir(parents=True)
    with pytest.raises(UserError, match=r"mine"):
        Composer(tmp_path)(["experiment=mine"])


def test_an_experiment_without_its_package_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"experiment/mine\.yaml: its first line must be `# @package _global_`"):
        experiment(tmp_path, "uptrain: {lr: 1e-3}\n")(["experiment=mine"])


def test_scalars_are_what_they_look_like(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: [20:00, 010, off, No, y, 1e-4, 0x10, 1_000, -3, +4, 2.5, .inf, ~, true, 2020-01-01, '7']\n")
    assert read(path)["a"] == [
        "20:00", "010", "off", "No", "y", 1e-4, 16, 1000, -3, 4, 2.5, float("inf"), None, True, "2020-01-01", "7",
    ]  # fmt: skip


def test_a_file_with_a_mark_of_its_byte_order_or_nothing_in_it_is_read(tmp_path: Path) -> None:
    assert experiment(tmp_path, b"\xef\xbb\xbf" + HEADER.encode() + b"name: marked\n")(["experiment=mine"])["name"] == (
        "marked"
    )
    assert experiment(tmp_path, HEADER)(["experiment=mine"])["name"] == "unnamed"


def test_a_choice_called_off_needs_no_quotes(tmp_path: Path) -> None:
    composer = experiment(tmp_path, HEADER + "defaults: [override /tracking: off]\n")
    assert parse(composer(["experiment=mine"])).tracking.mode == "off"
