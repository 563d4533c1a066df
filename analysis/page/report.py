"""`mlkv report`: tables, figures and one self-contained page, written whole from whatever has finished."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from analysis.data.units import duration
from analysis.figures.drawing import draw_all, render_bytes
from analysis.figures.kinds import FIGURES
from analysis.page.page import Page, page
from analysis.page.second_process import in_two_processes
from analysis.statistics.sources import Source
from analysis.tables import rendering, results_table
from analysis.tables.saved import TABLE, SavedTable
from analysis.tables.table import Table
from sweeps.store.files import write_atomic
from sweeps.store.store import Store

Contents = dict[str, bytes | None]
"""By file name; None for a file that should not be there, as there is nothing to draw."""


def write_page(store: Store, source: Source, out_dir: Path, printed: Table | None = None) -> list[Path]:
    """Write the report of a sweep, or of a selection of its rows, and return the files, index.html first. Each file
    appears whole. A figure without anything to draw (no score planned, nothing measured) is left out, and an older one
    removed. `printed`: the results table, where the caller has it already."""
    contents, shown = _contents(source, out_dir), page(store, source, out_dir, printed)
    saved = SavedTable(shown.table, source.whose).as_text()
    text = render(shown, _pictures(contents))
    return _write({"index.html": text.encode(), TABLE: saved.encode(), **contents}, out_dir)


def write_results(source: Source, out_dir: Path) -> list[Path]:
    """Tables and figures of any results (several together, published, imported), and a page that shows them. It has no
    steps and no configurations, which only a sweep has."""
    contents = _contents(source, out_dir)
    names = [part.source.name for part in source.parts] or [source.name]
    table = results_table.of_source(source)
    shown = {"name": source.name, "sources": names, "notes": source.notes, "table": table}
    text = _render("results.html", _pictures(contents), **shown)
    return _write({"index.html": text.encode(), **contents}, out_dir)


def _pictures(contents: Contents) -> dict[str, bytes]:
    return {name: data for name, data in contents.items() if name.endswith(".png") and data}


def _write(contents: Contents, out_dir: Path) -> list[Path]:
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        if data is None:
            (out_dir / name).unlink(missing_ok=True)
        else:
            write_atomic(out_dir / name, data)
    return [out_dir / name for name, data in contents.items() if data is not None]


def _contents(source: Source, out_dir: Path) -> Contents:
    table = results_table.of_source(source)
    table = replace(table, notes=[*table.notes, *source.remarks])
    return {
        "results.csv": results_table.csv(source.results).encode(),
        "results.md": rendering.markdown(table).encode(),
        "results.tex": rendering.latex(table).encode(),
        **_figures(source, out_dir),
    }


def _figures(source: Source, out_dir: Path) -> Contents:
    """PNG and PDF of every kind. A PDF, which takes longest, is drawn again only where the PNG differs from that of the
    report before, and every second one by a second process."""
    drawn = draw_all(source)
    pngs = {kind: render_bytes(figure, "png") for kind, figure in drawn.items()}
    unchanged = [kind for kind, png in pngs.items() if png == _earlier(out_dir / f"{kind}.png")]
    pdfs = {kind: pdf for kind in unchanged if (pdf := _earlier(out_dir / f"{kind}.pdf"))}
    changed = [kind for kind in drawn if kind not in pdfs]
    pdfs |= zip(changed, in_two_processes(lambda kind: render_bytes(drawn[kind], "pdf"), changed), strict=True)
    return {f"{kind}.{form}": made.get(kind) for kind in FIGURES for form, made in (("png", pngs), ("pdf", pdfs))}


def _earlier(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def render(shown: Page, images: dict[str, bytes]) -> str:
    """The page as HTML. Every value is escaped; the data block cannot end its script element."""
    from markupsafe import Markup

    data = Markup(script_json(shown.data))
    return _render("report.html", images, page=shown, js=Markup(_template("report.js")), data=data)


def _render(template: str, images: dict[str, bytes], **values: Any) -> str:
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    return environment.get_template(template).render(
        **values,
        css=Markup(_template("report.css")),
        captions={f"{kind}.png": row.title for kind, row in FIGURES.items()},
        images={name: f"data:image/png;base64,{base64.b64encode(data).decode()}" for name, data in images.items()},
    )


def script_json(value: Any) -> str:
    """JSON that is safe inside a script element, whatever the strings in it say. Dataclasses become objects."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=vars)
    # A script element ends at the first "</script" in it, and "<!--" changes how the rest is read, even inside strings
    # (HTML standard, "Restrictions for contents of script elements").
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _template(name: str) -> str:
    return (files("analysis") / "page" / "templates" / name).read_text(encoding="utf-8")
