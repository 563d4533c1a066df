"""A step: one unit of work, and the id that says what it is.

A step's id is the hash of what it is: kind, schema version, config slice, parents and pinned outside facts. Bump a
kind's schema version when its code changes what comes out. A recipe field added later declares a neutral value in its
metadata: at that value it stays out of the hash, so older ids keep their meaning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from mlkv.files import Json
from sweeps.store.schema import Runtime, Spec

Inputs = Mapping[str, Path]


R = TypeVar("R")


@dataclass(frozen=True)
class Step:
    """One unit of work. `slice`, `parents` (role → id), `pinned` and the schema version identify it; `how` and `label`
    do not."""

    kind: str
    slice: Json
    parents: dict[str, str] = field(default_factory=dict)
    pinned: dict[str, str] = field(default_factory=dict)
    how: Json = field(default_factory=dict)
    label: str = ""
    planned_schema: int | None = None
    """Of a step that was planned before: the version that its kind had then. None: the version of today."""

    @classmethod
    def of_spec(cls, spec: Spec, how: Runtime, label: str = "") -> Step:
        """The step that a spec.json describes."""
        return cls(spec.kind, spec.slice, spec.parents, spec.pinned, how.fields, label, spec.schema)

    @property
    def schema(self) -> int:
        """The version of what this step means."""
        from sweeps.steps.registry import kind_of  # the registry imports every kind, and every kind this module

        return kind_of(self.kind).schema if self.planned_schema is None else self.planned_schema

    @cached_property
    def spec(self) -> Spec:
        return Spec(kind=self.kind, schema=self.schema, slice=self.slice, parents=self.parents, pinned=self.pinned)

    @cached_property
    def id(self) -> str:
        return f"{self.kind}-{hashlib.sha256(canonical(self.spec).encode()).hexdigest()[:16]}"


def described_by(spec: Spec) -> str:
    """The id that a spec.json hashes to under the schema version that it names."""
    return Step.of_spec(spec, Runtime()).id


def canonical(value: Any) -> str:
    """The one spelling of a JSON value, or of a Spec. Raises ValueError on NaN, TypeError on what JSON cannot hold."""
    if isinstance(value, Spec):
        # Its parts are JSON already, and a plan of thousands of steps spells each several times.
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def identity_fields(recipe: Any) -> Json:
    """The fields of a recipe that decide the result."""
    return {f.name: _plain(getattr(recipe, f.name)) for f in dataclasses.fields(recipe) if _is_identity(f, recipe)}


def _is_identity(f: dataclasses.Field[Any], recipe: Any) -> bool:
    if f.metadata.get("runtime"):
        return False
    return "neutral" not in f.metadata or getattr(recipe, f.name) != f.metadata["neutral"]


def runtime_fields(recipe: Any) -> Json:
    """The fields of a recipe that say where or how fast."""
    return {f.name: _plain(getattr(recipe, f.name)) for f in dataclasses.fields(recipe) if f.metadata.get("runtime")}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def recipe_of(schema: type[R], values: Json, how: Json) -> R:
    """A recipe back from its slice and its `how`; lists are tuples again."""
    names = {f.name for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    merged = {key: value for key, value in {**values, **how}.items() if key in names}
    return schema(**{key: tuple(value) if isinstance(value, list) else value for key, value in merged.items()})


def with_work(step: Step, work: float) -> Step:
    """The step with its amount of work, in units of its kind: seconds per unit carry over to steps like it."""
    return dataclasses.replace(step, how={**step.how, "work": round(work, 6)})
