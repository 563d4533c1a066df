"""From a composed configuration to a checked `Config`, with one line for each mistake."""

from __future__ import annotations

import dataclasses
import marshal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, ValidationError
from pydantic_core import ErrorDetails

from slurm.profile import Profile
from slurm.resources import Resources
from sweeps.planning.config import DRIVER, FILLED_HERE, KEYS, OF_A_KIND, ClusterConfig, Config, adapter
from sweeps.planning.scalars import check_number, check_texts, is_number, leaves
from sweeps.steps.registry import KINDS
from sweeps.store.errors import UserError, choices, shown
from sweeps.store.plans import SavedSweep

Checked = dict[tuple[str, bytes], Any]
"""Parts of configurations by name and content, as `parse` checked them."""


def parse(values: Mapping[str, Any], checked: Checked | None = None) -> Config:
    """A checked `Config`. Raises UserError with one line per mistake: field, value, valid choices.

    checked: parts that other configurations of one plan had, which are not checked again; new ones are added.
    """
    parts = {} if checked is None else dict(_known_parts(values, checked))
    rest = {key: value for key, value in values.items() if key not in parts}
    check_texts(rest)
    own = _own_values({key: value for key, value in rest.items() if key in KEYS or key not in KINDS})
    config: Config = _validated(Config, own | parts)
    try:
        config = config.with_resources()
    except ValueError as error:  # of the cluster or the batch sizes, which are checked again with these resources
        raise UserError(str(error)) from None
    added = {key: _recipe(key, value) for key, value in rest.items() if key not in own and value is not None}
    return replace(config, added=added) if added else config


def _known_parts(values: Mapping[str, Any], checked: Checked) -> Iterator[tuple[str, Any]]:
    """The parts that are right in themselves; what is not, is for the check of the whole to name."""
    for key in (key for key in values if key in _PARTS):
        with suppress(UserError, ValueError):  # also of a value that marshal cannot write
            content = key, marshal.dumps(values[key], 2)  # later versions write more than content and types
            if content not in checked:
                check_texts({key: values[key]})
                checked[content] = adapter(_hints(Config)[key]).validate_python(_own_values({key: values[key]})[key])
            yield key, checked[content]


def _own_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the schema is filled with. Raises UserError."""
    own, profiles = _split_profiles(values)
    _check_values(Config, own, "")
    return {**own, "cluster": {**own["cluster"], "profiles": profiles}} if profiles else own


def _split_profiles(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The same without a profile's fields in `cluster.resources.KIND`, and these fields by kind. Raises UserError for
    values that such a field cannot have."""
    cluster = values.get("cluster")
    by_kind = cluster.get("resources") if isinstance(cluster, Mapping) else None
    if not isinstance(cluster, Mapping) or not isinstance(by_kind, Mapping):
        return dict(values), {}
    profiles, resources = {}, dict(by_kind)
    for kind, given in by_kind.items():
        if isinstance(given, Mapping) and (own := {name: given[name] for name in OF_A_KIND if name in given}):
            _check_values(Profile, own, f"cluster.resources.{kind}.")
            _validated(Profile, own, f"cluster.resources.{kind}")
            if kind in KINDS or kind == DRIVER:  # else the check of `resources` says so
                profiles[kind] = own
            resources[kind] = {name: value for name, value in given.items() if name not in own}
    return {**values, "cluster": {**cluster, "resources": resources}}, profiles


def _recipe(kind: str, values: Any) -> Any:
    """The recipe of a step of a kind that an extension adds; None where the kind has none."""
    if not isinstance(values, Mapping):
        raise UserError(f"{kind} = {shown(values)}: must be a mapping; choose a configuration by +{kind}=NAME")
    schema = KINDS[kind].recipe
    if schema is None:
        if values:
            raise UserError(f"{kind}.{next(iter(values))}: unknown key; step kind {kind} has no recipe")
        return None
    _check_values(schema, values, f"{kind}.")
    return _validated(schema, values, kind)


def _validated(schema: Any, values: Mapping[str, Any], *place: str) -> Any:
    try:
        return adapter(schema).validate_python(values)
    except ValidationError as error:
        raise UserError("; ".join(_lines(error.errors(), *place))) from None
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_values(schema: Any, values: Any, path: str) -> None:
    """Refuse unknown keys, which are the likeliest slip and deserve the list of valid ones; and true or false for a
    number, which pydantic takes for 1 or 0. Raises UserError."""
    fields = {f.name for f in dataclasses.fields(schema)} - FILLED_HERE.get(schema, set())
    for key, value in values.items():
        if key not in fields:
            valid = fields.union(KINDS if schema is Config else OF_A_KIND if schema is Resources else ())
            raise UserError(f"{path}{key}: unknown key; {choices(str(key), valid)}")
        for place, leaf in leaves(value, f"{path}{key}") if is_number(_hints(schema)[key]) else ():
            check_number(place, leaf, own_forms=_has_own_forms(schema, key))
        for name, nested, inner in _nested(schema, key, value):
            _check_values(nested, inner, f"{path}{name}.")


@cache
def _has_own_forms(schema: Any, key: str) -> bool:
    """Whether a field reads text in forms of its own, as SLURM's times."""
    hint = get_type_hints(schema, include_extras=True)[key]
    marks = [mark for part in (hint, *get_args(hint)) for mark in getattr(part, "__metadata__", ())]
    return any(isinstance(mark, BeforeValidator) for mark in marks)


def _nested(schema: Any, key: str, value: Any) -> Iterator[tuple[str, Any, Any]]:
    """The mappings inside a field that fill dataclasses: the field itself, or the values of a dict of them."""
    hint = _hints(schema)[key]
    nested = next((t for t in (hint, *get_args(hint)) if dataclasses.is_dataclass(t)), None)
    if nested is None or not isinstance(value, Mapping):
        return
    inside = value.items() if get_origin(hint) is dict else [("", value)]
    for name, inner in inside:
        if isinstance(inner, Mapping):
            yield f"{key}.{name}".rstrip("."), nested, inner


_hints = cache(get_type_hints)
_PARTS = {key for key, hint in _hints(Config).items() if dataclasses.is_dataclass(hint)}


def _lines(errors: Iterable[ErrorDetails], *place: str) -> list[str]:
    """Each once; a word that a field takes in place of a number is said in the number's line."""
    lines: list[str] = []
    for error in errors:
        line = _line(error, *place)
        field, _, message = line.partition(": must be ")
        if error["type"] == "literal_error" and lines and lines[-1].startswith(f"{field}: must be "):
            lines[-1] += f", or {message}"
        else:
            lines.append(line)
    return list(dict.fromkeys(lines))


def _line(error: ErrorDetails, *place: str) -> str:
    parts = (*place, *map(str, error["loc"]))
    where = ".".join(
        part for part in parts if not part.startswith(("function-", "tuple[", "dict[", "constrained", "literal["))
    )
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if isinstance(limit := error.get("ctx", {}).get("le"), float):
        message = f"less than or equal to {limit:g}"  # pydantic would write 39 digits
    if error["type"] == "value_error":
        return f"{where}: {message}" if where else message
    if error["type"] == "missing":
        return f"{where}: must be set"
    return f"{where} = {shown(error['input'])}: must be {message}"


def saved_cluster(saved: SavedSweep) -> ClusterConfig:
    """The cluster part of a frozen plan. Raises StoreError where it is damaged."""
    try:
        cluster: ClusterConfig = adapter(ClusterConfig).validate_python(saved.plan.cluster)
        for kind in cluster.profiles:
            cluster.profile_of(kind)
        return cluster
    except ValidationError as error:
        raise saved.damaged("cluster", _line(error.errors()[0])) from None
