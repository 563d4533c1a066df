"""Writes an export: the whole directory appears at once, and nothing that an export did not write is replaced."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from ..files import Json, discard, share
from .card import Origin, model_card
from .checkpoint import Checkpoint
from .targets import choose

MANIFEST = "export.json"
"""Names the files of an export: a directory that has no others may be replaced."""


def export(checkpoint: Checkpoint, to: str, out: Path, origin: Origin, name: str = "") -> None:
    """Write a checkpoint as target `to` into the directory `out`, with a model card that calls it `name`.

    Raises ValueError, before anything is written, for a target that cannot hold it and for an `out` that holds
    something else than an earlier export; and for weights that are damaged.
    """
    target = choose(to, checkpoint)
    check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    made = out.with_name(f".{out.name}.{secrets.token_hex(6)}")
    made.mkdir()
    try:
        target.writes(checkpoint, made)
        (made / "README.md").write_text(model_card(origin, checkpoint, target, name or out.name), "utf-8")
        _write_manifest(made, to, origin)
        share(made)
        _put_in_place(made, out)
    finally:
        discard(made)


def check_replaceable(out: Path) -> None:
    """Raises ValueError unless `out` is missing, empty, or an earlier export to which nothing was added."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise ValueError(f"DIR = {out}: is not a directory")
    written = set(_listed(out))
    foreign = (path for path in out.rglob("*") if str(path.relative_to(out)) not in written and not path.is_dir())
    if (path := next(foreign, None)) is not None:
        raise ValueError(
            f"DIR = {out}: holds {path.relative_to(out)}, which no export wrote; name a new or an empty directory"
        )


def _listed(out: Path) -> list[str]:
    try:
        manifest: Json = json.loads((out / MANIFEST).read_text("utf-8"))
        return [*manifest["files"], MANIFEST]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write_manifest(made: Path, to: str, origin: Origin) -> None:
    files = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
    manifest = {"to": to, "steps": [step.id for step in origin.steps], "files": files}
    (made / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")


def _put_in_place(made: Path, out: Path) -> None:
    """A directory cannot be renamed onto one that has files: the earlier export is moved away first, and back if that
    fails."""
    if not out.exists():
        made.rename(out)
        return
    earlier = out.with_name(f".{out.name}.{secrets.token_hex(6)}")
    out.rename(earlier)
    try:
        made.rename(out)
    except OSError:
        earlier.rename(out)
        raise
    discard(earlier)
