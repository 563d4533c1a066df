"""What subcommands print to: a terminal, or a program that reads JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


JSON_VERSION = 1
"""Of what `--json` prints; rises when a key goes or changes its meaning (docs/automation.md)."""
UNLIMITED = 10_000
"""Columns of a file or a pipe: what a program or a person reads later is not cut at the width of some terminal."""


def make_console(stderr: bool = False) -> Console:
    """One that takes text as it is: labels and reasons hold brackets that are no style (`corpus.files=[/data/*]`).
    stderr: for what a person reads, where a program reads standard output."""
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if terminal or "COLUMNS" in os.environ else UNLIMITED
    return Console(soft_wrap=not terminal, markup=False, emoji=False, width=width, stderr=stderr)


def can_redraw(console: Console) -> bool:
    """Whether a live view can draw over what it drew before; else a line is printed when something changes."""
    return console.is_terminal and not console.is_dumb_terminal


def print_json(values: Mapping[str, Any]) -> None:
    print(json.dumps({"version": JSON_VERSION, **values}, indent=1, allow_nan=False))
