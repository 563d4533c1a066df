"""A number edited in a record is found, whatever the kind of the step and wherever the number stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.steps.registry import KINDS
from sweeps.steps.verify import cannot_be_checked, edited
from sweeps.store.errors import DamagedFileError
from sweeps.store.seal import seal_holds, sealed
from sweeps.store.stepdir import StepDir
from sweeps.store.store import Store
from sweeps.store.typed_json import as_json
from tests.support.records import record_of
from tests.support.tracked import record

CELL = {"metric": "x", "value": 0.25, "stderr": 0.125, "n": 8}


def done(store: Store, kind: str, metrics: list[dict[str, Any]]) -> StepDir:
    claim = store.step(f"{kind}-0123456789abcdef").claim()
    assert claim
    (claim.attempt.out / "a").write_text("output")
    assert claim.step.publish(claim, record_of(claim, record(metrics)))
    claim.release()
    return claim.step


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value there are numbers."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(inner, (*path, key))
    elif isinstance(value, int | float):
        yield path


def with_change(record: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    changed = json.loads(json.dumps(record))
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] += 1
    return changed


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_that_was_edited_is_found(tmp_path: Path, kind: str) -> None:
    step = done(Store.open(tmp_path), kind, [CELL, {**CELL, "metric": "y", "batch": 1, "context": 32}])
    assert (edited(step), cannot_be_checked(step)) == (None, False)
    file = step.path / "done.json"
    whole = json.loads(file.read_text())
    assert len(list(numbers(whole))) > 10
    for path in numbers(whole):
        file.write_text(json.dumps(with_change(whole, path)))
        assert edited(step) == "done.json was edited: its seal does not fit", path
    changes: tuple[dict[str, Any], ...] = ({"host": "another"}, {"extra": 1}, {"metrics": []})
    for change in changes:
        file.write_text(json.dumps({**whole, **change}))
        assert edited(step), change
    for number in ("NaN", "Infinity"):
        file.write_text(json.dumps({**whole, "metrics": [{**CELL, "value": float(number)}]}))
        with pytest.raises(DamagedFileError, match=rf"^{file}: .*{number}: is no finite number"):
            edited(step)
    file.write_text(json.dumps(dict(reversed(whole.items()))))
    assert edited(step) is None, "the order of keys says nothing"


@pytest.mark.parametrize("content", ["3", "[]", "null", '"x"', "{}", ""])
def test_a_record_of_another_shape_is_named(tmp_path: Path, content: str) -> None:
    step = done(Store.open(tmp_path), "base", [CELL])
    (step.path / "done.json").write_text(content)
    for read in (step.state, step.record, step.attempt, step.corrupted, lambda: edited(step)):
        with pytest.raises(DamagedFileError, match=rf"^{step.path}/done.json: (is no JSON|has no id)"):
            read()


@pytest.mark.parametrize("content", ["3", "[]", "null", ""])
@pytest.mark.parametrize("name", ["spec", "how"])
def test_a_description_of_another_shape_is_named(tmp_path: Path, name: str, content: str) -> None:
    step = done(Store.open(tmp_path), "base", [CELL])
    (step.path / f"{name}.json").write_text(content)
    with pytest.raises(DamagedFileError, match=rf"^{step.path}/{name}.json: is no JSON"):
        getattr(step, name)()


def test_a_seal_is_of_what_is_read_back(tmp_path: Path) -> None:
    claim = Store.open(tmp_path).step("base-0123456789abcdef").claim()
    assert claim
    made = replace(record_of(claim), facts={"a": (1, 2.0), "b": {"c": None}, "d": 1e300, "e": 0.1 + 0.2})
    assert seal_holds(json.loads(json.dumps(as_json(sealed(made))))) is True
    assert seal_holds(as_json(made)) is None


def without_seal(step: StepDir) -> None:
    """As earlier code wrote it."""
    file = step.path / "done.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "seal"}))


@pytest.mark.parametrize("kind", ["base", "uptrain", "convert"])
def test_of_old_records_that_nothing_vouches_for_it_is_said(tmp_path: Path, kind: str) -> None:
    step = done(Store.open(tmp_path), kind, [CELL])
    without_seal(step)
    assert (edited(step), cannot_be_checked(step)) == (None, True)


def test_a_step_that_is_not_done_has_nothing_to_edit(tmp_path: Path) -> None:
    step = Store.open(tmp_path).step("base-0123456789abcdef")
    assert (edited(step), cannot_be_checked(step)) == (None, False)
