"""How long the commands take that run again and again while one works on a sweep: its line once more, its state, help.

    python benchmarks/again.py [--before REVISION] [--rounds N] [--small]

Makes two finished sweeps without training them: the quickstart's, and one of 1,008 variants and about 5,000 steps
(`--small` leaves it out). Their lines are run once more as whole commands, which plan, compare with the store, look
for what W&B's files lack, find nothing to do and print the results; so are `mlkv status` and `mlkv --help`. With
`--before`, those of an earlier revision run in turns with them, each on a store of its own. The last line is one JSON
object; seconds are medians.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.earlier import code_at, mlkv
from benchmarks.finished import finished_sweep
from benchmarks.plan import LINE
from benchmarks.turns import arguments, circumstances, in_turns, ratio, report

QUICKSTART = ["experiment=quickstart"]
LARGE = [*LINE, "tracking=off"]
"""W&B's files of a sweep that was not trained would first have to be written, for minutes."""


def prepared(name: str, line: list[str], folder: Path, codes: dict[str, Path]) -> tuple[int, dict[str, Path]]:
    """How many steps a finished sweep has, and for each code a folder with a store of it. Its line has run once there,
    which draws the report."""
    plan = finished_sweep(folder / name / "store", line)
    folders = {}
    for rival, code in codes.items():
        folders[rival] = folder / f"{name} {rival}"
        shutil.copytree(folder / name, folders[rival])
        mlkv(code, folders[rival], "sweep", *line)
    return len(plan.steps), folders


def timed(what: str, codes: dict[str, Path], work: Callable[[str, Path], Any], rounds: int) -> dict[str, Any]:
    seconds = in_turns({rival: partial(work, rival, code) for rival, code in codes.items()}, rounds)
    found: dict[str, Any] = {f"{what}_seconds": statistics.median(seconds["now"])}
    if "before" in seconds:
        found[f"{what}_seconds_before"] = statistics.median(seconds["before"])
        found[f"{what}_ratio"] = ratio(seconds["now"], seconds["before"])
    print(found, flush=True)
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--before", metavar="REVISION", help="a git revision whose commands run in turns with ours")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="leave out the sweep of 5,000 steps")
    options, where = parser.parse_args(), circumstances()
    numbers: dict[str, Any] = {}
    with TemporaryDirectory() as scratch, code_at(None) as now, code_at(options.before) as before:
        folder, codes = Path(scratch), {"now": now, **({"before": before} if options.before else {})}
        numbers |= timed("help", codes, lambda _, code: mlkv(code, folder, "--help"), options.rounds)
        steps, quick = prepared("quickstart", QUICKSTART, folder, codes)
        numbers |= {"steps": steps}
        numbers |= timed(
            "again", codes, lambda rival, code: mlkv(code, quick[rival], "sweep", *QUICKSTART), options.rounds
        )
        numbers |= timed(
            "status", codes, lambda rival, code: mlkv(code, quick[rival], "status", "quickstart"), options.rounds
        )
        if not options.small:
            steps, large = prepared("large", LARGE, folder, codes)
            numbers |= {"steps_of_large": steps}
            numbers |= timed("again_large", codes, lambda rival, code: mlkv(code, large[rival], "sweep", *LARGE), 3)
    report("again", where, numbers, options.save)


if __name__ == "__main__":
    main()
