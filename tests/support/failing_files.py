"""File operations that fail: of all that a piece of code does below a folder, the n-th raises an OSError."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

OPERATIONS = ("rename", "replace", "link", "unlink", "remove", "rmdir", "mkdir", "open", "fsync", "utime", "scandir")
"""Of the module os, which pathlib and shutil go through; files opened by io and builtins count too."""


@dataclass
class Failing:
    """Counts the operations below `folder`; number `at` (from 0) raises `error`, and if `late`, after it has had its
    effect, as a file server's answer may get lost. With `only`, just these operations count."""

    folder: Path
    at: int | None = None
    error: int = 0
    late: bool = False
    only: tuple[str, ...] = ()
    calls: list[str] = field(default_factory=list)

    def wrapped(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if not self._counts(name, arguments, named):
                return operation(*arguments, **named)
            self.calls.append(f"{name} {arguments[0]}")
            if len(self.calls) - 1 != self.at:
                return self.watched(name, operation(*arguments, **named), arguments)
            if self.late:
                operation(*arguments, **named)
            raise OSError(self.error, os.strerror(self.error))

        return call

    def watched(self, name: str, result: Any, arguments: tuple[Any, ...]) -> Any:
        """A file that was opened to be written: each writing to it counts too, and one that fails has written half, as
        on a disk that is full."""
        if name == "open" and not isinstance(result, int) and result.writable():
            write = result.write

            def failing_write(content: Any) -> Any:
                self.calls.append(f"write {arguments[0]}")
                if len(self.calls) - 1 != self.at:
                    return write(content)
                write(content[: len(content) if self.late else len(content) // 2])
                raise OSError(self.error, os.strerror(self.error))

            if not self.only or "write" in self.only:
                result.write = failing_write
        return result

    def _counts(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        if self.only and name not in self.only:
            return False
        what = arguments[0] if arguments else None
        if name == "fsync" or "dir_fd" in named or isinstance(what, int):  # shutil.rmtree goes by descriptors
            return True
        return isinstance(what, str | os.PathLike) and os.fspath(what).startswith(str(self.folder))


@contextmanager
def failing(folder: Path, **how: Any) -> Iterator[Failing]:
    fault = Failing(folder, **how)
    with pytest.MonkeyPatch.context() as patched:
        for name in OPERATIONS:
            patched.setattr(os, name, fault.wrapped(name, getattr(os, name)))
        for module in (io, builtins):
            patched.setattr(module, "open", fault.wrapped("open", io.open))
        yield fault


@contextmanager
def read_only(folder: Path) -> Iterator[list[str]]:
    """Whatever would write below `folder` fails, as on a file system mounted so; root's rights make no difference."""
    refused: list[str] = []

    def wrapped(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            below = any(isinstance(a, str | os.PathLike) and Path(a).is_relative_to(folder) for a in arguments[:2])
            if not below or (name == "open" and not _writes(*arguments, **named)):
                return operation(*arguments, **named)
            refused.append(f"{name} {arguments[0]}")
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))

        return call

    with pytest.MonkeyPatch.context() as patched:
        for name in OPERATIONS:
            if name not in ("fsync", "scandir"):
                patched.setattr(os, name, wrapped(name, getattr(os, name)))
        for module in (io, builtins):
            patched.setattr(module, "open", wrapped("open", io.open))
        yield refused


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Nobody may read or write this file, or enter this folder; root's rights make no difference."""

    def wrapped(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if any(isinstance(a, str | os.PathLike) and Path(a).is_relative_to(path) for a in arguments[:2]):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(arguments[0]))
            return operation(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patched:
        for name in (*OPERATIONS, "listdir"):
            if name != "fsync":
                patched.setattr(os, name, wrapped(getattr(os, name)))
        for module in (io, builtins):
            patched.setattr(module, "open", wrapped(io.open))
        yield


def _writes(path: object, mode: str | int = "r", *_: Any, **__: Any) -> bool:
    if isinstance(mode, int):  # of os.open
        return bool(mode & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return mode.strip("bt") != "r"
