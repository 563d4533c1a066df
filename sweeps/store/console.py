"""What a job prints into its log."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line and go on where that fails: the log may lie on a full disk, and the exit status says how it went."""
    stream = stream or sys.stdout
    try:
        try:
            print(line, file=stream, flush=True)
        except UnicodeEncodeError:  # a reason may quote any text, and the log's encoding may be ASCII
            print(line.encode("ascii", "backslashreplace").decode(), file=stream, flush=True)
    except OSError:
        print_nowhere(stream)


def print_nowhere(stream: TextIO) -> None:
    """Drop what a stream could not write, and all that will be written to it. What is left in its buffer the
    interpreter would fail to write at the end, and exit with a status of its own."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
