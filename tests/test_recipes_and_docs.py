"""Every recipe in conf/ plans, and every `mlkv` line of the README and the docs is one the program understands."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from sweeps.cli import make_parser
from sweeps.cli import parse as parse_line
from sweeps.planning.compose import Composer
from sweeps.planning.parse import parse

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
HUB_TEXT = ["model=pythia-160m"]
NEED = {
    **{f"corpus/{name}": ["corpus.files=[x]"] for name in ("text_files", "files")},
    **{f"corpus/{name}": HUB_TEXT for name in ("pile_dedup", "pile_neox")},
    **{f"corpus/slimpajama{size}": HUB_TEXT for size in ("", "_100b", "_llama")},
    "convert/none": ["evaluate=none"],
    "model/local": ["model.path=x"],
    "cluster/slurm_multinode": ["uptrain=mlkv"],
    "scale/small": ["experiment=mlkv_table"],
}
OPTIONS = [
    f"{path.parent.name}/{path.stem}" for path in sorted(CONF.glob("*/[!_]*.yaml")) if path.parent.name != "tasks"
]
LINE = re.compile(r"^\s*(?:\$ )?(mlkv [a-z]+ .*?)(?:\s{2,}#.*)?$|`(mlkv [a-z]+[^`]*)`", re.MULTILINE)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_fills_the_schema(option: str) -> None:
    group, name = option.split("/")
    parse(Composer()([f"{group}={name}", *NEED.get(option, [])]))


def commands() -> list[str]:
    found = []
    pages = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "own_data.md"]
    for path in [ROOT / "README.md", *pages]:  # that page names files; tests/sweeps/test_own_data_page.py has them
        found += [line or quoted for line, quoted in LINE.findall(path.read_text())]
    return sorted({line for line in found if "…" not in line and "--config-dir" not in line and line.count(" ") > 1})


@pytest.mark.parametrize("line", commands())
def test_every_documented_command_is_understood(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line.replace("[NAME]", "NAME"))[1:]
    _, options = parse_line(make_parser(), words)
    if overrides := getattr(options, "overrides", None):
        from sweeps.planning.grammar import grid_of

        grid_of(Composer(), [word for word in overrides if "=" in word], search=words[0] == "search")


PAGES = [
    path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    if path.name != "LOG.md"
]
ROOMS = "mlkv|sweeps|analysis|slurm|conf|tests|benchmarks|hydra_plugins|docs"
FILE = re.compile(rf"(?<![\w/.$-])(?:{ROOMS})/[\w/.-]*\w")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    """An option may lack its suffix (`conf/layout/mqa`); a word in capitals is a placeholder (`steps/KIND.py`)."""
    text = page.read_text()
    named = [ROOT / name for name in FILE.findall(text) if not re.search("[A-Z]{4}", Path(name).stem)]
    linked = [page.parent / name for name in LINK.findall(text)]
    assert [str(path) for path in named + linked if not (path.exists() or path.with_suffix(".yaml").exists())] == []


IMPORT = re.compile(r"^ *from ((?:mlkv|sweeps|analysis|slurm)[\w.]*) import ([\w, ]+)$", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_import_that_a_page_shows_works(page: Path) -> None:
    for module, names in IMPORT.findall(page.read_text()):
        found = import_module(module)
        assert [name for name in names.split(", ") if not hasattr(found, name)] == [], module
