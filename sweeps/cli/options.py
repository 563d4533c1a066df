"""The options of a subcommand as a frozen dataclass: a field for each argument, in the order in which argparse reads
positional ones and `--help` lists them."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sweeps.store.variables import variable

T = TypeVar("T")


def argument(help: str | Callable[[], str], *flags: str, **settings: Any) -> Any:
    """A field that the command line fills: an option with flags, a positional argument without. `settings` go to
    `add_argument`; a help text or a default that is a function is called when the parser is made."""
    return dataclasses.field(metadata={"flags": flags, "settings": {"help": help, **settings}})


class Once(argparse.Action):
    """An option that may be given once: of two, argparse would take the last without a word."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        given = vars(namespace).setdefault(_GIVEN, set())
        if self.dest in given:
            raise argparse.ArgumentError(self, "is given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


_GIVEN = "options that were given"


def add_arguments(parser: argparse.ArgumentParser, options: type[Any]) -> None:
    for field in dataclasses.fields(options):
        flags, settings = field.metadata["flags"], dict(field.metadata["settings"])
        settings |= {key: settings[key]() for key in ("help", "default") if callable(settings.get(key))}
        if flags:
            parser.add_argument(*flags, dest=field.name, **{"action": Once, **settings})
        else:
            if settings.get("nargs") == "*":
                settings["default"] = []  # without one, argparse says that they are required
            parser.add_argument(field.name, **settings)


def read_options(options: type[T], parsed: argparse.Namespace) -> T:
    """What the command line says, as the subcommand's own type; lists are tuples."""
    values = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    return options(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


@dataclass(frozen=True)
class Command(Generic[T]):
    """A subcommand: its name, its function, the type of its options, and the line that `--help` has for it. The
    function returns the exit status. `only_prints`: whether, with these options, it does nothing that is worth going on
    with where nobody reads what it prints."""

    name: str
    run: Callable[[T], int]
    options: type[T]
    help: str
    only_prints: Callable[[T], bool] = lambda _options: False


def user_path(path: str) -> Path:
    """A shell leaves the `~` of `--config-dir=~/mine` as it is. Raises ArgumentTypeError for an empty path, which would
    be the working directory."""
    if not path or "\0" in path:
        raise argparse.ArgumentTypeError("must not be empty" if not path else "must not contain a null byte")
    return Path(os.path.expanduser(path))  # Path.expanduser would take the directory ./~mine for a user's home


def default_store() -> Path:
    return variable("MLKV_STORE", user_path, Path("store"), "a directory")


@dataclass(frozen=True)
class StoreOptions:
    """Of subcommands that work on a store."""

    store: Path = argument("default: MLKV_STORE or ./store", "--store", type=user_path, default=default_store)


@dataclass(frozen=True)
class JsonOption:
    """Of subcommands that print for programs too (sweeps/cli/json_output.py)."""

    json: bool = argument("print one JSON object (docs/automation.md)", "--json", action="store_true")


@dataclass(frozen=True)
class ExtensionOptions(StoreOptions):
    """Of subcommands that work with what was planned before."""

    config_dir: Path | None = argument(
        "take extensions/*.py from this directory (default: those that the sweep was planned with)",
        "--config-dir",
        type=user_path,
    )


@dataclass(frozen=True)
class SweepOptions(ExtensionOptions):
    """Of subcommands that work on one sweep of a store."""

    name: str = argument("the sweep's name", metavar="NAME")


@dataclass(frozen=True)
class PlanOptions:
    """Of subcommands that make a plan."""

    overrides: tuple[str, ...] = argument("Hydra overrides", nargs="*", metavar="KEY=VALUE")
    config_dir: Path | None = argument(
        "a directory of your own configurations, shaped like conf/, with extensions/*.py",
        "--config-dir",
        type=user_path,
    )
    store: Path = argument("default: MLKV_STORE or ./store", "--store", type=user_path, default=default_store)
