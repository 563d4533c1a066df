"""The right to run a step: `claim.json` in its directory. Part of the store; see sweeps.store.store.

The file is created exclusively, as a hard link to a file with the holder's name in it: a link is atomic on NFS too,
where O_EXCL was not before version 3 (open(2)). It is no lock of the system, as those end with their process on a local
disk, but on NFS stay for as long as the server waits for a client that died, and are void after a restart of it. So a
claim is taken over once its process is gone, and its holder, which may only have slept, checks that it still holds it.
"""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from pathlib import Path

from mlkv.files import discard
from sweeps.store import typed_json
from sweeps.store.errors import DamagedFileError
from sweeps.store.files import modified, write_once
from sweeps.store.host import is_running, is_this_process, this_process
from sweeps.store.schema import ClaimHolder
from sweeps.store.typed_json import as_json

_held: set[str | None] = set()
"""Tokens of the claims that this process holds."""


class ClaimFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> ClaimHolder | None:
        return typed_json.load(ClaimHolder, self.path)

    def modified(self) -> float:
        """When it was written, by the file server's clock; 0 where there is none."""
        return modified(self.path)

    def is_running(self, claim: ClaimHolder) -> bool | None:
        """Whether its holder is alive; None where only the heartbeat can show it. A claim of this process that it has
        already released is not running: only its file could not be removed."""
        return claim.token in _held if is_this_process(claim) else is_running(claim)

    def take(self) -> ClaimHolder | None:
        """A claim of this process, or None where there is one."""
        mine = ClaimHolder(**vars(this_process()), token=secrets.token_hex(8))
        _held.add(mine.token)  # first: another thread may read the file as soon as it is there
        taken = False
        try:
            taken = write_once(self.path, _text(mine))
        finally:
            if not taken:
                _held.discard(mine.token)
        return mine if taken else None

    def retake(self, claim: ClaimHolder) -> bool:
        """Put a claim that this process holds in its place again, where nobody else's is."""
        return claim.token in _held and (write_once(self.path, _text(claim)) or self.read() == claim)

    def release(self, claim: ClaimHolder) -> None:
        """Give it up, whether or not its file can be removed."""
        _held.discard(claim.token)
        with suppress(OSError, DamagedFileError):
            self.drop(claim)

    def drop(self, claim: ClaimHolder) -> None:
        """Remove this claim, and no other.

        Between reading a file and removing it by name another process may have put its own claim there, which would be
        removed in its place: two would then run the step. A rename takes the file out of everybody's reach at once, of
        two that rename only one succeeds, and what was taken can be looked at in peace: a claim that came in between
        goes back.
        """
        if self.read() != claim:
            return
        aside = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}")
        with suppress(FileNotFoundError):  # another one was faster
            self.path.rename(aside)
            if typed_json.load(ClaimHolder, aside) != claim:
                write_once(self.path, aside.read_text(encoding="utf-8"))
            discard(aside)


def _text(claim: ClaimHolder) -> str:
    return json.dumps(as_json(claim))
