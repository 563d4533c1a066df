"""The two examples in docs/advise.md. `python -m tests.support.advice` writes them anew, as their numbers follow from
evidence that grows."""

from __future__ import annotations

import re
import shlex
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from analysis.statistics.evidence import published_sets
from analysis.statistics.prediction import best_form, leave_out
from sweeps.cli import make_parser, parse
from sweeps.cli.advise import Advice, make_advice
from sweeps.cli.advise_text import show, show_tests
from sweeps.store.store import Store

PAGE = Path(__file__).resolve().parents[2] / "docs" / "advise.md"
LINE = "mlkv advise --model llama-3.1-8b --memory 80GB --context 32k --batch 64 --tp 2 --gpu H100"
TESTED = "mlkv advise --evaluate"


def advice_of(line: str, store: Path) -> Advice:
    _, options = parse(make_parser(), [*shlex.split(line)[1:], "--store", str(store)])
    return make_advice(options, Store(store))


def printed(advice: Advice, *, every: bool = False) -> str:
    console, out = _console()
    show(console, advice, every=every)
    return _text(out)


def example(page: str, line: str) -> str:
    """What a page shows below a line."""
    found = re.search(rf"```\n{re.escape(line)}\n```\n```\n(.*?)\n```", page, re.DOTALL)
    assert found, line
    return found[1]


def _console() -> tuple[Console, StringIO]:
    out = StringIO()
    return Console(file=out, width=10_000, soft_wrap=True, markup=False), out


def _text(out: StringIO) -> str:
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    with TemporaryDirectory() as folder:
        advised = printed(advice_of(LINE, Path(folder) / "none"))
    console, out = _console()
    sets = published_sets()
    show_tests(console, leave_out(sets), best_form([each for each in sets if not each.brief]))
    for line, text in ((LINE, advised), (TESTED, _text(out))):
        page = page.replace(example(page, line), text)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
