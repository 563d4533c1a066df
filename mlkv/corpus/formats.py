"""Documents of a file, read as its suffix says: one of a text file, one of each row of a file of rows.

Nothing here needs torch. What cannot be read is a ValueError of one line that names the file and the place in it.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .compressed import SUFFIXES, open_bytes

MAX_ROWS_WITHOUT_COLUMN = 1000
"""A file whose first so many rows have no text column is refused: the name is wrong, not the rows."""
EMPTY = "empty"
SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
"""What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave in a directory."""


@dataclass(frozen=True)
class Reading:
    """How rows are read. `column`: of the text. `split`: of a saved DatasetDict."""

    column: str
    split: str


@dataclass
class Skipped:
    """Rows that gave no document: how many, and the first of them."""

    count: int = 0
    first: str = ""

    def add(self, place: str, reason: str) -> None:
        self.first = self.first or f"{place}: {reason}"
        self.count += 1

    def note(self) -> str:
        """ "3 rows without text were skipped (first: …)"; empty where there are none."""
        if not self.count:
            return ""
        rows = "1 row without text was" if self.count == 1 else f"{self.count:,} rows without text were"
        return f"{rows} skipped (first: {self.first})"


Rows = Iterator[tuple[str, Any]]
"""(place in the file, row); a row is what the format holds there."""


class _BadPlace(ValueError):
    """The message names the place."""


def texts(path: Path, reading: Reading, skipped: Skipped) -> Iterator[str]:
    """The texts of a file or of a saved dataset. Raises ValueError, naming the file, where it is damaged, and where it
    has no such column."""
    is_whole, rows = _format_of(path)
    found = _named(path, rows, reading)
    if is_whole:
        found = ((place, {reading.column: text}) for place, text in found)
    yield from texts_of_rows(found, str(path), reading.column, skipped)


def texts_of_rows(rows: Rows, source: str, column: str, skipped: Skipped, *, keep_empty: bool = False) -> Iterator[str]:
    """The texts in a column of rows; those without text are skipped. Raises ValueError for rows that have no such
    column."""
    found = False
    keys: tuple[str, ...] = ()
    for number, (place, row) in enumerate(rows, 1):
        where = f"{source}: {place}" if place else source
        if not isinstance(row, dict):
            raise ValueError(f"{where}: is no JSON object with a column {column}")
        value = row.get(column)
        found = found or (column in row and (value is None or isinstance(value, str)))
        keys = keys or tuple(map(str, row))
        if not found and number >= MAX_ROWS_WITHOUT_COLUMN:
            break
        reason = no_text(value)
        if reason is None or (keep_empty and reason == EMPTY):
            yield str(value)
        else:
            skipped.add(where, reason)
    if keys and not found:
        raise ValueError(without_column(source, column, keys))


def without_column(where: str, column: str, keys: tuple[str, ...]) -> str:
    if column in keys:
        return f"{where}: its column {column} (corpus.text_column) holds no text; its columns: {', '.join(keys)}"
    return f"{where}: has no column {column} (corpus.text_column); its columns: {', '.join(keys)}"


def no_text(value: Any) -> str | None:
    """Why a value gives no document; None where it gives one."""
    if value is None:
        return "no text"
    if not isinstance(value, str):
        return f"{type(value).__name__} instead of text"
    if not value.strip():
        return EMPTY
    return None if is_unicode(value) else "half of a surrogate pair, which is no character"


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_saved_dataset(path: Path) -> bool:
    return (path / SAVED[0]).is_file() or all((path / name).is_file() for name in SAVED[1:])


def format_suffix(path: Path) -> str:
    """The suffix that says how to read a file, without that of its compression."""
    name = path.name.lower()
    for compression in SUFFIXES:
        name = name.removesuffix(compression)
    return Path(name).suffix


def is_readable(path: Path) -> bool:
    compressed = path.suffix.lower() in SUFFIXES
    return format_suffix(path) in FORMATS and not (compressed and format_suffix(path) == ".parquet")


def _format_of(path: Path) -> tuple[bool, Callable[[Path, Reading], Rows]]:
    if path.is_dir():
        return False, _saved_rows
    suffix = format_suffix(path)
    return suffix in WHOLE, FORMATS[suffix]


def _named(path: Path, rows: Callable[[Path, Reading], Rows], reading: Reading) -> Rows:
    """The rows. Raises ValueError that names the file and the place."""
    place = ""
    try:
        for place, row in rows(path, reading):
            yield place, row
    except _BadPlace as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # a damaged file may raise any error of its parser
        reason = " ".join(str(error).split()) or "cannot be read"
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        after = f" after {place}" if place else ""
        raise ValueError(f"{path}: {reason} ({type(error).__name__}{after})") from error


def _whole(path: Path, reading: Reading) -> Rows:
    with open_bytes(path) as file:
        yield "", _decoded(file.read(), 1)


def _decoded(data: bytes, line: int) -> str:
    """UTF-8, with or without a mark at the beginning. `line`: the number of the first."""
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        line += data.count(b"\n", 0, error.start)
        raise _BadPlace(f"line {line}: not UTF-8 (byte {error.start - start}: {error.reason})") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with open_bytes(path) as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                yield number, _decoded(line, number)
        except _BadPlace:
            raise
        except Exception as error:  # what decompression raises is each format's own
            raise _BadPlace(f"line {number + 1}: {error}") from error


def _json_lines(path: Path, reading: Reading) -> Rows:
    for number, line in _lines(path):
        if line.strip():
            yield f"line {number}", _parsed(line, number)


def _parsed(text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _BadPlace(f"line {line + error.lineno - 1}: no JSON ({error.msg}, column {error.colno})") from error
    except RecursionError as error:
        raise _BadPlace(f"line {line}: no JSON that can be read (nested too deep)") from error


def _json(path: Path, reading: Reading) -> Rows:
    """An array of objects, one object, or lines of them: files of all three have this suffix."""
    with open_bytes(path) as file:
        text = _decoded(file.read(), 1)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.pos and text[: error.pos].count("\n"):
            yield from _json_lines(path, reading)
            return
        raise _BadPlace(f"line {error.lineno}: no JSON ({error.msg}, column {error.colno})") from error
    for number, row in enumerate(content if isinstance(content, list) else [content], 1):
        yield f"item {number}", row


def _separated(path: Path, reading: Reading, separator: str) -> Rows:
    # Quoted texts are longer than the csv module's limit; C's long is the most that it takes.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    line = 0

    def lines() -> Iterator[str]:
        nonlocal line
        for line, text in _lines(path):  # noqa: B007
            yield text

    try:
        for row in csv.DictReader(lines(), delimiter=separator, strict=True):
            yield f"line {line}", {key: value for key, value in row.items() if key is not None}
    except csv.Error as error:
        raise _BadPlace(f"line {line}: {error}") from error


def _parquet(path: Path, reading: Reading) -> Rows:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if reading.column not in names:
            raise _BadPlace(without_column("", reading.column, tuple(names)).removeprefix(": "))
        number = 0
        for batch in file.iter_batches(1000, columns=[reading.column]):
            for value in batch.column(0).to_pylist():
                number += 1
                yield f"row {number}", {reading.column: value}


def _saved_rows(path: Path, reading: Reading) -> Rows:
    import datasets

    saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.DatasetDict):
        if reading.split not in saved:
            raise _BadPlace(f"has no split {reading.split} (corpus.split); its splits: {', '.join(saved)}")
        saved = saved[reading.split]
    names = tuple(saved.column_names)
    if reading.column not in names:
        raise _BadPlace(without_column("", reading.column, names).removeprefix(": "))
    for number, row in enumerate(saved.select_columns([reading.column]), 1):
        yield f"row {number}", row


WHOLE = (".txt", ".md")
"""One document each."""
FORMATS: dict[str, Callable[[Path, Reading], Rows]] = {
    ".txt": _whole,
    ".md": _whole,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": partial(_separated, separator=","),
    ".tsv": partial(_separated, separator="\t"),
    ".parquet": _parquet,
}
BY_ROW = tuple(suffix for suffix in FORMATS if suffix not in (*WHOLE, ".json"))
"""Read row by row, so that the first costs little."""
READ = ", ".join(suffix.removeprefix(".") for suffix in FORMATS)
