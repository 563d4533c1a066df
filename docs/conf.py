"""Sphinx's configuration: `make docs` builds the site from the pages of this folder and from docstrings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version as installed_version
from itertools import pairwise
from pathlib import Path

from sphinx.application import Sphinx

project = "mlkv"
release = installed_version("mlkv")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
default_role = "code"  # docstrings write names as Markdown does, in single backticks

html_theme = "furo"
html_title = f"mlkv {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_copyright = html_show_sourcelink = False


def add_readme(_app: Sphinx, page: str, source: list[str]) -> None:
    """The front page is README.md, without links to files that are on no page, above its own list of pages."""
    if page == "index":
        readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
        text = re.sub(r"\[([^]]+)\]\((?!https?:|docs/)[^)]+\)", r"`\1`", readme)
        source[0] = text.replace("](docs/", "](") + source[0]


FIELD = re.compile(r"(?P<names>\w+(?:, \w+)*): (?P<text>.*)")


def list_fields(lines: list[str]) -> Iterator[str]:
    """reStructuredText of a docstring, whose fields and parameters are lines of the form `name: text`, with further
    lines indented. A line within a sentence may begin with a word and a colon too."""
    in_field = False
    for before, line in pairwise(["summary", *lines]):
        field = FIELD.fullmatch(line) if before == "" or before.endswith((".", ":")) else None
        inside = bool(field) or (in_field and line.startswith(" "))
        if inside != in_field:
            yield ""
        in_field = inside
        if field:
            yield f"- **{field['names']}**: {field['text']}"
        else:
            yield f"  {line.strip()}" if in_field else line


def process_docstring(
    _app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    lines[:] = list_fields(lines)


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_readme)
    app.connect("autodoc-process-docstring", process_docstring)
