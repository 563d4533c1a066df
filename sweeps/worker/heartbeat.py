"""Keeps a claim alive from a thread, also while its holder waits for the child, a large output or a slow disk."""

from __future__ import annotations

import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from sweeps.store.stepdir import Claim

BEAT_SECONDS = 1.0


class Heartbeat:
    """Beats from a thread of its own for as long as the `with` block lasts."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self.claim_is_lost = False
        """Whether another worker has taken the step over, as this one seemed dead to it."""

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):  # one beat less is no reason to stop
                self._claim.attempt.beat()
            if not self._claim.holds():
                self.claim_is_lost = True
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=BEAT_SECONDS)  # on a file server that hangs, it hangs too
