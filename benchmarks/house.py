"""What the code is like to pick up, in numbers, a row per room: `python benchmarks/house.py`. For reading, not a gate.

Columns: Python files; lines of code; functions, their median, 90th percentile and longest length in lines; functions
that take or return an untyped mapping (Json, dict[str, Any], Mapping[str, Any], Namespace), in per cent; values read by
a literal string key and comments, both per 100 lines of code; private functions whose name is used once, in per cent of
all functions.
The last line is all of it as one JSON object.
"""

from __future__ import annotations

import ast
import io
import json
import re
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mlkv", "sweeps", "slurm", "analysis")
UNTYPED = re.compile(r"\b(Json|Namespace)\b|(dict|Mapping)\[str, Any\]")
Function = ast.FunctionDef | ast.AsyncFunctionDef


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


def rooms() -> Iterator[tuple[str, list[Path]]]:
    for package in PACKAGES:
        paths = [path for path in sorted((ROOT / package).rglob("*.py")) if path.read_text(encoding="utf-8").strip()]
        by_room: dict[str, list[Path]] = {}
        for path in paths:
            by_room.setdefault(path.parent.relative_to(ROOT).as_posix(), []).append(path)
        yield from by_room.items()
        if len(by_room) > 1:
            yield f"{package} (all)", paths


def main() -> None:
    uses = names_used([path for package in PACKAGES for path in (ROOT / package).rglob("*.py")])
    found: dict[str, dict[str, float]] = {}
    for room, paths in rooms():
        numbers = Numbers()
        for path in paths:
            numbers.add(path, uses)
        found[room] = numbers.row()
    table = Table("room", *(name.replace("_", " ") for name in Numbers().row()), box=None)
    for room, row in found.items():
        table.add_row(room, *(f"{value:g}" for value in row.values()))
    Console(width=160, file=sys.stderr).print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
