"""Products, ranges, globs, zips, grids, budgets and filters: which variants a line stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from sweeps.planning.plan import Plan
from sweeps.store.errors import UserError

Planner = Callable[[Sequence[str]], Plan]
BARE = ["sweep.baselines=[]", "measure=none"]


def labels(plan: Plan) -> list[str]:
    return [variant.label for variant in plan.variants]


def test_products_ranges_and_globs(planner: Planner) -> None:
    assert labels(planner([*BARE, "layout.kv_layers=range(1,4)", "layout.kv_heads=1,6"])) == [
        "MLKV-1",
        "MLKV-6",
        "MLKV-2",
        "MLKV-12",
        "MLKV-3",
        "MLKV-18",
    ]
    assert labels(planner([*BARE, "layout=glob(m*)"])) == ["MHA-36", "MLKV-3", "MQA-6"]


def test_zipped_keys_advance_together(planner: Planner) -> None:
    zipped = ["layout.kv_layers=6,2,1", "layout.kv_heads=1,6,2", "sweep.zip=[layout.kv_layers,layout.kv_heads]"]
    assert labels(planner([*BARE, *zipped])) == ["MQA-6", "MLKV-12", "MLKV-2"]
    with pytest.raises(UserError, match=r"sweep\.zip: .*\(uptrain\.lr has 2, uptrain\.steps has 3\)"):
        planner(["sweep.zip=[uptrain.lr,uptrain.steps]", "uptrain.lr=1,2", "uptrain.steps=1,2,3"])


def test_the_command_line_replaces_the_experiments_grid(planner: Planner) -> None:
    quick = [*BARE, "experiment=quickstart"]
    assert len(labels(planner(quick))) == 8
    assert labels(planner([*quick, "layout=mqa"])) == ["MQA-6"]
    assert labels(planner([*quick, "layout.kv_layers=6", "layout.kv_heads=2,3"])) == ["GQA-12", "GQA-18"]
    assert labels(planner([*quick, "layout.budget=2"])) == ["MLKV-2 2×1", "MLKV-2 1×2"]
    assert len(labels(planner([*quick, "uptrain.lr=1e-3,1e-4"]))) == 16


def test_a_budget_is_every_layout_that_has_it(planner: Planner) -> None:
    assert labels(planner([*BARE, "layout.budget=6"])) == ["MQA-6", "MLKV-6 3×2", "MLKV-6 2×3", "MLKV-6 1×6"]
    assert labels(planner([*BARE, "layout.budget=6", "layout.kv_layers=2"])) == ["MLKV-6"]
    with pytest.raises(UserError, match=r"layout\.budget = 37: .* takes 1, 2, 3, .* 36"):
        planner(["layout.budget=37"])


def test_filters_see_the_configuration_and_the_layout(planner: Planner) -> None:
    swept = [*BARE, "layout.budget=2,6", "uptrain.lr=1e-3,1e-4"]
    kept = planner([*swept, 'sweep.filter="kv_layers > 1 and uptrain.lr < 5e-4 and budget == 6"'])
    assert labels(kept) == ["MQA-6", "MLKV-6 3×2", "MLKV-6 2×3"]
    with pytest.raises(UserError, match=r"'kv_layer' is not defined .* names: .*kv_layers"):
        planner([*swept, 'sweep.filter="kv_layer > 1"'])
    with pytest.raises(UserError, match="no variant is left"):
        planner([*swept, 'sweep.filter="budget > 99"'])


def test_baselines_come_along_once(planner: Planner) -> None:
    plan = planner(["layout.kv_heads=1,2"])
    assert [(v.label, v.baseline) for v in plan.variants] == [
        ("untouched", "untouched"),
        ("MHA-36", "mha"),
        ("MQA-6", None),
        ("GQA-12", None),
    ]
    assert [v.baseline for v in planner(["layout=mha"]).variants] == ["untouched", "mha"]
    assert labels(planner(["layout=mqa", "convert=scratch"])) == ["MHA-36", "MQA-6"]


def test_labels_tell_swept_values_apart(planner: Planner) -> None:
    plan = planner(["layout=mqa", "uptrain.lr=1e-3,1e-4", "convert.merge=mean,first"])
    assert labels(plan)[0] == "untouched"
    assert len(set(labels(plan))) == len(plan.variants) == 1 + 2 + 4
    assert "MQA-6 uptrain.lr=0.0001 convert.merge=first" in labels(plan)


def test_a_label_says_the_rule_that_was_asked_for_and_head_widths_that_differ(planner: Planner) -> None:
    scratch = [*BARE, "convert=scratch", "layout.kv_heads=1"]
    assert labels(planner([*scratch, "layout=cla,mlkv", "layout.kv_layers=3"])) == ["CLA-3"], "one layout, one variant"
    assert labels(planner([*scratch, "layout.pattern=even,cla,pizza", "layout.kv_layers=3"])) == ["MLKV-3", "Pizza-3"]
    widths = ["model.decoder.heads=6,12", "model.decoder.head_dim=32,16"]
    zipped = "sweep.zip=[model.decoder.heads,model.decoder.head_dim]"
    assert labels(planner([*scratch, "layout=mqa", *widths, zipped])) == ["H32 MQA-6", "H16 MQA-6"]


def test_a_sweep_has_one_scale(planner: Planner) -> None:
    with pytest.raises(UserError, match="scale: one at a time"):
        planner(["experiment=mlkv_table", "scale=full,small"])
