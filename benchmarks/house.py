"""What the code is like to pick up, in numbers, a row per room: `python benchmarks/house.py`. For reading, not a gate.

The last rows are whole packages, with `--before REVISION` those of an earlier state above those of today.

Columns: Python files; lines of code; functions, their median, 90th percentile and longest length in lines; functions
that take or return an untyped mapping (Json, dict[str, Any], Mapping[str, Any], Namespace), in per cent; values read by
a literal string key and comments, both per 100 lines of code; private functions whose name is used once, in per cent of
all functions.
The last line is all of it as one JSON object.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mlkv", "sweeps", "slurm", "analysis")
UNTYPED = re.compile(r"\b(Json|Namespace)\b|(dict|Mapping)\[str, Any\]")
Function = ast.FunctionDef | ast.AsyncFunctionDef
Rows = dict[str, dict[str, float]]
"""Room or package → column → number."""


@dataclass
class Numbers:
    """What was counted in some files."""

    files: int = 0
    code_lines: int = 0
    comments: int = 0
    key_reads: int = 0
    untyped: int = 0
    used_once: int = 0
    lengths: list[int] = field(default_factory=list)

    def add(self, path: Path, uses: Counter[str]) -> None:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        self.files += 1
        comments = sum(t.type == tokenize.COMMENT for t in tokenize.generate_tokens(io.StringIO(text).readline))
        self.comments += comments
        self.code_lines += sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in text.splitlines())
        self.key_reads += sum(map(is_key_read, ast.walk(tree)))
        for function in (node for node in ast.walk(tree) if isinstance(node, Function)):
            self.lengths.append((function.end_lineno or 0) - function.lineno + 1)
            self.untyped += is_untyped(function)
            private = function.name.startswith("_") and not function.name.startswith("__")
            self.used_once += private and uses[function.name] == 1

    def row(self) -> dict[str, float]:
        per_100, functions = 100 / max(self.code_lines, 1), max(len(self.lengths), 1)
        lengths = sorted(self.lengths) or [0]
        return {
            "files": self.files,
            "lines": self.code_lines,
            "functions": len(self.lengths),
            "median": statistics.median(lengths),
            "p90": lengths[int(0.9 * (len(lengths) - 1))],
            "longest": lengths[-1],
            "untyped_percent": round(100 * self.untyped / functions, 1),
            "key_reads_per_100": round(self.key_reads * per_100, 1),
            "comments_per_100": round(self.comments * per_100, 1),
            "private_used_once_percent": round(100 * self.used_once / functions, 1),
        }


def is_key_read(node: ast.AST) -> bool:
    """`x["key"]`, or `x.get("key")`, being read."""
    if isinstance(node, ast.Subscript):
        return isinstance(node.ctx, ast.Load) and is_text(node.slice)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
        return bool(node.args) and is_text(node.args[0])
    return False


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def is_untyped(function: Function) -> bool:
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    annotations = [a.annotation for a in arguments] + [function.returns]
    return any(UNTYPED.search(ast.unparse(each)) for each in annotations if each)


def names_used(paths: list[Path]) -> Counter[str]:
    """How often each name is read, as a name or as an attribute."""
    uses: Counter[str] = Counter()
    for node in (node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Name):
            uses[node.id] += 1
        elif isinstance(node, ast.Attribute):
            uses[node.attr] += 1
    return uses


def count(root: Path) -> tuple[Rows, Rows]:
    """The rows of the rooms of a checkout, and those of whole packages."""
    packages = {
        package: [path for path in sorted((root / package).rglob("*.py")) if path.read_text(encoding="utf-8").strip()]
        for package in PACKAGES
    }
    rooms: dict[str, list[Path]] = {}
    for path in chain.from_iterable(packages.values()):
        rooms.setdefault(path.parent.relative_to(root).as_posix(), []).append(path)
    uses = names_used([path for paths in packages.values() for path in paths])
    return (
        {room: row(paths, uses) for room, paths in rooms.items()},
        {f"{package} (all)": row(paths, uses) for package, paths in packages.items()},
    )


def row(paths: list[Path], uses: Counter[str]) -> dict[str, float]:
    numbers = Numbers()
    for path in paths:
        numbers.add(path, uses)
    return numbers.row()


def totals_at(revision: str) -> Rows:
    """The rows of whole packages at an earlier revision. Exits where git does not know it; git says so."""
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, stdout=subprocess.PIPE)
    if archive.returncode:
        sys.exit(archive.returncode)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
        return count(Path(folder))[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--before", metavar="REVISION", help="a git revision whose packages are counted too")
    revision = parser.parse_args().before
    rooms, totals = count(ROOT)
    before = totals_at(revision) if revision else {}
    for package in totals:
        rooms |= {f"{package} at {revision}": before[package]} if before else {}
        rooms[package] = totals[package]
    table = Table("room", *(name.replace("_", " ") for name in Numbers().row()), box=None)
    for room, numbers in rooms.items():
        table.add_row(room, *(f"{value:g}" for value in numbers.values()))
    Console(width=160, file=sys.stderr).print(table)
    print(json.dumps(rooms))


if __name__ == "__main__":
    main()
