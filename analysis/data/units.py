"""How times and sizes are printed, in the terminal, on the page and in figures. Imports nothing."""

from __future__ import annotations


def duration(seconds: float | None, unknown: str = "—") -> str:
    """`42 s`, `2.7 min`, `45 min`, `3.2 h`; `unknown` for what nobody knows."""
    if seconds is None:
        return unknown
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{_short(seconds / 60)} min" if seconds < 5400 else f"{_short(seconds / 3600)} h"


def size(count: float) -> str:
    """Bytes: `96 B`, `512 KiB`, `1.5 GiB`; `1e+50 B` for what no computer has."""
    if count and not 0.1 <= abs(count) < 1e18:
        return f"{count:.2g} B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{_short(count)} {unit}"
        count /= 1024
    return f"{_short(count)} TiB"


def count(number: float) -> str:
    """`850`, `133 K`, `1.5 M`, `30 B`."""
    for unit in ("", " K", " M"):
        if number < 1000:
            return f"{_short(number)}{unit}"
        number /= 1000
    return f"{_short(number)} B"


def _short(number: float) -> str:
    """One decimal below ten, unless it is zero."""
    return f"{number:.1f}".removesuffix(".0") if number < 10 else f"{number:,.0f}"
