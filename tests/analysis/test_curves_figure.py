"""The figure of training losses."""

from __future__ import annotations

from analysis.data.frame import Row
from analysis.figures.curves import LOSS, MOST_CURVES, Curve, _chosen, curves_figure, curves_of
from analysis.figures.drawing import draw
from analysis.figures.geometry import evenly
from analysis.figures.style import MUTED, family_style
from analysis.statistics.sources import load, published_source
from tests.support.figures import assert_readable, log_losses, names_of
from tests.support.filler import Filler
from tests.support.read_back import present


def test_curves_are_what_steps_logged_and_end_where_they_are(filler: Filler) -> None:
    log_losses(filler, "GQA-12", [5.0, 4.5, float("nan"), 4.4])
    source = load(filler.store, filler.name)
    (curve,) = curves_of(source)
    assert (curve.steps, curve.losses, curve.ended) == ([10, 20, 40], [5.0, 4.5, 4.4], False)
    names = [text.get_text() for text in names_of(present(curves_figure(source)))]
    assert names == ["GQA-12 at 40"]
    assert LOSS == "train/loss"


def test_of_many_variants_with_one_budget_the_same_are_drawn_in_every_process(filler: Filler) -> None:
    """In the table's order, and not in that of a set, which differs from process to process."""
    names = [f"MLKV-3 uptrain.lr={i}" for i in range(40)]
    by_variant: dict[str, list[Row]] = {name: [{"variant": name, "budget": 3, "replicate_of": None}] for name in names}
    chosen = _chosen(load(filler.store, filler.name), by_variant)
    assert [rows[0]["variant"] for rows in chosen] == list(evenly(names, MOST_CURVES))


def test_published_losses_are_grey_beside_ours(filler: Filler) -> None:
    log_losses(filler, "GQA-12", [5.0, 4.5, 4.4])
    figure = present(draw("curves", load(filler.store, filler.name), published_source("mlkv")))
    colours = {text.get_text(): text.get_color() for text in names_of(figure)}
    assert colours == {"GQA-12 at 30": family_style("GQA").colour} | dict.fromkeys(
        ("GQA-48", "MQA-12", "MLKV-48", "MLKV-12", "MLKV-2"), MUTED
    )
    assert_readable(figure)


def test_steps_of_published_losses_are_plain_numbers() -> None:
    axes = present(draw("curves", published_source("mlkv"))).axes[0]
    assert {"10", "1,000", "100,000"} <= {label.get_text() for label in axes.get_xticklabels()}


def test_smoothing_is_a_mean_over_neighbours_and_keeps_a_constant() -> None:
    curve = Curve("a", None, 1, list(range(48)), [float(i % 2) for i in range(48)])
    smooth = curve.smoothed()
    assert len(smooth) == 48
    assert max(smooth[4:-4]) - min(smooth[4:-4]) < 0.15
    assert set(Curve("a", None, 1, [1, 2], [3.0, 3.0]).smoothed()) == {3.0}
