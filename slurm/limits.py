"""Values as configurations write them and as sbatch's options do: time, memory, lists of names."""

from __future__ import annotations

import math
import re

UNLIMITED = 10**9
"""Minutes, or jobs: no limit."""

TIME_FORMS = (
    "minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds, "
    "UNLIMITED"
)
MEMORY_FORMS = "GB as a number, or with a unit (512M, 80G, 80GB, 1T); 0 for all that the node has"
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])B?)?", re.ASCII | re.IGNORECASE)
TIME_PATTERN = r"^\s*((\d+-)?\d+(:\d+){0,2}|UNLIMITED|unlimited|INFINITE|infinite)\s*$"
MEMORY_PATTERN = r"^\s*\d+(\.\d+)?\s*([KMGTkmgt][Bb]?)?\s*$"
"""The same forms in the regular expressions of JSON schemas, for editors."""
_GB = {"K": 1 / 1024**2, "M": 1 / 1024, "G": 1.0, "T": 1024.0}


def minutes_of(value: object) -> object:
    """A time limit in whole minutes, rounded up as SLURM does, from any form that sbatch takes; UNLIMITED for none.
    What is no text is returned as it is. Raises ValueError."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return UNLIMITED
    if not (match := _TIME.fullmatch(text)):
        raise ValueError(f"{value!r} is no time limit: {TIME_FORMS}")
    days, *clock = match.groups()
    given = [int(part) for part in clock if part is not None]
    if days is not None:
        hours, minutes, seconds = [*given, 0, 0][:3]
    else:
        hours, minutes, seconds = given if len(given) == 3 else [0, *given, 0][:3]
    return min(UNLIMITED, int(days or 0) * 1440 + hours * 60 + minutes + math.ceil(seconds / 60))


def time_option(minutes: int) -> int | str:
    """The value of `--time`."""
    return "UNLIMITED" if minutes >= UNLIMITED else minutes


def gigabytes_of(value: object) -> object:
    """GB (1024 MB, as SLURM counts) from `80G`, `80GB`, `512M`, `80`. What is no text is returned as it is. Raises
    ValueError."""
    if not isinstance(value, str):
        return value
    if not (match := _MEMORY.fullmatch(value.strip())):
        raise ValueError(f"{value!r} is no amount of memory: {MEMORY_FORMS}")
    return float(match.group(1)) * _GB[(match.group(2) or "G").upper()]


def text_of(value: object) -> object:
    """A name, or several joined by commas. Names of accounts may be numbers. What is neither is returned as it is."""
    parts = value if isinstance(value, list | tuple) else [value]
    if not parts or any(isinstance(part, bool) or not isinstance(part, str | int) for part in parts):
        return value
    return ",".join(map(str, parts))


def lines_of(value: object) -> object:
    """Shell lines; a text is one of them, or several."""
    return value.splitlines() if isinstance(value, str) else value


def memory_option(gigabytes: float) -> str:
    """The value of `--mem`: whole MB, at least one where any is wanted; 0 is all of the node's."""
    return f"{max(1, round(gigabytes * 1024))}M" if gigabytes else "0"
