"""Task definitions as values: YAML files with what they include, and `!function` left as a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class Function(str):
    """The name in a `!function`: calling it is what would need the task's code."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    pass


_Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))


def read_file(path: Path) -> dict[str, Any]:
    """The YAML of one file. Raises ValueError that names it, with the line."""
    try:
        values = yaml.load(path.read_text("utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{path}: {line}{error.problem or error.context}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ValueError(f"{path}: {reason}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: is no task definition")
    return values


def read_definition(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The YAML of a file and of those that it includes, whose keys it may set anew."""
    if path in above:
        raise ValueError(f"{path}: includes itself")
    values = read_file(path)
    included = values.pop("include", None) or []
    inherited: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        inherited |= read_definition(path.parent / str(name), (*above, path))
    return inherited | values
