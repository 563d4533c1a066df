"""The subcommand init: a config directory for one's own model, text and tasks."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeps.cli.options import argument, user_path
from sweeps.store.errors import OK, UserError


@dataclass(frozen=True)
class InitOptions:
    folder: Path = argument("the directory to write, for --config-dir", metavar="DIR", type=user_path)
    model: str | None = argument("a directory with a checkpoint", "--model", metavar="DIR")
    text: tuple[str, ...] = argument(
        "files, globs and folders of text", "--text", metavar="PATH", nargs="+", default=()
    )
    tasks: str | None = argument("a task as lm-eval takes it, or a folder of such", "--tasks", metavar="YAML|DIR")


def init(options: InitOptions) -> int:
    from mlkv.registry import extensions, files_of
    from sweeps.planning.new_config import FILES, NAME, Given, check, new_config, unset

    folder = options.folder
    _check_given(options)
    _check_free(folder, FILES)
    given = Given(options.model, options.text, options.tasks)
    with extensions(lambda: files_of(folder)):
        files = new_config(given)
        planned = check(files, given)
    _write(folder, files)
    for name, text in files.items():
        keys = " and ".join(unset(text))
        print(f"{folder / name}{keys and f': fill in {keys}'}")
    variants = f"    # {len(planned.variants)} variants" if planned and given.all else ""
    print(f"next: mlkv plan --config-dir {shlex.quote(str(folder))} experiment={NAME}{variants}")
    return OK


def _check_given(options: InitOptions) -> None:
    for name, values in (("model", [options.model]), ("text", options.text), ("tasks", [options.tasks])):
        if any(value is not None and ("\0" in value or not value.strip()) for value in values):
            raise UserError(f"--{name}: must not be empty")


def _check_free(folder: Path, files: Sequence[str]) -> None:
    """Raises UserError where a file of these names exists, or a file in the place of a folder; before anything is
    read."""
    for path in (folder / name for name in files):
        if os.path.lexists(path):
            raise _exists(path)
        above = next(parent for parent in (*path.parents, *path.absolute().parents) if parent.exists())
        if not above.is_dir():
            raise UserError(f"{above}: is a file; init writes a directory there")


def _exists(path: Path) -> UserError:
    return UserError(f"{path}: exists already and stays as it is; give another directory, or move it away")


def _write(folder: Path, files: dict[str, str]) -> None:
    from sweeps.store.files import add_files_once, write_folder_once

    # A folder that is there stays the one it is: it may be the shell's own.
    made = not folder.is_dir() and write_folder_once(folder, files)
    if not made and (there := add_files_once(folder, files)):
        raise _exists(there)
