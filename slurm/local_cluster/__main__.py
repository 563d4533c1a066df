"""python -m slurm.local_cluster install | up | down | status"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from .cluster import LocalCluster

PACKAGES = Path(__file__).with_name("packages.txt")


def default_state() -> Path:
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return home / "mlkv" / "slurm"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slurm.local_cluster", description="A real SLURM on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install", help="install Debian's packages (needs root)")
    up = commands.add_parser("up", help='start it; use as: eval "$(python -m slurm.local_cluster up)"')
    up.add_argument("--accounting", action="store_true", help="with slurmdbd and MariaDB, for sacct")
    up.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a line of slurm.conf")
    down = commands.add_parser("down", help="cancel its jobs and stop it")
    status = commands.add_parser("status", help="which daemons run; exit status 0 if all do")
    for command in (up, down, status):
        command.add_argument("--state", type=Path, default=default_state(), help="its directory (%(default)s)")
    return parser


def install() -> int:
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    packages = PACKAGES.read_text().split()
    for argv in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *packages]):
        if code := subprocess.run(argv, env=env, check=False).returncode:
            return code
    return 0


def up(cluster: LocalCluster, arguments: argparse.Namespace) -> int:
    options = dict(pair.split("=", 1) for pair in arguments.set) if arguments.set else None
    began = time.monotonic()
    cluster.up(accounting=arguments.accounting, options=options)
    print(f"up in {time.monotonic() - began:.1f} s, state in {cluster.state}", file=sys.stderr)
    print("\n".join(f"export {key}={value}" for key, value in cluster.environment.items()))
    return 0


def status(cluster: LocalCluster) -> int:
    running = cluster.status()
    for name, alive in running.items():
        print(f"{name:10} {'up' if alive else 'down'}")
    return 0 if running and all(running.values()) else 1


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.command == "install":
        return install()
    cluster = LocalCluster(arguments.state)
    try:
        if arguments.command == "up":
            return up(cluster, arguments)
        if arguments.command == "status":
            return status(cluster)
        cluster.down()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
