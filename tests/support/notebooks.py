"""The notebooks of docs/examples, run from a clean kernel.

`python -m tests.support.notebooks FOLDER` runs them in a folder, which may have a `store` with the quickstart already,
and writes them back with what they printed and drew.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
NOTEBOOKS = ("read_a_sweep", "add_a_layout", "seven_questions")
PATIENCE = 1800
"""Seconds that a cell may take; one of them waits for a whole sweep."""


def read(name: str) -> Any:
    import nbformat

    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def run(name: str, folder: Path, instead: Mapping[str, str] | None = None) -> Any:
    """The notebook with new outputs, run in a folder. `instead`: texts of code → what stands there in this run; the
    first cell has each exactly once. Raises CellExecutionError."""
    from nbclient import NotebookClient

    notebook = read(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for text, other in (instead or {}).items():
        assert code[0].source.count(text) == 1, f"{name}: {text}"
        code[0].source = code[0].source.replace(text, other)
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3", resources=place, record_timing=False).execute()
    return notebook


def main(folder: Path) -> None:
    import nbformat

    for name in NOTEBOOKS:
        notebook = run(name, folder)
        python = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook.metadata = {"kernelspec": python, "language_info": {"name": "python"}}
        nbformat.write(notebook, EXAMPLES / f"{name}.ipynb")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
