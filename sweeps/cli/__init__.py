"""The `mlkv` command. Imports what a subcommand needs when it runs: `mlkv --help` loads neither Hydra nor torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from mlkv.registry import ExtensionError, extensions
from sweeps.cli import gather, results, run, status, wandb
from sweeps.cli.options import Command, PlanOptions, SweepOptions, add_arguments, read_options
from sweeps.cli.selection import extension_files
from sweeps.store.errors import NOT_DONE, UserError
from sweeps.store.outside import describe_error

USER_ERROR, INTERRUPTED = 2, 130
"""Exit statuses. The subcommands have two more: 0, all is done; 1, something is not."""
COMMANDS: tuple[Command[Any], ...] = (
    Command("sweep", run.sweep, PlanOptions, "plan a sweep, run what is missing, draw its results"),
    Command("plan", run.plan, PlanOptions, "show what a sweep consists of and what is missing; touch nothing"),
    Command("fetch", run.fetch, PlanOptions, "download what a sweep's jobs would need the internet for"),
    Command("run", run.run, run.RunOptions, "run one step in the foreground"),
    Command("status", status.status, status.StatusOptions, "where the steps of a sweep stand"),
    Command("why", status.why, status.WhyOptions, "what a variant waits for, or why it failed"),
    Command("logs", status.logs, status.LogsOptions, "what a step printed"),
    Command("retry", run.retry, SweepOptions, "run the failed steps of a sweep and what descends from them"),
    Command("cancel", run.cancel, run.CancelOptions, "stop a running sweep; what runs saves its state first"),
    Command("prune", run.prune, run.PruneOptions, "drop outputs that no sweep needs; logs and records stay"),
    Command("gather", gather.gather, gather.GatherOptions, "every planned cell of a sweep as one long table"),
    Command("table", results.table, results.TableOptions, "the tables of a paper, finished or not"),
    Command("figure", results.figure, results.FigureOptions, "the figures of a paper, finished or not"),
    Command(
        "report", results.report, results.ReportOptions, "tables, figures and the page of a sweep, finished or not"
    ),
    Command("import-results", results.import_results, results.ImportOptions, "import results measured elsewhere"),
    Command("sync", wandb.sync, wandb.SyncOptions, "upload missing runs to W&B"),
    Command("dashboard", wandb.dashboard, wandb.DashboardOptions, "a sweep in W&B's dashboard in this terminal"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:
        from sweeps.cli.completion import enable

        enable(parser)
    run_command = parse(parser, arguments)
    try:
        with extensions(partial(extension_files, *run_command.args)):
            status_code = run_command()
        sys.exit(status_code)
    except (UserError, ExtensionError) as error:
        print(f"mlkv: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except OSError as error:
        print(f"mlkv: {' '.join(describe_error(error).split())}", file=sys.stderr)
        sys.exit(NOT_DONE)
    except KeyboardInterrupt:
        print("mlkv: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> partial[int]:
    """The subcommand that a command line names, with its options. Options may stand between overrides, or between
    settings, which argparse's own parse_args refuses."""
    parsed, rest = parser.parse_known_args(arguments)
    words = next((getattr(parsed, name) for name in ("overrides", "settings") if hasattr(parsed, name)), None)
    if rest and (words is None or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if words is not None:
        words += rest
    command: Command[Any] = parsed.command
    return partial(command.run, read_options(command.options, parsed))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlkv",
        description="How few key-value heads can a transformer live with, and where should they sit?",
        epilog="Overrides are Hydra's: experiment=quickstart layout.kv_layers=1,2,3 uptrain.lr=1e-3 name=mine",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.name, help=command.help, description=command.help)
        subparser.set_defaults(command=command)
        add_arguments(subparser, command.options)
    return parser


class _Version(argparse.Action):
    """argparse's own takes the text when the parser is made, and reading it takes a tenth of what `--help` may take."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"mlkv {version('mlkv')}")
        parser.exit()


if __name__ == "__main__":
    main()
