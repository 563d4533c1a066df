"""The subcommands that share results: pack, unpack."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.cli.console import make_console, print_json
from sweeps.cli.export import hide_progress
from sweeps.cli.options import JsonOption, StoreOptions, argument, user_path
from sweeps.cli.selection import existing
from sweeps.cli.sources import one_line
from sweeps.store.errors import NOT_DONE, OK, UserError, choices

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.sharing.unpacking import Unpacked

SUFFIX = ".mlkv"
WEIGHTS = ("none", "last", "all")


@dataclass(frozen=True)
class PackOptions(JsonOption, StoreOptions):
    name: str = argument("the sweep's name", metavar="NAME")
    file: Path | None = argument("the file to write", nargs="?", type=user_path, metavar="FILE")
    weights: str = argument(
        "none (default); last: of each variant the checkpoint that is scored; all: all that steps are made from",
        "--weights",
        default="none",
        metavar="WHICH",
    )
    by: str | None = argument(
        "whose results they are, as tables will say (default: the user.name of git; '': nobody's)", "--by"
    )
    push: str | None = argument(
        "upload it to this dataset repository of the Hugging Face hub, which is made, and private, if it is not there",
        "--push",
        metavar="USER/REPO",
    )


@dataclass(frozen=True)
class UnpackOptions(JsonOption, StoreOptions):
    files: tuple[Path, ...] = argument("what `mlkv pack` wrote", nargs="*", type=user_path, metavar="FILE")
    name: str | None = argument("what the sweep is called here (default: as where it was packed)", "--name")
    pull: str | None = argument(
        "every pack of this dataset repository of the Hugging Face hub", "--pull", metavar="USER/REPO"
    )


def pack(options: PackOptions) -> int:
    from mlkv.export.hub import check_repository, push_file
    from sweeps.sharing.packing import pack as write

    hide_progress()
    if options.weights not in WEIGHTS:
        raise UserError(f"--weights = {options.weights}: {choices(options.weights, WEIGHTS)}")
    if options.file is None and options.push is None:
        raise UserError("pack: give a file to write, or --push USER/REPO")
    store = existing(options.store)
    saved, by = store.sweep(options.name), _by(options.by)
    with one_line(), _target(options.file, saved.name) as file:
        if options.push is not None:
            check_repository(options.push)
        manifest = write(store, saved, file, by=by, weights=options.weights)  # type: ignore[arg-type]
        size = file.stat().st_size
        pushed = push_file(file, f"{saved.name}{SUFFIX}", options.push) if options.push is not None else None
    if options.json:
        path = None if options.file is None else str(options.file)
        facts = {"sweep": manifest.sweep, "by": by, "packed": manifest.packed, "weights": manifest.weights}
        print_json({"file": path, **facts, "bytes": size, "files": len(manifest.files), "pushed": pushed})
        return OK
    _print_packed(make_console(), options, size, by, pushed)
    return OK


def _print_packed(console: Console, options: PackOptions, bytes: int, by: str | None, pushed: str | None) -> None:
    from analysis.data.units import size

    whose = f"by {by}" if by else "by nobody in particular"
    if options.file is not None:
        console.print(f"{options.file}: {size(bytes)}, {whose}", highlight=False, soft_wrap=True)
    if pushed is not None:
        console.print(pushed, highlight=False, soft_wrap=True)


@contextmanager
def _target(file: Path | None, name: str) -> Iterator[Path]:
    """The file to write, or a temporary one. Raises UserError for one that holds something else."""
    from sweeps.sharing.container import PackError, opened

    if file is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, f"{name}{SUFFIX}")
        return
    if file.is_dir():
        raise UserError(f"{file}: is a directory; name a file, such as {file / name}{SUFFIX}")
    if file.exists():
        try:
            with opened(file):
                pass
        except PackError:
            raise UserError(f"{file}: exists and is no pack; choose another name") from None
    yield file


def _by(given: str | None) -> str | None:
    """Raises UserError for what is no name."""
    from sweeps.sharing.manifest import check_by

    if given is not None:
        with one_line():
            check_by(given or None)
        return given or None
    try:
        name = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, timeout=10).stdout.strip()
        check_by(name or None)
    except (OSError, ValueError, subprocess.SubprocessError):  # no git, or a name that no table can show
        return None
    return name or None


def unpack(options: UnpackOptions) -> int:
    from sweeps.sharing.unpacking import unpack as put
    from sweeps.store.store import Store

    if not options.files and options.pull is None:
        raise UserError("unpack: give a file, or --pull USER/REPO")
    with tempfile.TemporaryDirectory(prefix="mlkv-pull-") as folder:
        files = [*options.files, *_pulled(options.pull, Path(folder))]
        if options.name is not None and len(files) > 1:
            raise UserError(f"--name = {options.name}: is for one pack, and there are {len(files)}")
        _check_all(files)
        with _nothing_left(options.store):
            store = Store.open(options.store)
            done = [put(store, file, options.name) for file in files]
    if options.json:
        print_json({"packs": [asdict(each) for each in done]})
    else:
        for each in done:
            _print_unpacked(make_console(), each)
    return NOT_DONE if any(each.running for each in done) else OK


@contextmanager
def _nothing_left(root: Path) -> Iterator[None]:
    """Where nothing could be put into a store that was not there before, it is not there afterwards."""
    before = root.exists()
    try:
        yield
    finally:
        if not before:
            with suppress(OSError):  # it has something in it
                root.rmdir()


def _check_all(files: Sequence[Path]) -> None:
    """Raises PackError for the first that is none, before anything of the others is put in place."""
    from sweeps.sharing.container import opened

    for file in files:
        with opened(file):
            pass


def _pulled(repository: str | None, folder: Path) -> list[Path]:
    from mlkv.export.hub import pull_files

    if repository is None:
        return []
    hide_progress()
    with one_line():
        return pull_files(repository, SUFFIX, folder)


def _print_unpacked(console: Console, done: Unpacked) -> None:
    words = {
        "new": "count as done",
        "same": "were here with the same outputs",
        "filled": "got outputs that an earlier pack left out",
        "beside": "have another result here, which goes on counting; this one is kept beside it",
        "running": "run just now; the same command puts them in place later",
    }
    console.print(f"{done.sweep}, from {done.by or 'another store'}:", highlight=False)
    for key, meaning in words.items():
        if ids := getattr(done, key):
            console.print(f"    {len(ids)} {'step' if len(ids) == 1 else 'steps'} {meaning}", highlight=False)
    console.print(f"`mlkv table {done.sweep}` shows them", highlight=False)
