"""What stands at the beginning of a pack: `manifest.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from mlkv.files import Json
from sweeps.store.schema import Files, Origin
from sweeps.store.typed_json import as_json, parsed

MANIFEST = "manifest.json"
FORMAT, VERSION = "mlkv pack", 1
"""The version rises when a reader of the one before would misread a pack."""
Weights = Literal["none", "last", "all"]
WEIGHTS: tuple[Weights, ...] = ("none", "last", "all")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """by: who packed it. packed: the newest time in it, so that equal content gives equal bytes. made_by: the version
    of mlkv. origins: of steps that the packer had unpacked from others, by id."""

    format: str
    version: int
    sweep: str
    by: str | None
    packed: str
    made_by: str
    weights: Weights
    files: Files
    origins: dict[str, Origin] = field(default_factory=dict)

    @classmethod
    def read(cls, content: bytes) -> Manifest:
        """Raises ValueError that says what is wrong with it, or that it is newer than this code."""
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{MANIFEST}: is no JSON ({error})") from None
        _check_version(value)
        try:
            manifest = parsed(cls, content)
        except ValueError as error:
            raise ValueError(f"{MANIFEST}: {error}") from None
        if any(each.bytes < 0 for each in manifest.files.values()):
            raise ValueError(f"{MANIFEST}: a file has fewer than 0 bytes")
        check_by(manifest.by)
        for origin in manifest.origins.values():
            check_by(origin.by)
        return manifest

    def content(self) -> bytes:
        return (json.dumps(as_json(self), indent=1, allow_nan=False) + "\n").encode()


def _check_version(value: object) -> None:
    found: Json = value if isinstance(value, dict) else {}
    version = found.get("version")
    if found.get("format") != FORMAT or type(version) is not int or version < 1:
        raise ValueError(f"{MANIFEST}: is not that of a pack of mlkv")
    if version > VERSION:
        raise ValueError(f"has format version {version}, and this mlkv reads up to {VERSION}; take a newer mlkv")


MAX_BY = 80


def check_by(by: str | None) -> None:
    """Raises ValueError for what no table can show as a person's name, or what names a place on a machine."""
    if by is None:
        return
    if not by.strip() or by != by.strip() or not by.isprintable() or len(by) > MAX_BY:
        raise ValueError(f"by = {by[:MAX_BY]!a}: must be a name in one line, of at most {MAX_BY} characters")
    if "/" in by or "\\" in by:
        raise ValueError(f"by = {by}: must be a name, not a path")
