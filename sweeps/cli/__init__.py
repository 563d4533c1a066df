"""The `mlkv` command. Imports what a subcommand needs when it runs: `mlkv --help` loads neither Hydra nor torch."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import signal
import sys
from collections.abc import Collection, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, NoReturn

import mlkv.own_packages  # noqa: F401  first, as all that follows imports them
from mlkv.registry import ExtensionError, extensions
from sweeps.cli import (
    advise,
    audit,
    cancel,
    check,
    export,
    gather,
    housekeeping,
    init,
    results,
    run,
    search,
    sharing,
    show,
    status,
    wandb,
)
from sweeps.cli.options import Command, PlanOptions, SweepOptions, add_arguments, read_options
from sweeps.cli.selection import check_config_dir, extension_files
from sweeps.cli.streams import READER_GONE, Ended, Output, OutputLost, signals_as_exceptions, standard_streams
from sweeps.store.errors import NOT_DONE, UserError, choices
from sweeps.store.outside import describe_error
from sweeps.store.variables import stale_seconds

USER_ERROR, INTERRUPTED = 2, 130
"""Exit statuses. The subcommands have two more: 0, all is done; 1, something is not."""
GARBAGE_AT = 50_000, 20, 100
"""Python's thresholds of its garbage collector. With its own (700, 10, 10) a third of a report's time goes by looking
for garbage: plans, tables and figures are many objects, and nearly all of them stay."""


def _always(_options: object) -> bool:
    return True


COMMANDS: tuple[Command[Any], ...] = (
    Command("init", init.init, init.InitOptions, "write a config directory for your own model, text and tasks"),
    Command("sweep", run.sweep, search.DrivenOptions, "plan a sweep, run the missing steps, draw the results"),
    Command(
        "plan", run.plan, run.ShowOptions, "show the steps of a sweep and which are missing; change nothing", _always
    ),
    Command(
        "search",
        search.search,
        search.DrivenOptions,
        "choose what to try next by the results so far, run it, draw the results",
    ),
    Command(
        "advise",
        advise.advise,
        advise.AdviseOptions,
        "say which layouts of a model fit into memory, what they may cost, and what to run",
        _always,
    ),
    Command("fetch", run.fetch, PlanOptions, "download what a sweep's jobs need from the internet"),
    Command("run", run.run, run.RunOptions, "run one step in the foreground"),
    Command(
        "status",
        status.status,
        status.StatusOptions,
        "show the state of each step of a sweep",
        lambda options: not options.verify,
    ),
    Command(
        "audit", audit.audit, audit.AuditOptions, "run some finished steps again elsewhere and compare the results"
    ),
    Command("why", status.why, status.WhyOptions, "show what a variant waits for, or why it failed", _always),
    Command("show", show.show, show.ShowOptions, "show all that a variant is, and where its outputs are", _always),
    Command("diff", show.diff, show.DiffOptions, "show what differs between two sweeps or two variants", _always),
    Command("logs", status.logs, status.LogsOptions, "print the output of a step", _always),
    Command("retry", run.retry, SweepOptions, "run the failed steps of a sweep again, and the steps that need them"),
    Command(
        "cancel", cancel.cancel, cancel.CancelOptions, "stop a running sweep; its running steps save their state first"
    ),
    Command("ls", housekeeping.ls, housekeeping.ListOptions, "list the sweeps and imports of a store", _always),
    Command("du", housekeeping.du, housekeeping.ListOptions, "show how much room each sweep takes", _always),
    Command("note", housekeeping.note, housekeeping.NoteOptions, "write or print a note on a sweep; tables show it"),
    Command("mv", housekeeping.mv, housekeeping.MoveOptions, "give a sweep or an import another name"),
    Command("rm", housekeeping.rm, housekeeping.RemoveOptions, "delete sweeps or imports; outputs of steps stay"),
    Command(
        "prune",
        housekeeping.prune,
        housekeeping.PruneOptions,
        "delete outputs that no sweep needs; logs and records stay",
    ),
    Command(
        "gather",
        gather.gather,
        gather.GatherOptions,
        "print or save every planned cell of a sweep as one long table",
        lambda options: not options.out,
    ),
    Command(
        "table",
        results.table,
        results.TableOptions,
        "print or save the results as a paper's tables, also while the sweep runs",
        lambda options: not options.out,
    ),
    Command(
        "figure",
        results.figure,
        results.FigureOptions,
        "draw the results as a paper's figures, also while the sweep runs",
    ),
    Command("report", results.report, results.ReportOptions, "write tables, figures and the page of a sweep"),
    Command("export", export.export, export.ExportOptions, "write a checkpoint as a directory that engines load"),
    Command(
        "check",
        check.check,
        check.CheckOptions,
        "check that a Hugging Face model computes the same with caches, padding and checkpointing",
        _always,
    ),
    Command("pack", sharing.pack, sharing.PackOptions, "pack the results of a sweep into one file, to share them"),
    Command("unpack", sharing.unpack, sharing.UnpackOptions, "add packed results to a store, where they count as done"),
    Command("import-results", results.import_results, results.ImportOptions, "import results measured elsewhere"),
    Command("sync", wandb.sync, wandb.SyncOptions, "upload missing runs to W&B"),
    Command("dashboard", wandb.dashboard, wandb.DashboardOptions, "show a sweep in W&B's terminal dashboard"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    gc.set_threshold(*GARBAGE_AT)
    with standard_streams() as output, signals_as_exceptions():
        status_code = _exit_status(sys.argv[1:] if arguments is None else arguments, output)
    atexit.register(gc.freeze)  # else the process looks for garbage in all that it imported before it ends
    sys.exit(status_code)


def _exit_status(arguments: Sequence[str], output: Output) -> int:
    """Run a command line; what ends it early is printed in one line."""
    try:
        return _run(arguments, output)
    except (UserError, ExtensionError) as error:
        return _refuse(str(error), USER_ERROR)
    except OSError as error:
        return _refuse(" ".join(describe_error(error).split()), NOT_DONE)
    except Ended as error:
        name = signal.Signals(error.number).name
        return _refuse(f"ended by {name}; the same command continues from here", 128 + error.number)
    except KeyboardInterrupt:
        return _refuse("interrupted; the same command continues from here", INTERRUPTED)
    except OutputLost as lost:
        if isinstance(lost.cause, BrokenPipeError):
            return READER_GONE
        return _refuse(f"standard output: {describe_error(lost.cause)}", NOT_DONE)


def _refuse(reason: str, status_code: int) -> int:
    print(f"mlkv: {reason}", file=sys.stderr)
    return status_code


def _run(arguments: Sequence[str], output: Output) -> int:
    if "_ARGCOMPLETE" in os.environ:
        from sweeps.cli.completion import enable

        enable(make_parser())
    try:
        parser = make_parser(arguments[:1])
        command, options = parse(parser, arguments)
        stale_seconds()  # refuses a bad value before anything runs
        check_config_dir(options)
        output.is_all = command.only_prints(options)
        with extensions(partial(extension_files, options)):
            return command.run(options)
    finally:
        sys.stdout.flush()


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[Command[Any], Any]:
    """The subcommand that a command line names, with its options, which may stand anywhere among the other arguments.
    Raises UserError without a valid subcommand."""
    _check_command(arguments)
    if arguments[0].startswith("-"):
        parser.parse_args(arguments[:1])  # --help and --version exit
    command = next(command for command in COMMANDS if command.name == arguments[0])
    parsed, rest = _parser_of(command, parser).parse_known_intermixed_args(arguments[1:])
    if rest:
        raise _unknown(command, rest)
    return command, read_options(command.options, parsed)


def _parser_of(command: Command[Any], parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    [subparsers] = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    found: argparse.ArgumentParser = subparsers.choices[command.name]
    return found


def _unknown(command: Command[Any], words: Sequence[str]) -> UserError:
    flags = ["--help", *(flag for field in fields(command.options) for flag in field.metadata["flags"])]
    option = next((word for word in words if word.startswith("-")), None)
    if option is None:
        return UserError(f"{command.name}: {' '.join(words)}: too many arguments; `mlkv {command.name} --help`")
    name = option.partition("=")[0]
    return UserError(f"{command.name}: {name}: unknown option; {choices(name, flags)}")


_FLAGS = ("-h", "--help", "--version")


def _check_command(arguments: Sequence[str]) -> None:
    names = [command.name for command in COMMANDS]
    if not arguments:
        raise UserError(f"no command given; valid: {', '.join(names)}; `mlkv --help` describes them")
    if arguments[0].startswith("-") and not any(flag.startswith(arguments[0]) for flag in _FLAGS):
        raise UserError(f"{arguments[0]}: unknown option; {choices(arguments[0], _FLAGS)}; others follow a command")
    if not arguments[0].startswith("-") and arguments[0] not in names:
        raise UserError(f"{arguments[0]}: unknown command; {choices(arguments[0], names)}")


class _Parser(argparse.ArgumentParser):
    """Refuses in one line, as everything here does; argparse would print its usage too."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.partition(' ')[2] or 'command'}: {message}; `{self.prog} --help`")


def make_parser(commands: Collection[str] | None = None) -> argparse.ArgumentParser:
    """The parser of the command line, with the arguments of these subcommands alone; to add those of all takes as long
    as to import them."""
    parser = _Parser(
        prog="mlkv",
        description="How few key-value heads can a transformer live with, and where should they sit?",
        epilog="Overrides are Hydra's: experiment=quickstart layout.kv_layers=1,2,3 uptrain.lr=1e-3 name=mine",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.name, help=command.help, description=command.help)
        if commands is None or command.name in commands:
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
