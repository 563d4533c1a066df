"""Every figure, for every state that results can be in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from analysis.data import frame
from analysis.data.published import SETS
from analysis.figures.canvas import SMALLEST, new_figure
from analysis.figures.drawing import CannotDraw, draw, draw_all, render_bytes, write_figures
from analysis.figures.kinds import FIGURES, FigureKind
from analysis.figures.style import FAMILY_STYLES, shades
from analysis.statistics.sources import Source, load, published_source
from tests.support.figures import assert_readable, crowd, in_progress, single, texts_of
from tests.support.filler import Filler
from tests.support.read_back import present

ROOT = Path(__file__).resolve().parents[2]
UNPUBLISHED = {"recovery", "roofline", "similarity", "heads_layers", "rules", "damage_by_distance", "damage_by_domain"}
"""What a paper's table has not: several lengths of uptraining, timed copies, the base itself, all layouts of a size,
tasks by distance and by domain."""


@pytest.mark.parametrize("name", SETS)
def test_every_figure_of_published_results_is_readable(name: str) -> None:
    drawn = draw_all(published_source(name))
    for figure in drawn.values():
        assert_readable(figure)
    if name == "mlkv":
        assert set(drawn) == set(FIGURES) - UNPUBLISHED
    if name == "cla-1b":  # perplexities alone: no pareto_loss beside the pareto that shows them
        assert set(drawn) == {"difference", "pareto", "spectrum", "layouts", "tasks"}


def test_every_figure_of_a_sweep_in_progress_is_readable(filler: Filler) -> None:
    drawn = draw_all(in_progress(filler))
    assert set(drawn) == {"difference", "pareto_loss", "memory", "curves", "spectrum", "layouts", "tasks"}
    for figure in drawn.values():
        assert_readable(figure)


def test_every_figure_of_one_variant_is_readable(tmp_path: Path, filler: Filler) -> None:
    drawn = draw_all(single(tmp_path, filler))
    assert set(drawn) == {"pareto", "pareto_loss", "memory", "layouts"}
    for figure in drawn.values():
        assert_readable(figure)


def test_every_figure_of_a_hundred_variants_is_readable(finished: Filler) -> None:
    drawn = draw_all(crowd(finished))
    assert set(drawn) == {"difference", "pareto", "pareto_loss", "memory", "spectrum", "tasks"}
    for figure in drawn.values():
        assert_readable(figure)


NAMES = {"MHA-36": "cost $5", "GQA-12": r"$\frac{", "MLKV-12": "$x$ and y_1^2", "MQA-6": r"a\$b", "MLKV-6": "{^_}"}


def renamed(source: Source, names: dict[str, str]) -> Source:
    rows = [{**row, "variant": names.get(row["variant"], row["variant"])} for row in frame.records(source.table)]
    rows = [{**row, "task": row["task"] and f"{row['task']}$^{{"} for row in rows]
    rows = [{**row, **{name: names.get(row[name], row[name]) for name in ("untouched", "mha")}} for row in rows]
    return Source(source.name, frame.make(rows))


@pytest.mark.parametrize("form", ["png", "svg"])
def test_names_that_look_like_formulas_are_printed_as_they_are(finished: Filler, form: str) -> None:
    drawn = draw_all(renamed(load(finished.store, finished.name), NAMES))
    assert {"pareto", "spectrum", "tasks"} <= set(drawn)
    for figure in drawn.values():
        assert_readable(figure)
        assert render_bytes(figure, form)
    texts = {text.get_text() for text, _ in texts_of(drawn["tasks"])}
    assert set(NAMES.values()) - {"cost $5"} <= texts  # the baseline has no bar


LONG = "a-variant-with-a-name-of-very-many-letters and lr=0.0003 seed=12"


def test_long_names_and_labels_are_cut_or_wrapped_and_never_clipped(finished: Filler) -> None:
    source = load(finished.store, finished.name)
    rows = [{**row, "variant": row["variant"].replace("MHA-36", LONG)} for row in frame.records(source.table)]
    for row in rows:
        row["mha"] = LONG if row["mha"] else None
        if row["task"] == "bits_per_byte":
            row["task"] = "a_task_whose_name_is_as_long_as_tasks_of_the_harness_with_their_filters_are"
    drawn = draw_all(Source("long", frame.make(rows)))
    assert {"pareto", "pareto_loss", "memory", "tasks"} <= set(drawn)
    for figure in drawn.values():
        assert_readable(figure)


@pytest.mark.parametrize("name", ["mlkv", "study-1b"])
def test_every_panel_of_tasks_has_a_scale(name: str) -> None:
    panels = present(draw("tasks", published_source(name))).axes
    for axes in panels:
        low, high = axes.get_xlim()
        numbers = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert len(numbers) >= 2 or not axes.get_visible()


def test_figures_are_written_in_three_formats(finished: Filler, tmp_path: Path) -> None:
    source = load(finished.store, finished.name)
    files = write_figures(source, ["layouts", "spectrum"], tmp_path)
    assert [path.name for path in files] == [
        f"{kind}.{form}" for kind in ("layouts", "spectrum") for form in ("png", "pdf", "svg")
    ]
    assert [path.read_bytes()[:4] for path in files[:3]] == [b"\x89PNG", b"%PDF", b"<?xm"]
    before = [path.read_bytes() for path in files]
    assert [path.read_bytes() for path in write_figures(source, ["layouts", "spectrum"], tmp_path)] == before


def test_a_figure_that_cannot_be_drawn_is_refused_with_the_reason(filler: Filler, tmp_path: Path) -> None:
    source = load(filler.store, filler.name)
    with pytest.raises(CannotDraw, match=r"figure = paretto: choose from difference, .*, tasks"):
        write_figures(source, ["paretto"], tmp_path / "out")
    with pytest.raises(CannotDraw, match="memory: nothing to draw for demo: it needs a finished measure step"):
        write_figures(source, ["memory"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_importing_figures_loads_neither_matplotlib_nor_torch() -> None:
    code = (
        "import sys, analysis.figures.drawing, analysis.page.report, analysis.tables.paper, analysis.data.importer;"
        "assert not {'matplotlib', 'torch', 'jinja2', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_listing_the_figures_loads_no_figure() -> None:
    code = (
        "import sys; from analysis.figures.kinds import FIGURES; list(FIGURES);"
        "assert not [name for name in sys.modules if name.startswith(('pandas', 'matplotlib', 'analysis.statistics'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_documentation_has_a_row_for_each_figure() -> None:
    rows = [line for line in (ROOT / "docs" / "figures.md").read_text().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(FIGURES)


def test_a_row_is_all_that_a_new_figure_needs(
    finished: Filler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores(source: Source, published: Source | None) -> Figure | None:
        figure, axes = new_figure()
        rows = source.results.frame
        axes.plot(rows["kv_bytes_per_token"].astype(float), rows["quality"].astype(float), "o")
        axes.set_xscale("log")
        axes.set_title("$")
        return figure

    monkeypatch.setitem(FIGURES, "scores", FigureKind("scores", scores, "a score"))
    source = load(finished.store, finished.name)
    assert "scores" in draw_all(source)
    assert {path.name for path in write_figures(source, ["scores"], tmp_path)} == {
        "scores.png",
        "scores.pdf",
        "scores.svg",
    }
    figure = present(draw("scores", source))
    assert all(float(text.get_fontsize()) >= SMALLEST for text, _ in texts_of(figure))
    assert "1,000" in {label.get_text() for label in figure.axes[0].get_xticklabels()}


def test_families_differ_in_shape_and_colour() -> None:
    styles = FAMILY_STYLES.values()
    assert len({style.marker for style in styles}) == len({style.colour for style in styles}) == 13
    assert len(set(shades("#D55E00", 8))) == 8
