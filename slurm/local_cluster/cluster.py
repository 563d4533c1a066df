"""Starts and stops the local cluster. All its files are in one state directory; several clusters can run at once."""

from __future__ import annotations

import fcntl
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from .config import GPUS, NODES, Site, files, user_name
from .daemons import Daemon, end, listeners

PROGRAMS = ("munged", "slurmctld", "slurmd", "scontrol", "sinfo", "squeue", "scancel")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")
DATABASE = ("mariadbd", "slurmdbd")
DAEMONS = ("munged", *DATABASE, "slurmctld", *NODES)
MAX_SOCKET_PATH = 107
"""Bytes in the path of a Unix socket."""


class LocalCluster:
    """A SLURM with four simulated nodes on this machine, run by the user who starts it, from one directory."""

    def __init__(self, state: Path) -> None:
        self.state = state.absolute()

    @property
    def slurm_conf(self) -> Path:
        return self.state / "etc" / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that a client of this cluster needs."""
        return {"SLURM_CONF": str(self.slurm_conf)}

    def daemon(self, name: str) -> Daemon:
        """One of munged, mariadbd, slurmdbd, slurmctld, n1 … n4."""
        return Daemon(self.state, name)

    def names(self) -> list[str]:
        """The daemons of this cluster, in the order they start."""
        database = DATABASE if self.site().accounting_port else ()
        return ["munged", *database, "slurmctld", *NODES]

    def site(self) -> Site:
        stored = json.loads((self.state / "site.json").read_text())
        try:
            return Site(**stored | {"state": Path(stored["state"]), "node_ports": tuple(stored["node_ports"])})
        except (KeyError, TypeError):
            raise RuntimeError(f"{self.state} was made by another version of this program: take it down") from None

    def exists(self) -> bool:
        return (self.state / "site.json").exists()

    def up(self, *, accounting: bool = False, options: Mapping[str, str] | None = None) -> None:
        """Start the daemons that are not running and wait until every node is ready.

        Raises RuntimeError: a program is missing, a daemon does not come up, or the cluster runs with other settings.
        """
        _require(PROGRAMS + (ACCOUNTING_PROGRAMS if accounting else ()))
        self.state.mkdir(parents=True, exist_ok=True)
        self.state.chmod(0o755)
        with self._lock():
            if not self._running():
                self._write_site(accounting, dict(options or {}))
            site = self.site()
            if bool(site.accounting_port) != accounting or (
                options is not None and dict(site.options) != dict(options)
            ):
                raise RuntimeError(f"the cluster in {self.state} is up with other settings: take it down first")
            self._start_all(site)

    def down(self) -> None:
        """Cancel all jobs, then stop the daemons that `up` started, and no others. Files stay until the next `up`."""
        if not self.exists():
            return
        with self._lock():
            if self._running():
                self._end_jobs()
            for name in reversed(DAEMONS):
                self.daemon(name).stop()
            # A job step (slurmstepd) that cannot report its end, as its node or its job was lost, tries for ever.
            for step in listeners(self.state / "spool"):
                end(step, grace_seconds=0.0)

    def status(self) -> dict[str, bool]:
        """Daemon → whether it is running."""
        return {name: self.daemon(name).alive() for name in self.names()} if self.exists() else {}

    def run(self, *argv: str, check: bool = True) -> str:
        """A SLURM command against this cluster; its stdout."""
        env = os.environ | self.environment
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _running(self) -> bool:
        return any(self.daemon(name).alive() for name in DAEMONS)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.state / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _write_site(self, accounting: bool, options: dict[str, str]) -> None:
        ports = free_ports(3 + len(NODES))
        site = Site(
            state=self.state,
            host=socket.gethostname().split(".")[0],
            user=user_name(os.geteuid()),
            controller_port=ports[0],
            node_ports=tuple(ports[3:]),
            first_job_id=int(time.time()) % 50_000_000 + 1,
            accounting_port=ports[1] if accounting else None,
            database_port=ports[2] if accounting else None,
            database_password=secrets.token_hex(16) if accounting else "",
            options=options,
        )
        if len(os.fsencode(site.munge_socket)) > MAX_SOCKET_PATH:
            raise RuntimeError(f"state = {self.state}: too long for a Unix socket, choose a shorter path")
        for name in ("controller", "spool", "etc", "database"):
            shutil.rmtree(self.state / name, ignore_errors=True)
        for name in ("controller", "etc", "gpu", *(f"spool/{node}" for node in NODES)):
            (self.state / name).mkdir(parents=True, exist_ok=True)
        for number in range(GPUS):  # slurmd needs a device file, and reads the GPU's number from its name
            link = self.state / "gpu" / f"fake{number}"
            link.unlink(missing_ok=True)
            link.symlink_to(os.devnull)
        for name, text in files(site).items():
            _write_private(
                site.slurm_conf.parent / name, text, 0o600 if name.startswith(("slurmdbd", "data")) else 0o644
            )
        _write_private(self.state / "munge.key", secrets.token_hex(64), 0o600)
        stored = asdict(site) | {"state": str(site.state)}
        _write_private(self.state / "site.json", json.dumps(stored), 0o600)

    def _start_all(self, site: Site) -> None:
        env = os.environ | self.environment
        self._start_munge(site)
        if site.accounting_port:
            self._start_accounting(site, env)
        self.daemon("slurmctld").start(["slurmctld", "-D", "-f", str(site.slurm_conf)], env)
        for node in NODES:
            self.daemon(node).start(["slurmd", "-D", "-N", node, "-f", str(site.slurm_conf)], env)
        self._wait("slurmctld", lambda: "is UP" in self.run("scontrol", "ping", check=False))
        self._wait("slurmctld", self._nodes_ready)

    def _start_munge(self, site: Site) -> None:
        folder = self.state / "munge"
        folder.mkdir(mode=0o700, exist_ok=True)
        argv = ["munged", "--foreground", f"--socket={site.munge_socket}", f"--key-file={self.state}/munge.key"]
        argv += [
            f"--pid-file={folder}/pid",
            f"--log-file={folder}/log",
            f"--seed-file={folder}/seed",
            "--num-threads=4",
        ]
        # --force: munged only warns, instead of ending, where a parent directory is writable by others, as /tmp is.
        self.daemon("munged").start([*argv, "--force"])
        self._wait("munged", site.munge_socket.exists)

    def _start_accounting(self, site: Site, env: Mapping[str, str]) -> None:
        data = self.state / "database"
        if not data.exists():
            install = [
                "mariadb-install-db",
                "--no-defaults",
                f"--datadir={data}",
                f"--user={site.user}",
                "--skip-test-db",
            ]
            self.run(*install)
        argv = ["mariadbd", "--no-defaults", f"--datadir={data}", f"--user={site.user}", f"--port={site.database_port}"]
        argv += ["--bind-address=127.0.0.1", f"--socket={data}/sock", f"--pid-file={data}/pid", "--skip-name-resolve"]
        argv += ["--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M"]
        self.daemon("mariadbd").start([*argv, f"--init-file={site.slurm_conf.parent}/database.sql"])
        self._wait("mariadbd", lambda: _answers(site.database_port))
        self.daemon("slurmdbd").start(["slurmdbd", "-D"], env)
        self._wait("slurmdbd", lambda: _answers(site.accounting_port))
        self._register(site)

    def _register(self, site: Site) -> None:
        """Register the cluster, one account, and the owner as its user: with enforced limits (AccountingStorageEnforce)
        SLURM refuses every job of users that it does not know."""
        if "mlkv" not in self.run("sacctmgr", "-nP", "show", "cluster", "format=cluster"):
            self.run("sacctmgr", "-i", "add", "cluster", "mlkv")
        if "research" not in self.run("sacctmgr", "-nP", "show", "account", "format=account"):
            self.run("sacctmgr", "-i", "add", "account", "research", "cluster=mlkv")
            self.run("sacctmgr", "-i", "add", "user", site.user, "account=research", "DefaultAccount=research")

    def _nodes_ready(self) -> bool:
        states = [line.split("|") for line in self.run("sinfo", "-hN", "-p", "preemptible", "-o", "%N|%T").splitlines()]
        if down := [node for node, state in states if state.rstrip("*") in ("down", "drained")]:
            self.run("scontrol", "update", f"nodename={','.join(down)}", "state=resume", check=False)
        return len(states) == len(NODES) and all(state in ("idle", "mixed", "allocated") for _, state in states)

    def _end_jobs(self) -> None:
        """Cancel all jobs and wait for their end. A running job step outlives its slurmd, and only a slurmd can end it,
        so daemons that have died are started once more."""
        with suppress(RuntimeError):  # where that fails, the cluster is stopped all the same
            self._start_all(self.site())
            self.run("scancel", "--user", self.site().user)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and (self.run("squeue", "-h").strip() or listeners(self.state / "spool")):
                time.sleep(0.1)

    def _wait(self, name: str, ready: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.daemon(name).alive() or time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not come up: see {self.daemon(name).log_file}")
            time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Ports without a listener, below the range from which the kernel takes ports for outgoing connections."""
    candidates = random.SystemRandom().sample(range(20_000, 32_000), 50 * count)
    return [port for port in candidates if not _answers(port) and _can_bind(port)][:count]


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _answers(port: int | None) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port or 0)) == 0


def _write_private(path: Path, text: str, mode: int) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as handle:
        handle.write(text)


def _require(programs: tuple[str, ...]) -> None:
    # Debian installs daemons in directories that are not in an ordinary user's PATH.
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    if missing := [program for program in programs if shutil.which(program) is None]:
        raise RuntimeError(f"not installed: {', '.join(missing)} ({sys.executable} -m slurm.local_cluster install)")
