"""show and diff: what they say of a configuration is all of it, and only what differs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.cli.show import different, flat
from sweeps.store.store import Store
from tests.support.commands import OLD_STORE
from tests.support.shell import exit_status

OLD = Store(OLD_STORE / "store")
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
KEYS = st.text("abc", min_size=1, max_size=2)
CONFIGS = st.dictionaries(
    KEYS, st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3)), max_size=4
)


def call(*words: str) -> int:
    return exit_status(*words, "--store", str(OLD.root))


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as mappings again."""
    config: dict[str, Any] = {}
    for path, value in leaves.items():
        *above, last = path.split(".")
        place = config
        for key in above:
            place = place.setdefault(key, {})
        place[last] = value
    return config


@given(CONFIGS)
def test_dotted_keys_lose_nothing(config: dict[str, Any]) -> None:
    assert nested(flat(config)) == config


@given(CONFIGS, CONFIGS)
def test_what_differs_turns_one_into_the_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    a, b = flat(before), flat(after)
    changes = different(a, b)
    absent = {key: value for key, value in a.items() if value is not None} | {
        key: new for key, (_, new) in changes.items()
    }
    assert {key: value for key, value in absent.items() if value is not None} == {
        key: value for key, value in b.items() if value is not None
    }
    assert different(a, a) == {}
    assert different(b, a) == {key: (new, old) for key, (old, new) in changes.items()}


def test_a_variant_is_shown_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert call("show", "old", "MHA-4") == 0
    printed = capsys.readouterr().out
    row = next(row for row in OLD.sweep("old").variants if row.variant == "MHA-4")
    assert all(f"{key} = " in printed for key in flat(row.config))
    assert all(id in printed for id in row.steps.ids)
    assert row.layout.draw() in printed.splitlines()
    done = [step for step in map(OLD.step, row.steps.ids) if step.record()]
    assert done
    assert all(str(step.out) in printed for step in done)
    assert "FAILED loss = nan at step 2" in printed


def test_sweeps_and_variants_are_compared(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert call("diff", "old", "old") == 0
    shared = len({id for row in OLD.sweep("old").variants for id in row.steps.ids})
    assert capsys.readouterr().out == f"{shared} steps are the same\n"
    assert call("diff", "old/MHA-4", "old/MQA-2") == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["layout.kv_heads: 2 → 1", "uptrain.lr: 1e+30 → 0.001"]
    assert call("diff", "old", "stopped", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["only"] == {"old": ["untouched", "MHA-4"], "stopped": []}
    assert found["all"]["uptrain.steps"] == [4, 60000]
    assert found["variants"] == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("diff", "old", "old/MHA-4"), "diff: old old/MHA-4: give two sweeps, or two variants as SWEEP/VARIANT"),
        (("diff", "old", "nope"), "sweep nope: not in "),
        (("diff", "old/x", "old/MHA-4"), "x: no variant of sweep old; valid: MHA-4, MLKV-2, MQA-2, untouched"),
        (("show", "old", "M"), "M: is in several variants (MHA-4, MQA-2, MLKV-2); name one"),
        (("show", "nope", "M"), "sweep nope: not in "),
    ],
)
def test_what_is_not_there_is_one_line(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
