"""The terminal that subcommands print to."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


UNLIMITED = 10_000
"""Columns of a file or a pipe: what a program or a person reads later is not cut at the width of some terminal."""


def make_console() -> Console:
    """One that takes text as it is: labels and reasons hold brackets that are no style (`corpus.files=[/data/*]`)."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    width = None if terminal or "COLUMNS" in os.environ else UNLIMITED
    return Console(soft_wrap=not terminal, markup=False, emoji=False, width=width)


def can_redraw(console: Console) -> bool:
    """Whether a live view can draw over what it drew before; else a line is printed when something changes."""
    return console.is_terminal and not console.is_dumb_terminal
