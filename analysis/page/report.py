"""`mlkv report`: tables, figures and one self-contained page, written whole from whatever has finished."""

from __future__ import annotations

import base64
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from analysis.data.units import duration
from analysis.figures.drawing import draw_all, put, saved
from analysis.figures.kinds import FIGURES
from analysis.page.page import page
from analysis.statistics.results import Results
from analysis.statistics.sources import Source, load
from analysis.tables import results_table
from sweeps.store.store import Store


def write_report(store: Store, sweep_name: str, out_dir: Path, number: int | None = None) -> list[Path]:
    """Write the report of a sweep into `out_dir` and return the files, index.html first. Each file appears whole.

    A figure without anything to draw (no score planned, nothing measured) is left out, and an older one removed.
    Raises StoreError for an unknown sweep.
    """
    source = load(store, sweep_name, number)
    contents = _contents(source, out_dir)
    images = {name: data for name, data in contents.items() if name.endswith(".png") and data}
    shown = page(store, source, out_dir)
    return _write({"index.html": render(shown, images).encode(), **contents}, out_dir)


def write_results(source: Source, out_dir: Path) -> list[Path]:
    """Tables and figures of any results (published, imported) without the page, which only a sweep has."""
    return _write(_contents(source, out_dir), out_dir)


def _write(contents: dict[str, bytes | None], out_dir: Path) -> list[Path]:
    out_dir.mkdir(parents=True, exist_ok=True)
    return [path for name, data in contents.items() if (path := _put(out_dir / name, data))]


def _contents(source: Source, out_dir: Path) -> dict[str, bytes | None]:
    return _tables(source.results) | _figures(source, out_dir)


def _tables(results: Results) -> dict[str, bytes | None]:
    return {
        "results.csv": results_table.csv(results).encode(),
        "results.md": results_table.markdown(results).encode(),
        "results.tex": results_table.latex(results).encode(),
    }


def _figures(source: Source, out_dir: Path) -> dict[str, bytes | None]:
    """PNG and PDF of all kinds, None where there is nothing to draw. A PDF, which takes longest, is made anew only
    where the PNG is another than that of the report before."""
    drawn = draw_all(source)
    found: dict[str, bytes | None] = {}
    for kind in FIGURES:
        png, pdf = f"{kind}.png", f"{kind}.pdf"
        found[png] = saved(drawn[kind], "png") if kind in drawn else None
        same = found[png] is not None and found[png] == _before(out_dir / png)
        kept = _before(out_dir / pdf) if same else None
        found[pdf] = kept or (saved(drawn[kind], "pdf") if kind in drawn else None)
    return found


def _before(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _put(path: Path, data: bytes | None) -> Path | None:
    """Replace `path` by `data`; with no data remove what an earlier report left there."""
    if data is None:
        path.unlink(missing_ok=True)
        return None
    return put(path, data)


def render(shown: Any, images: dict[str, bytes]) -> str:
    """The page as HTML. Every value is escaped; the data block cannot end its script element."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = duration
    return environment.from_string(_template("report.html")).render(
        page=shown,
        css=Markup(_template("report.css")),
        js=Markup(_template("report.js")),
        data=Markup(script_json(shown.data)),
        captions={f"{kind}.png": caption for kind, caption in FIGURES.items()},
        images={name: f"data:image/png;base64,{base64.b64encode(data).decode()}" for name, data in images.items()},
    )


def script_json(value: Any) -> str:
    """JSON that is safe inside a script element, whatever the strings in it say."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _template(name: str) -> str:
    return (files("analysis") / "page" / "templates" / name).read_text(encoding="utf-8")
