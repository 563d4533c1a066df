"""The project's benchmarks together: what they are to show, what they have shown, and a run of those that fit here.

python -m benchmarks                  every claim with its bar and its newest result
python -m benchmarks --run [NAME …]   run the benchmarks that fit this machine, or these, and keep their results
python -m benchmarks --table          write the results into docs/performance.md
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.claims import CLAIMS, Claim
from benchmarks.turns import RESULTS, ROOT

PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
HEADER = ("what", "beside", "bar", "measured", "met", "where and when")


@dataclass(frozen=True)
class Result:
    """What a benchmark printed last."""

    numbers: dict[str, Any]

    def value(self, key: str) -> float | None:
        """The number at a claim's key; None where the result has none."""
        found: Any = self.numbers
        for name in key.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return float(found) if isinstance(found, int | float) else None

    @property
    def where(self) -> str:
        machine = self.numbers["machine"]
        load = f", load {machine['load'][0]:g}" if machine["load"][0] >= 1 else ""
        return (
            f"{machine['gpu'] or f'''{machine['processor']}, {machine['cores']} cores'''}{load}; {self.numbers['date']}"
        )


def newest(claim: Claim) -> Result | None:
    """The last result of a claim's benchmark that was kept."""
    for path in sorted(RESULTS.glob(f"????-??-??-{claim.result}.json"), reverse=True):
        numbers = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(numbers["machine"], dict):
            return Result(numbers)
    return None


def row(claim: Claim) -> tuple[str, ...]:
    result = newest(claim)
    value = result.value(claim.key) if result else None
    if result is None or value is None:
        return claim.what, claim.beside, claim.bar, "not run", "", ""
    shown = f"{value:.3g} {claim.unit}".rstrip()
    return claim.what, claim.beside, claim.bar, shown, "yes" if claim.met(value) else "no", result.where


def markdown(claims: Iterable[Claim]) -> str:
    lines = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row(claim))} |" for claim in claims)])


def page() -> str:
    """docs/performance.md with the newest results."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{markdown(CLAIMS)}\n{END}{rest.partition(END)[2]}"


def show() -> None:
    table = Table(*HEADER[:-1])
    for claim in CLAIMS:
        table.add_row(*row(claim)[:-1])
    Console().print(table)


def fitting() -> list[Claim]:
    """The claims that this machine can show."""
    can = {"cpu": True, "gpu": shutil.which("nvidia-smi") is not None}
    can["slurm"] = shutil.which("slurmctld") is not None and os.geteuid() == 0
    return [claim for claim in CLAIMS if can[claim.needs]]


def run(claims: Iterable[Claim]) -> int:
    """Run the benchmarks of claims, one after another; the number of those that failed."""
    commands = dict.fromkeys((claim.benchmark, *claim.options) for claim in claims)
    failed = 0
    for name, *options in commands:
        command = [sys.executable, f"benchmarks/{name}.py", *options, "--save"]
        print(shlex.join(command[1:]), flush=True)
        failed += subprocess.run(command, cwd=ROOT, check=False).returncode != 0
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted({claim.benchmark for claim in CLAIMS})
    parser.add_argument("--run", nargs="*", metavar="NAME", choices=names, help=f"all that fit, or: {', '.join(names)}")
    parser.add_argument("--gpu", action="store_true", help="of these, only what needs a GPU")
    parser.add_argument("--table", action="store_true", help="write docs/performance.md")
    given = parser.parse_args()
    failed = 0
    if given.run is not None:
        claims = [claim for claim in fitting() if not given.run or claim.benchmark in given.run]
        failed = run(claim for claim in claims if claim.needs == "gpu" or not given.gpu)
    if given.table:
        PAGE.write_text(page(), encoding="utf-8")
    if given.run is None and not given.table:
        show()
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
