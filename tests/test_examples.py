"""The notebooks of docs/examples: valid, with outputs that fit any machine, and they run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.support.notebooks import EXAMPLES, NOTEBOOKS, read, run

PATH = re.compile(r"(?<![\w.:/<])~?/(?!(?:div|td|tr|th|table|thead|tbody|style)>)(?:[\w.+-]+/)+[\w.+-]*")
"""An absolute path; the end of an HTML tag is none."""
LARGEST = 200_000
"""Bytes of a notebook."""
SIZES = ["model.decoder.width=48", "model.decoder.head_dim=8", "model.decoder.mlp_width=64", "convert=mean"]
SIZES += ["corpus.vocab_size=300", "corpus.sequence_length=64", "corpus.task_items=0", "corpus.held_out=0.2"]
SIZES += ["base.steps=4", "base.batch_size=4", "base.threads=1", "uptrain=short", "uptrain.steps=5", "tracking=off"]
SIZES += ["evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]", "evaluate.limit=8", "uptrain.batch_size=4"]
SIZES += ["sweep.filter='budget == 6'"]  # two of the eight layouts, and the baselines
SIZES += ["measure.batch_sizes=[1]", "measure.contexts=[16]", "measure.new_tokens=2"]
"""The quickstart at a size for tests."""


def texts(notebook: Any) -> Iterator[str]:
    """All that a reader sees of outputs, but pictures."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            yield output.get("text", "")
            yield from (text for kind, text in output.get("data", {}).items() if not kind.startswith("image/"))


def test_every_notebook_is_one_of_these() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_whole_and_fits_any_machine(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run from the top, once"
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert not [output.text for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    assert [text for text in texts(notebook) if PATH.search(text)] == []
    assert any(kind == "image/png" for cell in code for output in cell.outputs for kind in output.get("data", {}))
    assert (EXAMPLES / f"{name}.ipynb").stat().st_size < LARGEST


@pytest.mark.parametrize("text", ["/home/x/out", "in '/data/x/a.py'", "~/store/x", "(/usr/lib/python3.11)"])
def test_a_path_of_a_machine_is_found(text: str) -> None:
    assert PATH.search(text)
    assert not PATH.search("<td>1</td> tokens/s 1/2 tasks/a/b <div>https://a.b/c/d</div></td></tr>")


@pytest.mark.long(minutes=2)
def test_the_notebooks_run_from_a_clean_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one folder, so that what one of them has run the next ones find done."""
    monkeypatch.delenv("MLKV_STORE", raising=False)
    words = "the quick brown fox jumps over the lazy dog and seven wizards vex jackals near lakes"
    for i in range(40):
        chosen = [words.split()[(i * 7 + j * j) % 16] for j in range(300)]
        (tmp_path / f"{i:02}.txt").write_text(" ".join(chosen))
    line = ["experiment=quickstart", "corpus=text_files", f"corpus.files=[{tmp_path}/*.txt]", *SIZES]
    for name in NOTEBOOKS:
        done, saved = run(name, tmp_path, {'["experiment=quickstart"]': repr(line)}), read(name)
        for cell, before in zip(done.cells, saved.cells, strict=True):
            if cell.cell_type == "code":
                assert [o.output_type for o in cell.outputs] == [o.output_type for o in before.outputs], cell.source
