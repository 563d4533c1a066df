"""The terminal that subcommands print to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def make_console() -> Console:
    from rich.console import Console

    return Console(soft_wrap=not sys.stdout.isatty())
