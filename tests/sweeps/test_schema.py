"""What the store keeps as JSON: read and written again it has the same bytes, and what is damaged is named."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlkv.layout import KVLayout
from sweeps.store import typed_json
from sweeps.store.errors import DamagedFileError
from sweeps.store.schema import (
    Environment,
    Exit,
    JobRow,
    LoggedRow,
    PlanFile,
    Record,
    Runtime,
    Spec,
    VariantRow,
    WrittenMark,
)
from sweeps.store.store import Store
from sweeps.store.typed_json import as_json, from_json

HERE = Path(__file__).parent
STORES = (HERE / "golden_files" / "store", HERE / "old_store" / "store")
FILES: dict[str, type] = {
    "steps/*/*/spec.json": Spec,
    "steps/*/*/how.json": Runtime,
    "steps/*/*/done*.json": Record,
    "steps/*/*/attempts/*/record.json": Record,
    "steps/*/*/attempts/*/exit.json": Exit,
    "steps/*/*/attempts/*/env.json": Environment,
    "sweeps/**/plan.json": PlanFile,
    "wandb/written/*.json": WrittenMark,
}
LINES: dict[str, type] = {
    "steps/*/*/attempts/*/metrics.jsonl": LoggedRow,
    "sweeps/**/variants.jsonl": VariantRow,
    "queue/jobs.jsonl": JobRow,
}


def golden(kinds: dict[str, type]) -> list[Any]:
    found = [
        (kind, path, str(path.relative_to(HERE)))
        for store in STORES
        for pattern, kind in kinds.items()
        for path in sorted(store.glob(pattern))
    ]
    assert {kind for kind, *_ in found} == set(kinds.values())
    return [pytest.param(kind, path, id=name) for kind, path, name in found]


@pytest.mark.parametrize(("kind", "path"), golden(FILES))
def test_a_file_that_is_read_and_written_has_the_same_bytes(kind: type, path: Path) -> None:
    value = typed_json.load(kind, path)
    assert json.dumps(as_json(value), indent=1, allow_nan=False) + "\n" == path.read_text()


@pytest.mark.parametrize(("kind", "path"), golden(LINES))
def test_a_line_that_is_read_and_written_has_the_same_bytes(kind: type, path: Path) -> None:
    for line in path.read_bytes().splitlines():
        assert json.dumps(as_json(typed_json.parsed(kind, line))).encode() == line


def test_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert typed_json.load(Record, tmp_path / "done.json") is None
    assert typed_json.load(Record, tmp_path / "done.json" / "x") is None


# Damage

FREE = {
    (Spec, "slice"),
    (Record, "facts"),
    (PlanFile, "cluster"),
    (PlanFile, "tracking"),
    (VariantRow, "overrides"),
    (VariantRow, "config"),
}
"""Whose content is the business of others."""
WRONG = {str: 3, int: "3", float: "0.5", bool: "yes", list: "x", dict: "x", NoneType: []}


def places(kind: type, value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in some JSON that has a type."""
    if path:
        yield path
    if len(path) == 1 and (kind, path[0]) in FREE:
        return
    if isinstance(value, dict):
        for key, held in value.items():
            yield from places(kind, held, (*path, key))
    if isinstance(value, list) and value:
        yield from places(kind, value[0], (*path, 0))


def changed(value: Any, place: tuple[str | int, ...], wrong: Any) -> Any:
    whole = inner = copy.deepcopy(value)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = wrong
    return whole


ONE_OF_EACH = {kind: next(p.values[1] for p in golden(FILES) if p.values[0] is kind) for kind in FILES.values()}


@pytest.mark.parametrize("kind", [kind for kind in ONE_OF_EACH if kind is not Runtime], ids=lambda kind: kind.__name__)
def test_a_value_of_another_type_is_named_with_its_file_and_field(kind: type, tmp_path: Path) -> None:
    whole, path = json.loads(ONE_OF_EACH[kind].read_text()), tmp_path / ONE_OF_EACH[kind].name
    for place in places(kind, whole):
        held = whole
        for key in place:
            held = held[key]
        path.write_text(json.dumps(changed(whole, place, WRONG[type(held)])))
        with pytest.raises(DamagedFileError) as caught:
            typed_json.load(kind, path)
        assert str(caught.value).startswith(f"{path}: {'.'.join(map(str, place))}")
        assert "; delete it" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in ONE_OF_EACH if kind is not Runtime], ids=lambda kind: kind.__name__)
def test_a_key_that_is_missing_is_named_with_its_file(kind: type, tmp_path: Path) -> None:
    whole, path = json.loads(ONE_OF_EACH[kind].read_text()), tmp_path / ONE_OF_EACH[kind].name
    later = {field.name for field in dataclasses.fields(kind) if "later" in field.metadata}
    for missing in whole.keys() - later:
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != missing}))
        with pytest.raises(DamagedFileError, match=rf"^{path}: has no {missing}; delete it"):
            typed_json.load(kind, path)


@pytest.mark.parametrize("wrong", ['{"work": "3"}', '{"source": "x"}', '{"source": {"hub": 3}}', '{"work": true}'])
def test_a_wrong_runtime_field_is_named(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "how.json").write_text(wrong)
    with pytest.raises(DamagedFileError, match=r"/how\.json: (work|source|hub): should be .*; delete it"):
        typed_json.load(Runtime, tmp_path / "how.json")


@pytest.mark.parametrize("content", ["", "3", "[]", "null", '"x"', "{", '{"a": 1}{', "\0", "[" * 100_000])
@pytest.mark.parametrize("kind", ONE_OF_EACH, ids=lambda kind: kind.__name__)
def test_what_is_no_json_object_is_named(kind: type, content: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(DamagedFileError, match=rf"^{path}: is no JSON.*; delete it"):
        typed_json.load(kind, path)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "1" + "0" * 400, str(2**63)])
def test_a_number_that_no_table_holds_is_named(number: str, tmp_path: Path) -> None:
    (tmp_path / "how.json").write_text(f'{{"work": {number}}}')
    with pytest.raises(DamagedFileError, match=r"/how\.json: .*(is no finite number|is too large); delete it"):
        typed_json.load(Runtime, tmp_path / "how.json")
    (tmp_path / "how.json").write_text(f'{{"title": "{number}"}}')
    assert typed_json.load(Runtime, tmp_path / "how.json")


def test_a_loss_that_diverged_is_read() -> None:
    assert typed_json.parsed(LoggedRow, b'{"loss": NaN, "gradient": Infinity}').fields["gradient"] == float("inf")


@pytest.mark.parametrize(("kind", "path"), golden(LINES))
def test_a_line_with_a_value_of_another_type_is_none(kind: type, path: Path) -> None:
    whole = json.loads(path.read_text().splitlines()[0])
    typed = {"time", "step", "steps"} if kind is LoggedRow else whole.keys()
    for place in places(kind, whole):
        held = whole
        for key in place:
            held = held[key]
        if place[0] in typed:
            with pytest.raises(ValueError, match=str(place[0])):
                from_json(kind, changed(whole, place, WRONG[type(held)]))


# Keys of later code, and names that are no text


@pytest.mark.parametrize("kind", ONE_OF_EACH, ids=lambda kind: kind.__name__)
def test_a_key_of_later_code_is_ignored(kind: type) -> None:
    whole = json.loads(ONE_OF_EACH[kind].read_text())
    from_json(kind, {**whole, "of_later_code": [1]})


def test_a_withdrawn_record_keeps_the_keys_of_later_code(tmp_path: Path) -> None:
    step = Store.open(tmp_path).step("corpus-4c8bd4c9072feb1b")
    step.path.mkdir(parents=True)
    whole = {**json.loads(ONE_OF_EACH[Record].read_text()), "of_later_code": [1]}
    (step.path / "done.json").write_text(json.dumps(whole))
    step.set_aside("it is damaged")
    withdrawn = json.loads((step.path / "done.corrupt-1.json").read_text())
    assert withdrawn == {**whole, "set_aside": "it is damaged"}
    assert step.state().reason == "set aside: it is damaged"


def test_a_file_name_that_is_no_text_can_be_quoted(tmp_path: Path) -> None:
    path = tmp_path / "exit.json"
    ended = {"state": "failed", "reason": "no such file: \udcff.txt", "returncode": 1, "own": True, "finished": ""}
    path.write_text(json.dumps(ended))
    value = typed_json.load(Exit, path)
    assert value
    assert value.reason.startswith("no such file: ")


# Any value


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """What a field of this type can hold."""
    arguments, origin = get_args(hint), get_origin(hint)
    if origin in (Union, UnionType):
        return st.one_of([values_of(each) for each in arguments])
    if origin is Annotated:  # the one bound there is: a standard error is at least 0
        return values_of(arguments[0]).map(abs)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), values_of(arguments[1]), max_size=3)
    if origin is list:
        return st.lists(values_of(arguments[0]), max_size=3)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments))
    if hint is KVLayout:
        return st.sampled_from([KVLayout((0, 1), (2, 1), 2), KVLayout((0, 0), (1,), 2)])
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return st.builds(hint, **{name: values_of(each) for name, each in fields_of(hint).items()})
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(max_size=9),
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        NoneType: st.none(),
        Any: st.none() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5) | st.lists(st.booleans(), max_size=2),
    }
    return plain[hint]


def fields_of(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def flat(kind: type) -> st.SearchStrategy[Any]:
    typed: dict[str, st.SearchStrategy[Any]] = {"work": st.floats(0, 1e9), "source": st.just({"path": "a"})}
    if kind is LoggedRow:
        steps = st.integers(0, 2**63 - 1)
        typed = {"time": st.floats(0, 1e9), "step": steps, "steps": st.none() | steps}
    rest = values_of(dict[str, Any])
    return st.builds(lambda rest, typed: kind(fields=rest | typed), rest, st.fixed_dictionaries({}, optional=typed))


KINDS = [*FILES.values(), *LINES.values()]


@pytest.mark.parametrize("kind", dict.fromkeys(KINDS), ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_value_is_read_as_it_was_written(kind: type, data: st.DataObject) -> None:
    value = data.draw(flat(kind) if kind in (Runtime, LoggedRow) else values_of(kind))
    assert from_json(kind, as_json(value)) == value
    assert as_json(from_json(kind, as_json(value))) == as_json(value)
