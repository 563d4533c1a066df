"""The sweep's end of the process that makes its jobs' children by fork (sweeps/worker/fork_server.py): start it, end
it."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from slurm.resources import Resources
from sweeps.dispatch.grouping import JobSpec
from sweeps.steps.registry import kind_of
from sweeps.store.store import Store
from sweeps.store.variables import fork_server
from sweeps.worker.environment import computing
from sweeps.worker.forked_process import ADDRESS, can_fork

_WAITING = 128


class ServerProcess:
    """A fork server for jobs of this machine, in the environment of the processes that it is to make."""

    def __init__(
        self, modules: Sequence[str], environment: Mapping[str, str], log: Path, early: Sequence[str] = ()
    ) -> None:
        """early: those of the modules that it imports at once; others before a job asks for a process that needs them.
        Raises OSError where it cannot be started."""
        address = f"mlkv-{secrets.token_hex(16)}"
        self.variables = {ADDRESS: address}
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(f"\0{address}")
            listening.listen(_WAITING)
            program = [sys.executable, "-m", "sweeps.worker.fork_server"]
            command = [*program, str(listening.fileno()), ",".join(early), *modules]
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
        cls,
        jobs: Sequence[JobSpec],
        store: Store,
        environment_of: Callable[[Resources], Mapping[str, str]],
        code: Path,
        folder: Path,
    ) -> Self | None:
        """For those of the jobs that have the environment which most have, as `environment_of` has it. None where none
        could have its process from it, or the system cannot fork, or the user does not want it. code: what jobs
        import."""
        if not (fork_server() and can_fork()):
            return None
        served = [
            (job, modules)
            for job in jobs
            if job.resources.gpus == 0 and job.resources.tasks == 1 and (modules := _modules(job, store))
        ]
        environments = [environment_of(job.resources) for job, _ in served]
        if not environments:
            return None
        environment = max(environments, key=environments.count)
        served = [each for each, own in zip(served, environments, strict=True) if own == environment]
        early = {module for job, modules in served if not job.after for module in modules}
        everything = {module for _, modules in served for module in modules}
        with suppress(OSError):  # each job can import by itself
            return cls(
                sorted(everything), computing(environment, code), folder / "fork_server.log", early=sorted(early)
            )
        return None

    def close(self) -> None:
        """End it, after the jobs. It has nothing to finish then: its children have ended, and what it may still import
        is for nobody."""
        self._process.kill()
        self._process.communicate()


def _modules(job: JobSpec, store: Store) -> set[str]:
    """What the steps of a job import that may run in a forked process."""
    kinds = [kind_of(store.step(id).kind) for id in job.steps]
    return {module for kind in kinds if not kind.fresh_process for module in kind.modules}
