"""The subcommand check: whether a model computes the same with caches, padding, checkpointing and after saving."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.cli.console import make_console
from sweeps.cli.options import argument, user_path
from sweeps.store.errors import NOT_DONE, OK, UserError

if TYPE_CHECKING:
    from rich.table import Table

    from mlkv.check.results import Report, Result
    from mlkv.check.subject import Subject

DTYPES = ("float32", "float64", "bfloat16", "float16")


def _number_from(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not least <= int(text[:19]) < 2**63 or len(text) > 19:
            raise argparse.ArgumentTypeError(f"{text}: must be a whole number, {least} or more")
        return int(text)

    return number


@dataclass(frozen=True)
class CheckOptions:
    model: Path = argument("a directory with a model, or its config.json alone", metavar="MODEL", type=user_path)
    trust_remote_code: bool = argument(
        "run the code that the model brings along", "--trust-remote-code", action="store_true"
    )
    json: bool = argument("print one JSON object", "--json", action="store_true")
    random_weights: bool = argument(
        "random weights, also where the directory has some", "--random-weights", action="store_true"
    )
    dtype: str = argument(
        "the number format to compute in (default: float32)", "--dtype", choices=DTYPES, default="float32"
    )
    device: str = argument("default: cpu", "--device", choices=("cpu", "cuda"), default="cpu")
    seed: int = argument("of random weights and tokens (default: 0)", "--seed", type=_number_from(0), default=0)
    tokens: int | None = argument(
        "tokens of a row, 8 or more (default: 12, or more where a sliding window is short)",
        "--tokens",
        type=_number_from(8),
    )


def check(options: CheckOptions) -> int:
    """Prints a line for each check; 1 where one finds a fault."""
    from mlkv.check.table import report, run

    _silence()
    subject = _load(options)
    if options.json or sys.stdout.isatty():
        found = report(options.model, subject, tuple(run(subject)))
        print(json.dumps(found.as_dict(), indent=2)) if options.json else _print_table(found)
    else:
        print(_title(found := report(options.model, subject, ())))
        results = []
        for result in run(subject):  # each as soon as it is there
            results.append(result)
            print(_line(result), flush=True)
        found = report(options.model, subject, tuple(results))
        print(_summary(found))
    return NOT_DONE if found.faults else OK


def _load(options: CheckOptions) -> Subject:
    import torch

    from mlkv.check.subject import load_subject
    from mlkv.context import StepFailed
    from mlkv.device import require_device

    try:
        require_device(options.device)
        return load_subject(
            options.model,
            random_weights=options.random_weights,
            trust_remote_code=options.trust_remote_code,
            dtype=getattr(torch, options.dtype),
            device=options.device,
            seed=options.seed,
            tokens=options.tokens,
        )
    except (ValueError, StepFailed) as error:
        raise UserError(str(error)) from error


def _silence() -> None:
    """The libraries' warnings and bars: they are about what the checks do on purpose."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _title(report: Report) -> str:
    weights = "random weights" if report.weights == "random" else "its weights"
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items() if name != "mlkv")
    return (
        f"{report.model}: {report.model_type}, {weights}, {report.compared} compared, {report.dtype} on "
        f"{report.device}, 2 rows of {report.tokens} tokens, {versions}"
    )


def _summary(report: Report) -> str:
    counts = {state: sum(result.state == state for result in report.checks) for state in ("pass", "FAIL", "skipped")}
    return f"{counts['pass']} passed, {counts['FAIL']} failed, {counts['skipped']} skipped"


def _line(result: Result) -> str:
    numbers = f"{_number(result.difference):>8} {_number(result.bound):>8}"
    return f"{result.state:8}{result.subject:11}{result.name:14}{numbers}  {result.reason}".rstrip()


def _number(value: float | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:.1e}"


def _print_table(report: Report) -> None:
    console = make_console()
    console.print(_title(report))
    console.print(_table(report))
    console.print(_summary(report))


def _table(report: Report) -> Table:
    from rich.table import Table
    from rich.text import Text

    colours = {"pass": "green", "FAIL": "bold red", "skipped": "dim"}
    table = Table("", "subject", "check", box=None, header_style="dim", pad_edge=False)
    for number in ("difference", "bound"):
        table.add_column(number, justify="right")
    table.add_column("", overflow="fold")
    for result in report.checks:
        state = Text(result.state, style=colours[result.state])
        numbers = (_number(result.difference), _number(result.bound))
        table.add_row(state, result.subject, result.name, *numbers, Text(result.reason))
    return table
