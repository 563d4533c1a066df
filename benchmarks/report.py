"""How long figures, tables and the report of a large sweep take: 325 variants, nothing trained.

    python benchmarks/report.py [--before REVISION] [--rounds N]

Makes a finished sweep without training it, then times `mlkv figure`, `mlkv table` and `mlkv report` as whole commands,
each into an empty folder. With `--before`, those of an earlier revision run in turns with them on the same store. The
last line is one JSON object; seconds are medians.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.again import timed
from benchmarks.earlier import code_at, mlkv
from benchmarks.finished import finished_sweep
from benchmarks.turns import arguments, circumstances, report

LINE = [
    "layout.pattern=even,pizza",
    "layout.kv_layers=range(1,7)",
    "layout.kv_heads=1,2,3,6",
    "uptrain.lr=1e-4,2e-4,3e-4,5e-4,1e-3,2e-3,3e-3,5e-3,1e-2",
    "evaluate.tasks=[bits_per_byte,heldout_choice4,heldout_choice2,heldout_cloze]",
    "tracking=off",
    "name=bench",
]
WORDS = ("figure", "table", "report")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--before", metavar="REVISION", help="a git revision whose commands run in turns with ours")
    parser.add_argument("--rounds", type=int, default=3)
    options, where = parser.parse_args(), circumstances()
    numbers: dict[str, Any] = {}
    with TemporaryDirectory() as scratch, code_at(None) as now, code_at(options.before) as before:
        folder, codes = Path(scratch), {"now": now, **({"before": before} if options.before else {})}
        plan = finished_sweep(folder / "store", LINE)
        numbers |= {"variants": len(plan.variants), "steps": len(plan.steps)}
        for word in WORDS:

            def command(_: str, code: Path, word: str = word) -> None:
                with TemporaryDirectory() as out:
                    mlkv(code, folder, word, "bench", "-o", out)

            numbers |= timed(word, codes, command, options.rounds)
    report("report", where, numbers, options.save)


if __name__ == "__main__":
    main()
