"""Keys and values apart on the command line: which variants, labels and steps a line gives, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from matplotlib.patches import Rectangle

from analysis.data.gather import _of_both
from analysis.figures.layouts import layouts_figure
from analysis.figures.measurements import Measurement
from analysis.tables.owners import owners_of
from sweeps.planning.plan import Plan
from sweeps.store.errors import UserError
from sweeps.store.schema import VariantRow
from sweeps.store.typed_json import as_json, from_json
from tests.support.planned import frozen

Planner = Callable[[Sequence[str]], Plan]
BARE = ["sweep.baselines=[]", "measure=none"]
OPTIONS = ["layout=fusedkv_lite,fusedkv_lite_reverse,svformer,kv_budget", *BARE]
EXPLICIT = ["layout=explicit", "layout.kv_source_layers=[0,0,2,2,4,4]", "layout.value_source_layers=[0,1,1,1,1,1]"]


def test_options_and_single_keys_make_layouts(planner: Planner) -> None:
    drawn = {variant.label: variant.layout.draw() for variant in planner(OPTIONS).variants}
    assert drawn == {
        "FusedKV-Lite-18": "K 6 6 6 ─ ─ ─  V 6 6 6 ←0 ←0 ←0",
        "FusedKV-Lite-reverse-18": "K 6 6 6 ←0 ←0 ←0  V 6 6 6 ─ ─ ─",
        "SVFormer-21": "K 6 6 6 6 6 6  V 6 ─ ─ ─ ─ ─",
        "GQA-15 k=3 v=2": "K 3 3 3 3 3 3  V 2 2 2 2 2 2",
    }
    explicit = planner([*EXPLICIT, "layout.kv_heads=[6,2,1]", "layout.value_heads=2,[1,3]", *BARE])
    assert [variant.layout.draw() for variant in explicit.variants] == [
        "K 6 ─ 2 ─ 1 ─  V 2 2 ─ ─ ─ ─",
        "K 6 ─ 2 ─ 1 ─  V 1 3 ─ ─ ─ ─",
    ]
    assert [variant.label for variant in explicit.variants] == ["Custom-6.5 k=6/2/1 v=2", "Custom-6.5 k=6/2/1 v=1/3"]


def test_sizes_choose_among_layouts_of_such_a_pattern(planner: Planner) -> None:
    plan = planner(["layout=fusedkv_lite", "layout.budget=12", "layout.kv_heads=3", *BARE])
    assert [variant.label for variant in plan.variants] == ["FusedKV-Lite-12"]
    plan = planner(["layout=mha", "layout.kv_heads=3", "layout.value_heads=1,2,3", *BARE])
    assert [variant.label for variant in plan.variants] == ["GQA-12 k=3 v=1", "GQA-15 k=3 v=2", "GQA-18"]
    share = planner(["layout.pattern=even,fusedkv_lite", "layout.cache=1/2", "layout.kv_layers=3", *BARE])
    assert [variant.label for variant in share.variants] == ["MLKV-18", "FusedKV-Lite-18"]


def test_layouts_with_both_together_keep_their_steps(planner: Planner) -> None:
    plain = planner(["layout=mha,mqa", "measure=none"])
    both = planner(["layout=mha,mqa,svformer", "measure=none"])
    assert plain.steps.keys() < both.steps.keys()
    same = planner(["layout=mqa", "layout.value_heads=1", "measure=none"])
    assert same.steps.keys() == planner(["layout=mqa", "measure=none"]).steps.keys()


def test_a_row_is_read_as_it_was_written(planner: Planner) -> None:
    rows = [variant.row() for variant in planner([*OPTIONS, "layout.kv_heads=3"]).variants]
    assert [from_json(VariantRow, as_json(row)) for row in rows] == rows
    assert [row.budget for row in rows] == [9, 9, 10.5, 15]
    assert as_json(rows[0])["layout"] == {
        "kv_source_layers": [0, 1, 2, 2, 2, 2],
        "kv_heads": [3, 3, 3],
        "heads": 6,
        "value_source_layers": [0, 1, 2, 0, 0, 0],
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["layout.value_heads=4"], r"model tiny: value_heads = 4 at layer 0: must divide 6 query heads \(1, 2, 3, 6\)"),
        (["layout=svformer", "layout.kv_layers=3"], r"layout\.kv_layers = 3: pattern svformer on 6 layers takes 6 \("),
        (["layout.value_source_layers=[0,0,0,0,0,0]"], r"value_source_layers = .*: only pattern explicit reads it"),
        ([*EXPLICIT, "layout.kv_heads=[6,2,1]"], r"value_heads is unset, and kv_heads has 3 entries for 2 owners"),
        (
            [*EXPLICIT[:2], "layout.value_source_layers=[0,0,1,0,0,0]", "layout.kv_heads=1"],
            r"value_source_layers\[2\] = 1: layer 1 keeps no values, it reads 0",
        ),
        (["layout=svformer", "layout.latent=8"], r"layout\.latent = 8: a latent holds keys and values together, and "),
        (
            ["layout=fusedkv_lite", "layout.kv_heads=3", "convert.merge=svd", "convert.grouping=similar"],
            r"convert\.grouping = similar: keys and values of FusedKV-Lite-9 merge in different groups",
        ),
        (
            ["layout=svformer", "elastic=nested", "elastic.pattern=svformer"],
            r"elastic\.pattern = svformer: has other sources for values than for keys; valid: even, cla",
        ),
    ],
)
def test_what_cannot_be_is_one_line(planner: Planner, line: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        planner([*BARE, *line])
    assert "\n" not in str(caught.value)


def test_the_figure_of_layouts_draws_keys_above_values(planner: Planner, tmp_path: Path) -> None:
    plan = planner(["layout=mha,svformer", *BARE])
    figure = layouts_figure(frozen(plan, tmp_path))
    assert figure
    [axes] = figure.axes
    assert [text.get_text() for text in axes.texts] == ["6 × 6 = 36", "K 36 V 6"]
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    plain, keys, values = boxes[:12], boxes[12:24], boxes[24:]
    assert [len(plain), len(keys), len(values)] == [12, 12, 7], "a box for each layer, and a bar for each owner"
    assert keys[0].get_height() + values[0].get_height() < plain[0].get_height()
    assert {keys[0].get_y(), values[0].get_y()} == {min(b.get_y() for b in keys), max(b.get_y() for b in values)}
    assert "two bars: keys above, values below" in "".join(text.get_text() for text in figure.texts)


def test_tables_name_both_owners_and_sizes(planner: Planner, tmp_path: Path) -> None:
    plan = planner(["layout=mqa,svformer,kv_budget", *BARE])
    rows = [variant.row() for variant in plan.variants]
    texts = owners_of(frozen(plan, tmp_path))
    assert list(texts.values()) == ["all", "K all; V 0", "all"]
    sizes = [_of_both(row.layout, lambda part: " ".join(map(str, part.kv_heads))) for row in rows]
    assert sizes == ["1 1 1 1 1 1", "6 6 6 6 6 6 + 6", "3 3 3 3 3 3 + 2 2 2 2 2 2"]


def test_memory_and_speed_call_a_layout_by_its_head_counts() -> None:
    cell = {"family": "GQA", "budget": None, "kv_bytes_per_token": 1, "cache": None, "step": "s", "machine": None}
    names = [
        Measurement(variant=label, batch=1, context=1, metric="m", value=1.0, x=1, **cell).layout  # type: ignore[arg-type]
        for label in ("GQA-7.5 k=3 v=2", "GQA-7.5 k=3 v=2 uptrain.lr=0.001")
    ]
    assert names == ["GQA-7.5 k=3 v=2", "GQA-7.5 k=3 v=2"]
