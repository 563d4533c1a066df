"""The journal of a search: `sweeps/<name>/search.jsonl`, the points that were chosen so far, and who chooses now."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from sweeps.store.claim import ClaimFile
from sweeps.store.errors import DamagedFileError, StoreError
from sweeps.store.files import file_clock, modified
from sweeps.store.lines import append_rows, read_rows
from sweeps.store.outside import plain_reason
from sweeps.store.schema import ClaimHolder, TrialRow
from sweeps.store.typed_json import as_json
from sweeps.store.variables import stale_seconds

BEAT_SECONDS = 1.0


class SearchJournal:
    """The rows of one search. Who adds to them holds the journal (`with journal:`), which nobody else can hold then."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._claims = ClaimFile(folder / "search.claim")
        self._held: ClaimHolder | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def path(self) -> Path:
        return self._folder / "search.jsonl"

    @property
    def _beat_file(self) -> Path:
        return self._folder / "search.beat"

    def exists(self) -> bool:
        return self.path.exists()

    def rows(self) -> list[TrialRow]:
        """In the order in which they were chosen. Raises StoreError. A line that is not whole is left out: its writer
        died before anything of it was dispatched."""
        try:
            return read_rows(TrialRow, self.path).rows
        except OSError as error:
            raise StoreError(f"sweep {self._name}: {self.path}: cannot be read ({plain_reason(error)})") from None

    def append(self, rows: Iterable[TrialRow]) -> None:
        """On disk when it returns. Raises StoreError where it cannot be written, or was taken over meanwhile."""
        if self.driver_gone():
            raise StoreError(f"sweep {self._name}: another process drives this search now ({self._claims.path})")
        try:
            append_rows(self.path, map(as_json, rows))
        except OSError as error:
            raise StoreError(f"sweep {self._name}: {self.path}: cannot be written ({plain_reason(error)})") from None

    def driver(self) -> str | None:
        """Who drives the search now, in words; None where nobody does."""
        with suppress(OSError, DamagedFileError):
            claim = self._claims.read()
            if claim and not self._is_stale(claim):
                return f"process {claim.pid} on {claim.host}"
        return None

    def driver_gone(self) -> bool:
        """Whether this process held the journal and no longer does: it slept so long that another one took it."""
        if self._held is None:
            return False
        try:
            found = self._claims.read()
            return found != self._held if found else not self._claims.retake(self._held)
        except (OSError, DamagedFileError):
            return False

    def _is_stale(self, claim: ClaimHolder) -> bool:
        """Whether its holder is gone: on its own machine by its process, elsewhere by the newest heartbeat."""
        running = self._claims.is_running(claim)
        if running is not None:
            return not running
        sign = max(self._claims.modified(), modified(self._beat_file))
        return file_clock(self._folder) - sign > stale_seconds()

    def __enter__(self) -> Self:
        """Raises StoreError where another process drives the search, naming it."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if (found := self._claims.read()) and self._is_stale(found):
                self._claims.drop(found)
            self._held = self._claims.take()
        except OSError as error:
            raise StoreError(f"sweep {self._name}: {self._folder}: {plain_reason(error)}") from None
        if self._held is None:
            raise StoreError(
                f"sweep {self._name}: {self.driver() or 'another process'} drives this search; it goes on there, and "
                f"`mlkv status {self._name}` shows it"
            )
        self._ended.clear()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):  # one beat less is no reason to stop
                self._beat_file.touch()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join(timeout=BEAT_SECONDS)
        if self._held:
            self._claims.release(self._held)
            self._held = None
