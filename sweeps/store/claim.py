"""The right to run a step: `claim.json` in its directory. Part of the store; see sweeps.store.store.

The file is created exclusively and names its holder. NFS knows no lock that survives its holder, so a claim is taken
over once its process is gone, and its holder, which may only have slept, looks whether it still is the one.
"""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from pathlib import Path

from mlkv.files import Json, discard
from sweeps.store.errors import DamagedFileError
from sweeps.store.files import modified, read_json, read_object, write_once
from sweeps.store.host import is_running, is_this_process, this_process

_held: set[str] = set()
"""Tokens of the claims that this process holds."""


class ClaimFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Json | None:
        return read_object(self.path, "host", "pid", "started")

    def modified(self) -> float:
        """When it was written, by the file server's clock; 0 where there is none."""
        return modified(self.path)

    def is_running(self, claim: Json) -> bool | None:
        """Whether its holder lives; None where only the heartbeat tells. One of this very process that is not held any
        more could not be removed when it was released."""
        return claim["token"] in _held if is_this_process(claim) else is_running(claim)

    def take(self) -> Json | None:
        """A claim of this process, or None where there is one."""
        mine = this_process() | {"token": secrets.token_hex(8)}
        if not write_once(self.path, json.dumps(mine)):
            return None
        _held.add(mine["token"])
        return mine

    def retake(self, claim: Json) -> bool:
        """Put a claim that this process holds in its place again, where nobody else's is."""
        return claim["token"] in _held and (write_once(self.path, json.dumps(claim)) or self.read() == claim)

    def release(self, claim: Json) -> None:
        """Give it up, whether or not its file can be removed."""
        _held.discard(claim["token"])
        with suppress(OSError, DamagedFileError):
            self.drop(claim)

    def drop(self, claim: Json) -> None:
        """Remove this claim, and no other: a rename takes the file out of everybody's reach at once, and if it then
        turns out to be a claim that came in between, it goes back."""
        if self.read() != claim:
            return
        aside = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}")
        with suppress(FileNotFoundError):  # another one was faster
            self.path.rename(aside)
            if (caught := read_json(aside)) != claim:
                write_once(self.path, json.dumps(caught))
            discard(aside)
