"""Histories that were once fetched from W&B: a file per run, good until the run changes; can be thrown away."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def usual_place() -> Path:
    """`$XDG_CACHE_HOME/mlkv/wandb`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlkv" / "wandb"


class HistoryCache:
    """Rows by run and by when it last changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, run: tuple[str, ...], changed: str) -> list[Json] | None:
        """The rows of `run` (server, entity, project, id) as it was when it changed; None for others and torn files."""
        try:
            kept = json.loads(self._file(run).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return kept["rows"] if kept["changed"] == changed else None

    def keep(self, run: tuple[str, ...], changed: str, rows: list[Json]) -> None:
        """A folder that cannot be written keeps nothing: the next reading only takes longer."""
        file = self._file(run)
        beside = file.with_name(f".{file.name}.{secrets.token_hex(6)}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps({"run": run, "changed": changed, "rows": rows}), encoding="utf-8")
            beside.replace(file)
        except OSError:
            with suppress(OSError):
                beside.unlink()

    def _file(self, run: tuple[str, ...]) -> Path:
        return self._folder / f"{hashlib.sha256(json.dumps(run).encode()).hexdigest()[:32]}.json"
