"""Reads the YAML files of conf/ and of `--config-dir` for Hydra, and names the file and the line of a fault.

Scalars are those of YAML 1.2. OmegaConf's own loader follows YAML 1.1, where `20:00` is 1200 (base 60), `010` is 8 and
`off` is false; here these are text, which the schema reads or refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweeps.store.errors import UserError, shown

_INT, _FLOAT, _BOOL = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool"))
_SCALARS = {
    _BOOL: (re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    _INT: (re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)"), "-+0123456789"),
    _FLOAT: (
        re.compile(
            r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
            r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
        ),
        "-+0123456789.",
    ),
}
_RESOLVED_AS_BEFORE = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice; YAML's own loader keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: left
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (left := [(tag, pattern) for tag, pattern in resolvers if tag in _RESOLVED_AS_BEFORE])
}
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern.pattern})$"), list(_first))


class _Source(FileConfigSource):
    """Hydra's source of `file://` paths, with our way to read a file."""

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path))
        text = _text(path)
        config = _parsed(text, path)
        header = ConfigSource._get_header_dict(text[:512])
        return ConfigResult(config=config, path=f"{self.scheme()}://{self.path}", provider=self.provider, header=header)


@contextmanager
def our_files() -> Iterator[None]:
    """Within this context Hydra reads YAML files our way."""
    sources = SourcesRegistry.instance().types
    scheme = FileConfigSource.scheme()
    before = sources[scheme]
    sources[scheme] = _Source
    try:
        yield
    finally:
        sources[scheme] = before


def read(path: Path) -> Any:
    """The configuration in a file. Raises UserError naming the file and, where YAML knows it, the line."""
    return _parsed(_text(path), path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _parsed(text: str, path: Path) -> Any:
    try:
        content = yaml.load(text, Loader=_Loader)
        if not isinstance(content, dict | None):
            raise UserError(f"{path}: holds {_noun(content)}; a configuration is lines KEY: VALUE")
        return OmegaConf.create(content or {})
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise UserError(f"{place}: is no YAML ({error.problem or error.context})") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        deep = "recursion" in str(error)  # OmegaConf gives Python's error in words of its own
        reason = "is nested too deeply, or in itself" if deep else str(error)
        raise UserError(f"{path}: {reason}") from None


def _noun(content: Any) -> str:
    return "a list" if isinstance(content, list) else f"the value {shown(content)}"
