"""The `mlkv` command. Imports what a subcommand needs when it runs: `mlkv --help` loads neither Hydra nor torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from analysis.figures.kinds import FIGURES
from analysis.tables.kinds import TABLES
from sweeps.cli import gather, results, run, status, wandb
from sweeps.store.errors import NOT_DONE, UserError
from sweeps.store.outside import describe_error

USER_ERROR, INTERRUPTED = 2, 130
"""Exit statuses beside those of the subcommands: 0, all is well; 1, something is not done."""
GATHER_SETTINGS = (
    "source=store (default), offline or api; for runs that somebody else logged map.COLUMN=config.KEY, "
    "map.TASK.METRIC=summary.KEY, and group=… or sweep=… to pick among them"
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        from sweeps.cli.completion import enable

        enable(parser)
    options = _parse(parser, arguments)
    try:
        sys.exit(options.run(options))
    except UserError as error:
        print(f"mlkv: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except OSError as error:
        print(f"mlkv: {' '.join(describe_error(error).split())}", file=sys.stderr)
        sys.exit(NOT_DONE)
    except KeyboardInterrupt:
        print("mlkv: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Like parse_args, but options may stand between overrides, or between settings."""
    options, rest = parser.parse_known_args(arguments)
    words = next((getattr(options, name) for name in ("overrides", "settings") if hasattr(options, name)), None)
    if rest and (words is None or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if words is not None:
        words += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlkv",
        description="How few key-value heads can a transformer live with, and where should they sit?",
        epilog="Overrides are Hydra's: experiment=quickstart layout.kv_layers=1,2,3 uptrain.lr=1e-3 name=mine",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="", required=True)
    _with_overrides(commands, "sweep", run.sweep, "plan a sweep, run what is missing, draw its results")
    _with_overrides(commands, "plan", run.plan, "show what a sweep consists of and what is missing; touch nothing")
    _with_overrides(commands, "fetch", run.fetch, "download what a sweep's jobs would need the internet for")
    one = _command(commands, "run", run.run, "run one step in the foreground")
    one.add_argument("target", help="a kind (the plan's only missing step of it) or a step id", metavar="KIND|STEP")
    _add_overrides(one)
    state = _of_sweep(commands, "status", status.status, "where the steps of a sweep stand", optional=True)
    state.add_argument("--verify", action="store_true", help="read every output and set aside what is corrupt")
    state.add_argument("-w", "--watch", action="store_true", help="look again until nothing runs or waits")
    of_variant = _of_sweep(commands, "why", status.why, "what a variant waits for, or why it failed")
    of_variant.add_argument("variant", help="a variant's label, a step id or the beginning of one")
    log = _with_store(commands, "logs", status.logs, "what a step printed")
    log.add_argument("step", help="a step id or the beginning of one")
    log.add_argument("-f", "--follow", action="store_true", help="go on until the step ends")
    _of_sweep(commands, "retry", run.retry, "run the failed steps of a sweep and what descends from them")
    ended = _of_sweep(commands, "cancel", run.cancel, "stop a running sweep; what runs saves its state first")
    ended.add_argument("variants", nargs="*", help="on SLURM, only these: labels (globs), step ids or their beginnings")
    pruned = _with_store(commands, "prune", run.prune, "drop outputs that no sweep needs; logs and records stay")
    pruned.add_argument("--yes", action="store_true", help="do it; without, only show what would go")
    cells = _of_sweep(commands, "gather", gather.gather, "every planned cell of a sweep as one long table")
    cells.add_argument("settings", nargs="*", help=GATHER_SETTINGS, metavar="KEY=VALUE")
    cells.add_argument("-o", "--out", type=Path, help="write CSV here instead of printing a summary")
    cells.add_argument("--curves", type=Path, help="also write every number that was logged on the way, as CSV")
    cells.add_argument("--dir", type=Path, help="source=offline: a directory that W&B wrote (default: the sweep's)")
    cells.add_argument("--project", help="source=api: PROJECT or ENTITY/PROJECT (default: the sweep's, or mlkv)")
    cells.add_argument("--cache", type=Path, help="source=api: where histories are kept (default: XDG_CACHE_HOME)")
    _table_options(_of_results(commands, "table", results.table, "the tables of a paper, finished or not"))
    drawn = _of_results(commands, "figure", results.figure, "the figures of a paper, finished or not")
    which = f"{', '.join(FIGURES)} (default: all that there is something to draw for)"
    drawn.add_argument("kinds", nargs="*", help=which, metavar="KIND")
    _add_published(drawn)
    drawn.add_argument("-o", "--out", type=Path, help="directory (default: reports/NAME/figures)")
    written = _of_results(
        commands, "report", results.report, "tables, figures and the page of a sweep, finished or not"
    )
    written.add_argument("-o", "--out", type=Path, help="directory (default: reports/NAME)")
    others = _with_store(commands, "import-results", results.import_results, "take in what others measured")
    others.add_argument("directory", type=Path, help="with lm-eval's JSON results, CSV measurements", metavar="DIR")
    others.add_argument("--name", help="what the tables and figures call it (default: the directory's name)")
    others.add_argument("--accuracy", nargs="+", help="what its accuracy averages", metavar="TASK.METRIC")
    mirrored = _with_store(commands, "sync", wandb.sync, "send to W&B what it does not have")
    mirrored.add_argument("what", help="a sweep's name, or a directory that W&B wrote", metavar="NAME|DIR")
    mirrored.add_argument("--project", help="default: the sweep's tracking.project")
    mirrored.add_argument("--entity", help="default: the sweep's tracking.entity")
    board = _of_sweep(commands, "dashboard", wandb.dashboard, "a sweep in W&B's dashboard in this terminal")
    board.add_argument("--online", action="store_true", help="make, or renew, the sweep's saved view in W&B instead")
    return parser


class _Version(argparse.Action):
    """argparse's own takes the text when the parser is made, and reading it takes a tenth of what `--help` may take."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"mlkv {version('mlkv')}")
        parser.exit()


Command = Callable[[argparse.Namespace], int]


def _command(commands: Any, name: str, function: Command, help: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(run=function)
    return parser


def _with_overrides(commands: Any, name: str, function: Command, help: str) -> argparse.ArgumentParser:
    parser = _command(commands, name, function, help)
    _add_overrides(parser)
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", help="Hydra overrides", metavar="KEY=VALUE")
    parser.add_argument("--config-dir", type=Path, help="a directory of your own configurations, shaped like conf/")
    _add_store(parser)


def _add_store(parser: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get("MLKV_STORE", "store"))
    parser.add_argument("--store", type=Path, default=default, help="default: MLKV_STORE or ./store")


def _with_store(commands: Any, name: str, function: Command, help: str) -> argparse.ArgumentParser:
    parser = _command(commands, name, function, help)
    _add_store(parser)
    return parser


def _of_sweep(
    commands: Any, name: str, function: Command, help: str, optional: bool = False
) -> argparse.ArgumentParser:
    parser = _with_store(commands, name, function, help)
    parser.add_argument("name", nargs="?" if optional else None, help="the sweep's name", metavar="NAME")
    return parser


def _of_results(commands: Any, name: str, function: Command, help: str) -> argparse.ArgumentParser:
    parser = _with_store(commands, name, function, help)
    parser.add_argument("name", help="a sweep, an import, or a published set (published/mlkv)", metavar="NAME")
    return parser


def _table_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kinds", nargs="*", help=f"{', '.join(TABLES)} (default: all)", metavar="KIND")
    parser.add_argument("--format", help="terminal (default), md, tex or csv")
    parser.add_argument("-o", "--out", type=Path, help="a file (.md, .tex, .csv), or a directory for a file per kind")
    _add_published(parser)


def _add_published(parser: argparse.ArgumentParser) -> None:
    told = "beside published figures: a set of published/, or the one that the experiment reproduces"
    parser.add_argument("--published", nargs="?", const="", help=told, metavar="SET")


if __name__ == "__main__":
    main()
