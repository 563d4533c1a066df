"""The sweep's end of the process that makes its jobs' children by fork (sweeps/worker/fork_server.py): start it, end
it."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from sweeps.dispatch.grouping import JobSpec
from sweeps.steps.registry import kind_of
from sweeps.store.store import Store
from sweeps.store.variables import fork_server
from sweeps.worker.forked_process import ADDRESS, can_fork

GRACE_SECONDS = 5.0
"""How long the server may take to end once the jobs have: as long as it imports, it looks at nothing else."""
_WAITING = 128


class ServerProcess:
    """A fork server for jobs of this machine. It imports nothing before one of them asks for a process."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Raises OSError where it cannot be started."""
        address = f"mlkv-{secrets.token_hex(16)}"
        self.variables = {ADDRESS: address}
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(f"\0{address}")
            listening.listen(_WAITING)
            command = [sys.executable, "-m", "sweeps.worker.fork_server", str(listening.fileno()), "-", *modules]
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as out:
                self._process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    pass_fds=[listening.fileno()],
                    start_new_session=True,
                )

    @classmethod
    def of_jobs(
        cls, jobs: Sequence[JobSpec], store: Store, environment: Mapping[str, str], folder: Path
    ) -> Self | None:
        """None where fewer than two of the jobs could have their process from it, or the system cannot fork, or the
        user does not want it."""
        alone = [job for job in jobs if job.resources.gpus == 0 and job.resources.tasks == 1]
        kinds = [[kind_of(store.step(id).kind) for id in job.steps] for job in alone]
        served = [[kind for kind in job if not kind.fresh_process] for job in kinds]
        if not (fork_server() and can_fork()) or sum(map(bool, served)) < 2:
            return None
        modules = sorted({module for job in served for kind in job for module in kind.modules})
        with suppress(OSError):  # each job can import by itself
            return cls(modules, environment, folder / "fork_server.log")
        return None

    def close(self) -> None:
        """End it, after the jobs."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
