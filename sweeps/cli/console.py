"""The terminal that subcommands print to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def make_console() -> Console:
    """One that takes text as it is: labels and reasons hold brackets that are no style (`corpus.files=[/data/*]`)."""
    from rich.console import Console

    return Console(soft_wrap=not sys.stdout.isatty(), markup=False, emoji=False)
