"""Values set on plain dictionaries: what OmegaConf makes of them, or nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sweeps.planning.compose import _set
from sweeps.planning.plain_config import select, with_values

KEYS = st.sampled_from(["a", "b", "c"])
REFERENCES = st.sampled_from(
    ["${a}", "${a.b}", "${b.c}", "${c.a.b}", "${nope}", "to ${a}", "${oc.env:HOME}", "???", "\\${a}"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("a$?{}.\\", max_size=4)
CONFIGS = st.recursive(
    SCALARS | REFERENCES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
PATHS = st.lists(KEYS | st.sampled_from(["0", "a[0]", ""]), min_size=1, max_size=3).map(".".join)


def through_omegaconf(config: dict[str, Any], changes: dict[str, Any]) -> Any:
    made = OmegaConf.create(config)
    for key, value in changes.items():
        _set(made, key, value)
    return OmegaConf.to_container(made, resolve=True, throw_on_missing=True)


@given(st.dictionaries(KEYS, CONFIGS, max_size=3), st.dictionaries(PATHS, CONFIGS, max_size=3))
def test_what_is_certain_is_what_omegaconf_makes_of_it(config: dict[str, Any], changes: dict[str, Any]) -> None:
    before = repr(config)
    found = with_values(config, changes)
    assert repr(config) == before
    if found is not None:
        assert repr(found) == repr(through_omegaconf(config, changes))


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, SCALARS.filter(lambda value: not isinstance(value, str)))))
def test_plain_values_are_certain(config: dict[str, Any]) -> None:
    changes = {f"{group}.{key}": 1 for group, values in config.items() for key in values}
    found = with_values(config | {"reference": "${other}", "other": 2}, changes)
    assert found is not None
    assert all(select(found, key) == 1 for key in changes)
    assert found["reference"] == 2
