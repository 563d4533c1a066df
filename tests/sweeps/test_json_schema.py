"""conf/schema.json, by which editors check YAML files: it is what the generator writes, every file of conf/ is valid by
the part of it that the file names, and it refuses what a plan refuses as far as a single field shows it."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf

from sweeps.planning import json_schema
from sweeps.planning.compose import Composer
from sweeps.planning.parse import parse
from sweeps.planning.yaml_files import _Loader, read
from sweeps.store.code import CONF
from sweeps.store.errors import UserError
from sweeps.store.names import PATTERN, _fault
from tests.support.bad_values import NESTED, NUMBERS, SPELLINGS, TEXTS, keys

TEMPLATES = Path(json_schema.__file__).with_name("templates")
FILES = [path for path in sorted(CONF.rglob("*.yaml")) if path.parent.name != "tasks"]
"""Tasks are lm-eval's definitions, not ours."""
NAMED = re.compile(r"^# yaml-language-server: \$schema=([^#\s]+)(?:#(\S+))?$", re.MULTILINE)
SCHEMA = json.loads((CONF / json_schema.NAME).read_text())


@cache
def validator(place: str = "") -> Draft202012Validator:
    """Of a part of the schema, as an editor takes it: `/$defs/uptrain`."""
    return Draft202012Validator({"$defs": SCHEMA["$defs"], "$ref": f"#{place}"} if place else SCHEMA)


def refusals(path: Path, place: str = "") -> list[str]:
    content = OmegaConf.to_container(read(path))
    return [f"{path}: {error.json_path}: {error.message}" for error in validator(place).iter_errors(content)]


def test_the_file_is_what_the_generator_writes() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert (CONF / json_schema.NAME).read_text() == json_schema.text(), "python -m sweeps.planning.json_schema"


def test_every_file_names_the_schema_of_its_place_and_is_valid_by_it() -> None:
    """In the first line; or in the second, where Hydra wants its own line first."""
    for path in FILES:
        text = path.read_text()
        assert NAMED.search(text), f"{path} names no schema"
        [(file, place)] = NAMED.findall(text)
        assert text.splitlines()[text.startswith("# @package")].startswith("# yaml-language-server"), path
        assert (path.parent / file).resolve() == CONF / json_schema.NAME, path
        assert place == ("" if path.parent == CONF or "# @package" in text else f"/$defs/{path.parent.name}")
        assert refusals(path, place) == []


def test_what_init_writes_names_the_schema_beside_it() -> None:
    for path in TEMPLATES.rglob("*.yaml"):
        [(file, place)] = NAMED.findall(path.read_text())
        assert (path.parent / file).resolve() == TEMPLATES / json_schema.NAME
        assert refusals(path, place) == []


@cache
def whole() -> dict[str, Any]:
    return Composer()([])


def with_value(key: str, value: Any) -> dict[str, Any]:
    values = copy.deepcopy(whole())
    *above, last = key.split(".")
    inside = values
    for part in above:
        if not isinstance(inside.get(part), dict):
            inside[part] = {}
        inside = inside[part]
    inside[last] = value
    return values


def refusal(values: dict[str, Any]) -> str:
    try:
        parse(values)
    except UserError as error:
        return str(error)
    return ""


KEYS = list(keys())
LOOSE = {"'12'", "0", "1", "off", "no", "yes"}
"""Spellings that a plan takes for a number, or for true and false, and an editor does not."""
ENDLESS = {"inf", "-inf", "nan", "1e400", "1e308"}
"""Numbers too large for the field's type, which a schema cannot say."""
UNSAID = {("name", "é😀")}
"""A schema's expressions know no letters beyond ASCII."""
OWN_RULES = ("model.name", "layout.cache", "sweep.grid", "cluster.extra", "evaluate.tasks", "evaluate.converted")
"""A name that is filled in, a share, keys of a sweep, options of sbatch, tasks of which one may stand alone."""


@settings(max_examples=150, deadline=None)
@given(key=st.sampled_from(KEYS), text=st.sampled_from([*NUMBERS, *SPELLINGS, *TEXTS[:-1], *NESTED]))
def test_it_refuses_what_a_plan_refuses_of_one_field(key: str, text: str) -> None:
    try:
        values = with_value(key, yaml.load(text, Loader=_Loader))
    except yaml.YAMLError:
        return
    valid, refused = validator().is_valid(values), refusal(values)
    if not valid and key not in OWN_RULES:
        assert refused or text in LOOSE, (key, text)
    fault = refused.startswith(f"{key} = ") and "is blank" not in refused and (key, text) not in UNSAID
    if fault and text not in ENDLESS and key not in OWN_RULES:
        assert not valid, refused


def test_an_unknown_key_is_refused_where_a_plan_refuses_it() -> None:
    for key in KEYS:
        if key.count(".") < 2 and not key.startswith("cluster.extra"):
            values = with_value(f"{key}x", 1)
            assert "unknown key" in refusal(values)
            assert not validator().is_valid(values), key


@pytest.mark.parametrize(
    ("grid", "valid"),
    [
        ("layout.cache: [1/2, 1/4]", True),
        ("layout.kv_layers: range(1, 9)", True),
        ("convert: [mean, svd]", True),
        ("uptrain.lr: 1.0e-3", True),
        ("model.decoder.heads: [16, 32]", True),
        ("'+closeness': [default]", True),
        ("layout.cash: [1/2]", False),
        ("uptrain.lr: [fast]", False),
        ("cluster: [local]", False),
    ],
)
def test_the_keys_and_values_of_a_grid_are_those_of_the_configuration(grid: str, valid: bool) -> None:
    content = yaml.safe_load(f"sweep:\n  grid:\n    {grid}\n")
    assert validator().is_valid(content) is valid


EXTENSION = '''from dataclasses import dataclass
from mlkv.merges import MERGES
from sweeps.steps.kind import StepKind
from sweeps.steps.registry import KINDS


@dataclass(frozen=True)
class MineRecipe:
    depth: int = 1
    """How deep."""


MERGES["mine"] = lambda layers, fresh: layers[0].mean(1)
KINDS["closeness"] = StepKind(lambda execution: None, MineRecipe, lambda recipe, variant: None)
'''


def test_rows_of_extensions_are_choices_where_their_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "extensions").mkdir()
    (tmp_path / "extensions" / "a.py").write_text(EXTENSION)
    json_schema.main(["--config-dir", str(tmp_path)])
    written = json.loads((tmp_path / json_schema.NAME).read_text())
    for content in ({"convert": {"merge": "mine"}}, {"closeness": {"depth": 2}}):
        assert Draft202012Validator(written).is_valid(content)
        assert not validator().is_valid(content)
    assert not Draft202012Validator(written).is_valid({"closeness": {"depth": "deep"}})
    assert written["$defs"]["closeness"]["properties"]["depth"]["description"] == "How deep."
    assert "description" not in written["$defs"]["closeness"]


@given(st.text(st.characters(max_codepoint=127), min_size=1, max_size=4))
def test_names_of_ascii_are_those_that_a_plan_takes(name: str) -> None:
    if not name.endswith("\n"):  # before which an expression may end
        assert bool(re.search(PATTERN, name)) == (_fault(name) == "")


def test_names_of_tables_are_choices() -> None:
    for content in (
        {"layout": {"pattern": "evn"}},
        {"convert": {"merge": "men"}},
        {"convert": {"widening": "al"}},
        {"cache": "int5"},
        {"cluster": {"resources": {"uptran": {"gpus": 1}}}},
        {"model": {"config": {"model_type": "lama"}}},
        {"elastic": {"pattern": "evn"}},
    ):
        assert not validator().is_valid(content), content


def test_one_task_needs_no_list() -> None:
    for tasks in ("arc_easy", ["arc_easy"]):
        assert validator("/$defs/evaluate").is_valid({"tasks": tasks, "converted": tasks})
    assert not validator("/$defs/evaluate").is_valid({"tasks": [1]})


def test_fields_have_their_docstrings() -> None:
    fields = SCHEMA["$defs"]["uptrain"]["properties"]
    assert fields["batch_size"]["description"] == "Sequences per optimiser step, over all devices."
    assert fields["schedule"]["default"] == "cosine"
    assert "rungs" in SCHEMA["$defs"]["elastic"]["properties"], "and those that a class inherits"
