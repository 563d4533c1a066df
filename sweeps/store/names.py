"""The one rule for names that become paths: of sweeps (their folder, their reports, their group in W&B) and imports."""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress
from pathlib import Path

from sweeps.store.errors import StoreError

MAX_BYTES = 100
"""File systems take 255; the rest is for what is put around a name (a suffix, a temporary file's mark)."""
PATTERN = r"^[^\x00-/:-@\[-^`{-\x7f][^\x00-*/:-<>?\[-^`{-\x7f]*$"
"""The rule as far as a JSON schema can say it: of ASCII the same, any character beyond."""
_SHOWN = 40


def check_name(field: str, name: str) -> None:
    """Raises StoreError, naming `field`, for what is no name: it may not lead elsewhere, hide, look like an option, or
    be spelled in two ways."""
    if fault := _fault(name):
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
        raise StoreError(
            f"{field} = {shown if shown.isprintable() else ascii(shown)}: {fault}; letters, digits and . _ + - = , @ "
            f"make a name, of at most {MAX_BYTES} bytes, that begins with a letter, a digit or _"
        )


def same_place(path: Path) -> Path | None:
    """The entry that `path` means on a file system that ignores upper and lower case, if it is spelled differently."""
    with suppress(OSError):
        for other in path.parent.iterdir():
            differs_in_case = other.name != path.name and other.name.casefold() == path.name.casefold()
            if differs_in_case and other.samefile(path):
                return other
    return None


def _fault(name: str) -> str:
    if not name:
        return "is empty"
    if found := re.search(r"[^\w.+=,@-]", name):
        return f"has {found.group()!a}"
    if not (name[0].isalnum() or name[0] == "_"):
        return f"begins with {name[0]}"
    if unicodedata.normalize("NFKC", name) != name:
        return f"can be spelled in two ways (the plain one is {unicodedata.normalize('NFKC', name)})"
    if (size := len(name.encode())) > MAX_BYTES:
        return f"has {size} bytes"
    return ""
