"""The standard streams and the signals of a command: a reader that goes away, a stream that is closed, an encoding that
lacks a letter or a terminal that is closed ends no work, and nothing ends in a traceback."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO, cast

from sweeps.store.console import print_nowhere

READER_GONE = 128 + signal.SIGPIPE
"""The exit status of a command whose output nobody reads any more, as a shell has it of any program."""
_SIGNALS = (signal.SIGHUP, signal.SIGTERM)


class OutputLost(BaseException):
    """What a command prints is not read, or cannot be stored, and it does nothing else. No OSError and no Exception:
    code that reads files, and code that only shows things, would take those for its own."""

    def __init__(self, cause: OSError) -> None:
        self.cause = cause


class Ended(KeyboardInterrupt):
    """A signal ends the command: its terminal was closed, or somebody ended it. Work stops as it does on Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = number


class Stream:
    """A text stream that is lost where it cannot be written to: then `lost` decides what that means."""

    def __init__(self, stream: TextIO, lost: Callable[[OSError], None]) -> None:
        self._stream, self._lost = stream, lost

    def write(self, text: str) -> int:
        with self._losing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._losing():
            self._stream.flush()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            print_nowhere(self._stream)
            self._lost(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Output:
    """What becomes of a command whose output cannot be written. `is_all`: printing is all that it does, and it ends;
    else its work goes on, and its exit status tells of that."""

    def __init__(self) -> None:
        self.is_all = True

    def lost(self, error: OSError) -> None:
        """Raises OutputLost."""
        if self.is_all:
            raise OutputLost(error)
        if not isinstance(error, BrokenPipeError):
            print(f"mlkv: standard output: {error.strerror}; the work goes on without it", file=sys.stderr)


@contextmanager
def standard_streams() -> Iterator[Output]:
    """Put a Stream before standard output and standard error, and open those that are closed: without that, the next
    file to be opened would take their place, and receive what is printed."""
    _open_closed_descriptors()
    output, before = Output(), (sys.stdout, sys.stderr)
    out, err = before[0] or _nowhere(1), before[1] or _nowhere(2)
    for stream in (out, err):
        _replace_letters(stream)
    sys.stdout = cast(TextIO, Stream(out, output.lost))
    sys.stderr = cast(TextIO, Stream(err, lambda _error: None))
    try:
        yield output
    finally:
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _open_closed_descriptors() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one


def _nowhere(descriptor: int) -> TextIO:
    return open(descriptor, "w", encoding="utf-8", closefd=False)


def _replace_letters(stream: TextIO) -> None:
    """Print `?` for a letter that the encoding lacks, where the user has not chosen something else."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        with suppress(OSError):  # it writes what was printed before
            stream.reconfigure(errors="replace")


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raise Ended for a signal that would end the process at once, so that running steps are stopped in an orderly way.
    A signal that is ignored (nohup) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended(number)
