"""Results measured elsewhere, in our schema: lm-eval result files and CSV files of measurements.

A directory may hold `layouts.csv`, which says what the variants are: the columns of reference/layouts.csv, and `model`
where results have another name for a variant. The MLKV authors' own files are recognised by their names.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from analysis.data import averaged, frame
from analysis.data.contents import Content, Measured, Pair, baselines_of, contents_of, listed
from analysis.data.frame import Row
from analysis.data.layout_lines import LAYOUTS, Layout, read_layouts
from analysis.data.lm_eval_document import NotRead
from analysis.data.lm_eval_files import read_run
from analysis.data.measurements import measurement_cells
from analysis.data.published import layout_rows
from analysis.data.runs import Run

_THEIRS = re.compile(r"(base|random|(gqa|mqa|mlkv)_\d+)_results\.json")
_THEIR_MODELS = re.compile(r"(.*/)?pythia-160m-(deduped|random|(gqa|mqa|mlkv)-\d+-.*)")
"""The MLKV authors' files, and the models that these name."""
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")


@dataclass
class Import:
    """The results of a directory: the long table, and notes on it, a line each."""

    table: pd.DataFrame
    averaged: list[str]
    """TASK.METRIC of the scores that the mean averages."""
    notes: list[str]


def import_results(directory: Path, name: str = "mlkv", accuracy: Sequence[Pair] | None = None) -> pd.DataFrame:
    """The table of `read_directory`."""
    return read_directory(directory, name, accuracy).table


def read_directory(directory: Path, name: str = "mlkv", accuracy: Sequence[Pair] | None = None) -> Import:
    """The results below `directory` as a long table named `name`: lm-eval's JSON files and CSV files of measurements.

    `accuracy` are the (task, metric) that the mean averages; by default the MLKV paper's where all are there, else
    every task's `acc`. A variant that lacks one has an empty mean. Files that cannot be read are skipped and named in
    the notes. Raises ValueError for a directory without results, an unknown score in `accuracy`, two values of one
    score, and a wrong line of `layouts.csv`."""
    found = _below(directory)
    if not found.runs and not found.measured:
        skipped = "".join(f"; {note}" for note in _skipped(found.skipped))
        raise ValueError(
            f"directory = {directory}: has neither lm-eval's JSON results nor measurements in CSV{skipped}"
        )
    layouts = _layouts(directory, found)
    contents = contents_of(found.runs, found.measured, layouts or [])
    wanted = averaged.wanted_scores(contents, found.runs, accuracy)
    notes = [*averaged.notes(contents, found.runs, wanted), *_layout_notes(contents, layouts), *_skipped(found.skipped)]
    return Import(frame.make(_rows(name, contents, wanted)), [".".join(pair) for pair in wanted], notes)


@dataclass
class _Found:
    """The contents of a directory."""

    runs: list[Run] = field(default_factory=list)
    """Oldest first."""
    measured: list[Measured] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """File → why it was not read."""
    theirs: bool = False
    """Whether these are the MLKV authors' own files."""


def _below(directory: Path) -> _Found:
    """Raises ValueError where there is no such directory."""
    if not directory.is_dir():
        raise ValueError(f"directory = {directory}: is no directory")
    found = _Found()
    for path, file in _files(directory, ".json"):
        try:
            found.runs.append(read_run(path, file))
        except NotRead as why:
            found.skipped[file] = str(why)
    found.runs.sort(key=lambda run: run.date)
    found.theirs = bool(found.runs) and all(map(_is_theirs, found.runs))
    for run in found.runs if found.theirs else ():
        run.model = variant_name(run.model)
    for path, file in _files(directory, ".csv"):
        if path.name != LAYOUTS:
            _add_measurements(found, path, file)
        elif path.parent != directory:
            found.skipped[file] = "is read only from the directory itself"
    packed = (file for kind in (".json", ".csv") for way in _PACKED for _, file in _files(directory, kind + way))
    found.skipped |= dict.fromkeys(packed, "is compressed; decompress it")
    return found


def _files(directory: Path, ending: str) -> Iterator[tuple[Path, str]]:
    """Files whose names have this ending, in upper or lower case, each with its path below the directory."""
    for path in sorted(_all_files(directory)):
        if path.name.lower().endswith(ending):
            yield path, path.relative_to(directory).as_posix().encode(errors="backslashreplace").decode()


def _all_files(directory: Path) -> Iterator[Path]:
    """All files, also behind links to directories; each directory is read once."""
    seen: set[str] = set()
    for folder, below, names in os.walk(directory, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        yield from (path for name in names if (path := Path(folder, name)).is_file())


def _add_measurements(found: _Found, path: Path, file: str) -> None:
    try:
        cells = measurement_cells(path)
        named = {model: variant_name(model) if found.theirs else model.strip() for model, _ in cells}
    except ValueError as why:
        found.skipped[file] = str(why)
    else:
        found.measured += [(named[model], file, cell) for model, cell in cells]


def _layouts(directory: Path, found: _Found) -> list[Layout] | None:
    """The layouts of the variants; None where no file has them."""
    if found.theirs:
        return [Layout(0, variant, row) for variant, row in layout_rows("mlkv").items()]
    return read_layouts(directory / LAYOUTS) if (directory / LAYOUTS).is_file() else None


def _layout_notes(contents: Sequence[Content], layouts: Sequence[Layout] | None) -> list[str]:
    """Variants without a line in layouts.csv, and lines without results."""
    if layouts is None:
        return [f"{LAYOUTS}: not there, so the variants' KV heads and bytes per token are not known"]
    unknown = [content.label for content in contents if content.layout is None]
    unused = [layout.row["variant"] for layout in layouts if all(layout is not content.layout for content in contents)]
    return [
        *([f"{LAYOUTS}: has no line for {listed(unknown)}"] if unknown else []),
        *([f"{LAYOUTS}: no results of {listed(unused)}"] if unused else []),
    ]


def _is_theirs(run: Run) -> bool:
    name = Path(run.file).name
    own = _THEIRS.fullmatch(name) and _THEIR_MODELS.fullmatch(run.model)
    return bool(own) and variant_name(name) == variant_name(run.model)


def variant_name(text: str) -> str:
    """`mlkv_6_results.json`, `…/pythia-160m-mlkv-6-b12-g2-v1` → `MLKV-6`. Raises ValueError for an unknown model."""
    if found := re.search(r"(gqa|mqa|mlkv)[-_](\d+)", text):
        return f"{found[1].upper()}-{found[2]}"
    for part, name in (("random", "Random init"), ("base", "MHA-144"), ("pythia-160m-deduped", "MHA-144")):
        if part in text:
            return name
    raise ValueError(f"model = {text}: none of gqa, mqa, mlkv with its KV heads, base, random")


def _rows(name: str, contents: Sequence[Content], wanted: Sequence[Pair]) -> Iterator[Row]:
    """Every cell, and an empty one for each score of the mean that a variant lacks."""
    baselines = baselines_of(contents)
    for content in contents:
        known = content.layout.row if content.layout else {}
        common = {**known, **baselines[content.label], "variant": content.label, "sweep": name, "state": "IMPORTED"}
        lacking = [averaged.absent(pair) for pair in wanted if content.score(pair) is None]
        for row in [*content.cells.values(), *lacking]:
            scored = row["kind"] == "evaluate" and (row["task"], row["metric"]) in wanted
            yield {**common, **row, "in_axis": False, "in_accuracy": scored}


def _skipped(files: dict[str, str]) -> Iterable[str]:
    """Lines that name the skipped files by reason."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for file, why in files.items():
        by_reason[why].append(file)
    for why, there in by_reason.items():
        yield f"skipped {', '.join(there)}{', ' if why.startswith('line ') else ': '}{why}"
