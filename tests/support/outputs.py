"""Standard outputs that a command may meet: pipes, full disks, encodings and terminals."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

Text = Callable[[], str]
"""What was printed so far."""


@contextmanager
def _stdout(descriptor: int, encoding: str = "utf-8", **environment: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("COLUMNS", raising=False)
        for name, value in environment.items():
            patched.setenv(name, value)
        with open(descriptor, "w", encoding=encoding) as stream:
            patched.setattr(sys, "stdout", stream)
            yield


@contextmanager
def reader_gone() -> Iterator[Text]:
    """`| true`"""
    reader, writer = os.pipe()
    os.close(reader)
    with _stdout(writer):
        yield str


@contextmanager
def one_line_read() -> Iterator[Text]:
    """`| head -1`, which leaves at once"""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)

    def read() -> None:
        os.read(reader, 1)
        os.close(reader)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    with _stdout(writer):
        yield str
    thread.join()


@contextmanager
def full_disk() -> Iterator[Text]:
    with _stdout(os.open("/dev/full", os.O_WRONLY)):
        yield str


@contextmanager
def encoded(encoding: str) -> Iterator[Text]:
    with pytest.MonkeyPatch.context() as patched:
        content = io.BytesIO()
        patched.setattr(sys, "stdout", io.TextIOWrapper(content, encoding=encoding))
        yield lambda: content.getvalue().decode(encoding)


@contextmanager
def terminal(columns: int = 80, encoding: str = "utf-8", kind: str = "xterm-256color") -> Iterator[Text]:
    """A pseudo-terminal that somebody reads."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    parts: list[bytes] = []
    thread = threading.Thread(target=_read_all, args=(ours, parts), daemon=True)
    thread.start()

    def text() -> str:
        return b"".join(parts).decode(encoding, "replace")

    with _stdout(theirs, encoding, TERM=kind):
        yield text
    thread.join()
    os.close(ours)


def _read_all(descriptor: int, parts: list[bytes]) -> None:
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # EIO: nobody has the other end
            return
        if not part:
            return
        parts.append(part)


@contextmanager
def closed_terminal() -> Iterator[Text]:
    """Its window is gone, and the program was detached before."""
    ours, theirs = pty.openpty()
    os.close(ours)
    with _stdout(theirs):
        yield str


OUTPUTS: dict[str, Callable[[], AbstractContextManager[Text]]] = {
    "reader gone": reader_gone,
    "head": one_line_read,
    "full disk": full_disk,
    "ascii": lambda: encoded("ascii"),
    "latin-1": lambda: encoded("latin-1"),
    "40 columns": lambda: terminal(40),
    "ascii terminal": lambda: terminal(40, "ascii"),
    "dumb terminal": lambda: terminal(kind="dumb"),
    "closed terminal": closed_terminal,
}


@contextmanager
def errors_to() -> Iterator[Text]:
    """Standard error on its own."""
    with pytest.MonkeyPatch.context() as patched:
        content = io.StringIO()
        patched.setattr(sys, "stderr", content)
        yield content.getvalue
