"""Tables of named rows, and how a file outside the repository adds rows to them.

An extension is a Python file that imports a table and sets a row: `MERGES["weighted"] = weighted`. Extension files run
late: only when a table does not have a name that is looked up, or when all of its names are listed, so that a command
which needs neither does not wait for them. This module needs the standard library alone.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

R = TypeVar("R")
Function = TypeVar("Function", bound=Callable[..., Any])
FOLDER = "extensions"
"""Where extension files lie in the directory that `--config-dir` names."""


class ExtensionError(ValueError):
    """An extension file cannot be used; the message names the file and the reason, in one line."""


@dataclass(frozen=True)
class Extension:
    """A file that adds rows. `digest` is the SHA-256 of its bytes `source`, in hex."""

    path: Path
    digest: str
    source: bytes = field(repr=False, compare=False)


class Registry(Mapping[str, R]):
    """Rows by name, in the order in which they were added. `noun` is what messages call a row: "merge", "metric".

    A row is added by `table[name] = row`. A name that exists is refused with ExtensionError: a file that replaced a row
    would change what finished steps mean without changing their ids.
    """

    def __init__(self, noun: str, rows: Mapping[str, R]) -> None:
        self.noun = noun
        self._rows = dict(rows)
        self._extensions: dict[str, Extension] = {}

    def __getitem__(self, name: str) -> R:
        if name not in self._rows:
            load_extensions()
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        load_extensions()
        return iter(list(self._rows))

    def __len__(self) -> int:
        load_extensions()
        return len(self._rows)

    def __setitem__(self, name: str, row: R) -> None:
        if not isinstance(name, str):
            raise ExtensionError(f"{self.noun} {name!r}: its name must be text")
        if wrong := self._wrong_type(row):
            raise ExtensionError(f"{self.noun} {name}: {wrong}")
        if name in self._rows:
            file = self.extension(name)
            raise ExtensionError(f"{self.noun} {name} exists already ({file.path if file else 'built in'})")
        self._rows[name] = row
        if _state.running:
            self._extensions[name] = _state.running
            _state.added.append((self, name))

    def _wrong_type(self, row: R) -> str | None:
        """Why a row cannot be one of this table: it is not of a type of those that are built in."""
        rows = list(self._rows.values()) or [row]
        if any(isinstance(row, type(like)) or (callable(row) and callable(like)) for like in rows):
            return None
        types = dict.fromkeys("function" if callable(like) else type(like).__name__ for like in rows)
        return f"must be a {' or a '.join(types)}, not {type(row).__name__}"

    def __delitem__(self, name: str) -> None:
        del self._rows[name]
        self._extensions.pop(name, None)

    def choose(self, name: str) -> R:
        """The row called `name`. Raises ValueError that lists the valid names."""
        try:
            return self[name]
        except KeyError:
            raise ValueError(f"{self.noun} = {name}: must be one of {', '.join(self)}") from None

    def extension(self, name: str) -> Extension | None:
        """The file that added the row; None for a built-in row, and where there is none."""
        if name not in self._rows:
            load_extensions()
        return self._extensions.get(name)

    @contextmanager
    def running(self, name: str, *expected: type[Exception]) -> Iterator[None]:
        """While code of the row runs: where the row is an extension's, what its code raises is an ExtensionError that
        names the file. `expected`: errors that have a meaning for the caller, which pass as they are."""
        try:
            yield
        except Exception as error:
            file = self.extension(name)
            if file is None or isinstance(error, (ExtensionError, *expected)):
                raise
            raise ExtensionError(f"extension {file.path}: {self.noun} {name}: {_reason(error)}") from error

    def pins(self, name: str) -> dict[str, str]:
        """What identifies the row's code in a step: nothing for a built-in row, whose step kind has a schema version;
        the file's digest for a row of an extension, which has no version."""
        file = self.extension(name)
        return {f"{PIN}{self.noun}": file.digest} if file else {}


def function_of(named: str | Function) -> Function:
    """The function that a row holds, or names as `module:function` so that the module is imported when it is used."""
    if not isinstance(named, str):
        return named
    module, _, name = named.partition(":")
    function: Function = getattr(import_module(module), name)
    return function


PIN = "extension "
"""How the pins of extensions begin in a step's specification."""


@dataclass(frozen=True, eq=False)
class NameOf:
    """Marks a field that names a row: `Annotated[str, NameOf(MERGES)]`. `besides`: other valid values."""

    table: Registry[Any]
    besides: tuple[str, ...] = ()

    def valid(self) -> list[str]:
        return [*self.table, *self.besides]

    def __contains__(self, name: object) -> bool:
        return name in self.table or name in self.besides

    def check(self, name: str) -> str:
        """The name. Raises ValueError that lists the valid ones in pydantic's words for a Literal."""
        if name in self:
            return name
        *others, last = map(repr, self.valid())
        raise ValueError(f"{', '.join(others)} or {last}" if others else last)

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def checked(name: str) -> str:
            try:
                return self.check(name)
            except ExtensionError:
                raise
            except ValueError as error:
                raise PydanticCustomError("name", "{valid}", {"valid": str(error)}) from None

        return core_schema.no_info_after_validator_function(checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {**handler(schema), "enum": self.valid()}


# Finding and running extension files

Files = Callable[[], Iterable[Path]]


class _State:
    """What this process knows of extensions."""

    def __init__(self) -> None:
        self.unread: list[Files] = []
        self.loaded: dict[str, Extension] = {}
        self.added: list[tuple[Registry[Any], str]] = []
        self.running: Extension | None = None


_state = _State()


def files_of(config_dir: Path) -> list[Path]:
    """The extension files of a directory that `--config-dir` names, by name."""
    return sorted(path for path in (config_dir / FOLDER).glob("*.py") if not path.name.startswith(("_", ".")))


@contextmanager
def extensions(files: Files) -> Iterator[None]:
    """Within this context tables find the rows of these files; `files` is called when a table first needs them."""
    before, loaded = len(_state.added), dict(_state.loaded)
    _state.unread.append(files)
    try:
        yield
    finally:
        if files in _state.unread:
            _state.unread.remove(files)
        _forget(before)
        _state.loaded = loaded


def load_extensions() -> list[Extension]:
    """Run the extension files that have not run yet, and return all that have. Raises ExtensionError."""
    while _state.unread and not _state.running:  # a file that reads a table while it runs sees what is there
        for path in _state.unread[-1]():
            load(path)
        _state.unread.pop()
    return list(_state.loaded.values())


def load(path: Path, digest: str | None = None) -> Extension:
    """Run a file and add its rows, unless a file with these bytes has run before. Raises ExtensionError, also where it
    does not have the given digest."""
    try:
        source = path.read_bytes()
        source.decode()
    except OSError as error:
        raise ExtensionError(f"extension {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ExtensionError(f"extension {path}: is not UTF-8") from None
    extension = Extension(path, hashlib.sha256(source).hexdigest(), source)
    if digest not in (None, extension.digest):
        raise ExtensionError(f"extension {path}: was edited (its digest is {extension.digest[:16]}, not {digest:.16})")
    if extension.digest not in _state.loaded:
        _run(extension)
        _state.loaded[extension.digest] = extension
    return extension


def _run(extension: Extension) -> None:
    """Run the bytes that were hashed, even if the file has changed since."""
    before, outer = len(_state.added), _state.running
    module = ModuleType(f"mlkv_extension_{extension.digest[:16]}")
    module.__file__ = str(extension.path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look their module up there
    _state.running = extension
    try:
        with redirect_stdout(sys.stderr):  # standard output may be a table that a program reads
            exec(compile(extension.source, str(extension.path), "exec"), module.__dict__)
        if len(_state.added) == before:
            raise ExtensionError("adds no row to any table")
    except KeyboardInterrupt:
        _forget(before)
        raise
    except BaseException as error:  # SystemExit too
        _forget(before)
        beside = isinstance(error, ModuleNotFoundError) and extension.path.with_name(f"{error.name}.py").exists()
        note = "; a file stands alone: it imports what is installed, not the file beside it" if beside else ""
        raise ExtensionError(f"extension {extension.path}: {_reason(error)}{note}") from error
    finally:
        _state.running = outer


def _reason(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}" if error.lineno else error.msg
    text = " ".join(str(error).split())
    return text if isinstance(error, ExtensionError) else f"{type(error).__name__}: {text}"


def _forget(before: int) -> None:
    """Remove the rows that were added since there were so many."""
    for table, name in _state.added[before:]:
        del table[name]
    del _state.added[before:]
