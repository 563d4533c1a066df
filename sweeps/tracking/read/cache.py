"""A cache of histories fetched from W&B: a file per run, valid until the run changes. It can be deleted at any time."""

from __future__ import annotations

import hashlib
import json
import secrets
from contextlib import suppress
from pathlib import Path

from mlkv.files import Json
from sweeps.store.user_cache import user_cache


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/mlkv/wandb`."""
    return user_cache("wandb")


class HistoryCache:
    """Rows of runs, each with the time of the run's last change."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, run: tuple[str, ...], changed: str) -> list[Json] | None:
        """The rows of `run` (server, entity, project, id) as they were after its change at `changed`; None where the
        cache has none, has older ones, or its file is damaged."""
        try:
            stored = json.loads(self._file(run).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return stored["rows"] if stored["changed"] == changed else None

    def write(self, run: tuple[str, ...], changed: str, rows: list[Json]) -> None:
        """Store a run's rows. A folder that cannot be written is no error: the next reading only takes longer."""
        file = self._file(run)
        temporary = file.with_name(f".{file.name}.{secrets.token_hex(6)}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"run": run, "changed": changed, "rows": rows}), encoding="utf-8")
            temporary.replace(file)
        except OSError:
            with suppress(OSError):
                temporary.unlink()

    def _file(self, run: tuple[str, ...]) -> Path:
        return self._folder / f"{hashlib.sha256(json.dumps(run).encode()).hexdigest()[:32]}.json"
