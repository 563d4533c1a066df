"""The typed schema as a JSON schema, by which editors complete and check YAML files: conf/schema.json.

`python -m sweeps.planning.json_schema` writes it; with `--config-dir DIR` it writes DIR/schema.json, which also has the
rows that DIR/extensions/ adds. The whole is a file of `experiment/`, or conf/config.yaml; `$defs/GROUP` is a file of
that group. A file sets some keys and leaves others to the line, so none is required. Rules between fields are not in
it: those a plan checks.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter

from mlkv.families.tables import FAMILIES
from mlkv.files import Json
from mlkv.registry import extensions, files_of
from sweeps.planning.config import FILLED_HERE, OF_A_KIND, Config
from sweeps.planning.grammar import ONE_AT_A_TIME
from sweeps.steps.registry import BUILT_IN, KINDS
from sweeps.store.code import CONF
from sweeps.store.files import write_atomic

NAME = "schema.json"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_UNRESOLVED = {"type": "string", "pattern": r"^(.*\$\{.+\}.*|\?\?\?)$"}
"""`${KEY}`, the value of that key; `???`, which must be set."""
_DEFAULTS = {
    "type": "array",
    "items": {"type": ["string", "object"]},
    "description": "The files that this one begins with (Hydra's defaults list); its own values go over theirs.",
}
_ANY_KEY = r"^([+~]|model\.config\.|evaluate\.few_shot\.|cluster\.)"
"""Keys of a grid whose values no schema says."""


def json_schema() -> Json:
    """The schema of everything that a configuration can have, with the rows of the extensions that are open."""
    whole = TypeAdapter(Config).json_schema(ref_template="#/$defs/{model}")
    defs: Json = whole.pop("$defs")
    classes = {schema.__name__: schema for schema in _classes(Config)}
    added = {kind: schema for kind in KINDS if kind not in BUILT_IN and (schema := KINDS[kind].recipe)}
    for kind, schema in added.items():
        made = TypeAdapter(schema).json_schema(ref_template="#/$defs/{model}")
        defs |= {**made.pop("$defs", {}), schema.__name__: made}
        classes |= {each.__name__: each for each in _classes(schema)}
        whole["properties"][kind] = {"$ref": f"#/$defs/{schema.__name__}"}
    for name, schema in classes.items():
        _complete(whole if schema is Config else defs[name], schema)
    defs["Resources"]["properties"] |= {name: defs["ClusterConfig"]["properties"][name] for name in OF_A_KIND}
    defs["ModelConfig"]["properties"]["config"]["anyOf"][0]["properties"] = {"model_type": {"enum": [*FAMILIES]}}
    groups = {name: ref for name, value in whole["properties"].items() if (ref := _reference(value)) in defs}
    defs["SweepConfig"]["properties"]["grid"] |= _grid(groups, defs)
    files = {name: _with_defaults(defs[ref]) for name, ref in groups.items() if name in added or (CONF / name).is_dir()}
    whole["properties"] |= {"defaults": _DEFAULTS, "hydra": {"type": "object", "description": "Hydra's own settings."}}
    return {"$schema": _DIALECT, **whole, "$defs": {**defs, **files, "unresolved": _UNRESOLVED}}


def _classes(schema: Any) -> Iterator[Any]:
    """The dataclasses that a configuration is made of."""
    yield schema
    for hint in get_type_hints(schema).values():
        for part in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(part):
                yield from _classes(part)


def _complete(made: Json, schema: Any) -> None:
    """Fields that no configuration has go, docstrings come, and any value may be said elsewhere."""
    made.pop("required", None)
    made.pop("title", None)
    made["additionalProperties"] = False
    text = inspect.getdoc(schema) or ""
    made.pop("description", None)
    if text and not text.startswith(f"{schema.__name__}("):  # which dataclasses make up where there is none
        made["description"] = _first_paragraph(text)
    texts = _docstrings(schema)
    for name in FILLED_HERE.get(schema, ()):
        made["properties"].pop(name, None)
    for name, value in made["properties"].items():
        made["properties"][name] = _field(value, texts.get(name))


def _field(value: Json, text: str | None) -> Json:
    """A field with its docstring, whose value may be that of another key."""
    own = {"default": value.pop("default")} if "default" in value else {}
    value.pop("title", None)
    text = text or value.pop("description", None)
    if text and "$ref" not in value:
        own["description"] = text
    if "$ref" in value or value.get("type") == "object":
        return {**value, **own}
    options = value["anyOf"] if set(value) == {"anyOf"} else [value]
    return {"anyOf": [*options, {"$ref": "#/$defs/unresolved"}], **own}


def _docstrings(schema: Any) -> dict[str, str]:
    """Field → the text below it, also of the classes that it inherits from."""
    found: dict[str, str] = {}
    bases: list[type[Any]] = list(filter(dataclasses.is_dataclass, reversed(schema.__mro__)))
    for each in bases:
        [body] = ast.parse(dedent(inspect.getsource(each))).body
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, below in itertools.pairwise(statements):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[field.target.id] = _first_paragraph(inspect.cleandoc(str(below.value.value)))
    return found


def _first_paragraph(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())


def _reference(value: Json) -> str:
    """The definition that a field refers to, alone or where it is set."""
    options = [value, *value.get("anyOf", ())]
    return next((each["$ref"].rpartition("/")[2] for each in options if "$ref" in each), "")


def _with_defaults(made: Json) -> Json:
    return {**made, "properties": {"defaults": _DEFAULTS, **made["properties"]}}


def _grid(groups: dict[str, str], defs: Json) -> Json:
    """Keys that a grid can run through, each with its values as a list, or as a line writes them."""
    swept = {name: ref for name, ref in groups.items() if name not in ONE_AT_A_TIME}
    keys = dict(pair for name, ref in swept.items() for pair in _keys(name, ref, defs))
    words = {"description": "Options of the group, as a list or as a line writes them: mean,svd."}
    lists = {key: _swept(place) for key, place in {**keys, "cache": "#/properties/cache"}.items()}
    return {
        "properties": {**dict.fromkeys(swept, words), **lists},
        "patternProperties": {_ANY_KEY: {}},
        "additionalProperties": False,
    }


def _keys(path: str, name: str, defs: Json) -> Iterator[tuple[str, str]]:
    """Dotted key → the place of its schema."""
    for key, value in defs[name]["properties"].items():
        if (inner := _reference(value)) in defs:
            yield from _keys(f"{path}.{key}", inner, defs)
        elif key != "defaults":
            yield f"{path}.{key}", f"#/$defs/{name}/properties/{key}"


def _swept(place: str) -> Json:
    one = {"$ref": place}
    return {"anyOf": [{"type": "array", "items": one}, one, {"type": "string"}]}


def text() -> str:
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="write the JSON schema of configurations, for editors")
    parser.add_argument("--config-dir", type=Path, help="write DIR/schema.json, with the rows of DIR/extensions/")
    folder = parser.parse_args(arguments).config_dir
    with extensions(partial(files_of, folder) if folder else list):
        write_atomic((folder or CONF) / NAME, text())


if __name__ == "__main__":
    main()
