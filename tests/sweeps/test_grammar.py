"""Products, ranges, globs, zips, grids, budgets and filters: which variants a line stands for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.planning.plan import Plan
from sweeps.planning.variant import Variant
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


def test_the_last_word_on_a_key_counts_for_values_to_sweep_too(planner: Planner) -> None:
    line = [*BARE, "layout=mqa", "uptrain.lr=1e-3,2e-3"]
    assert labels(planner([*line, "uptrain.lr=3e-3"])) == ["MQA-6"]
    assert planner([*line, "uptrain.lr=3e-3"]).config.uptrain.lr == 3e-3
    assert labels(planner([*line, "uptrain.lr=3e-3,4e-3"])) == ["MQA-6 uptrain.lr=0.003", "MQA-6 uptrain.lr=0.004"]
    assert labels(planner([*BARE, "layout=mqa", "uptrain.lr=3e-3", *line[-1:]])) == [
        "MQA-6 uptrain.lr=0.001",
        "MQA-6 uptrain.lr=0.002",
    ]


def test_what_must_be_set_is_set_where_it_is_swept(planner: Planner) -> None:
    budgets = planner([*BARE, "layout=mqa", "uptrain.steps=null", "uptrain.tokens=5000,10000"])
    assert labels(budgets) == ["MQA-6 uptrain.tokens=5000", "MQA-6 uptrain.tokens=10000"]


def test_a_zip_with_the_experiments_grid_varies_both(planner: Planner, tiny: list[str]) -> None:
    line = [*tiny, *BARE, "uptrain.lr=1e-3,2e-3"]
    assert labels(planner([*line, "sweep.zip=[layout.kv_heads,layout.kv_layers,uptrain.lr]"])) == [
        "MQA-2 uptrain.lr=0.001",
        "MLKV-2 uptrain.lr=0.002",
    ]
    with pytest.raises(UserError, match=r"equally many values \(layout\.kv_heads has 2, uptrain\.lr has 3\)"):
        planner([*line[:-1], "uptrain.lr=1,2,3", "sweep.zip=[layout.kv_heads,uptrain.lr]"])


def test_zipped_keys_advance_together(planner: Planner) -> None:
    zipped = ["layout.kv_layers=6,2,1", "layout.kv_heads=1,6,2", "sweep.zip=[layout.kv_layers,layout.kv_heads]"]
    assert labels(planner([*BARE, *zipped])) == ["MQA-6", "MLKV-12", "MLKV-2"]
    with pytest.raises(UserError, match=r"sweep\.zip: .*\(uptrain\.lr has 2, uptrain\.steps has 3\)"):
        planner(["sweep.zip=[uptrain.lr,uptrain.steps]", "uptrain.lr=1,2", "uptrain.steps=1,2,3"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["sweep.zip=[uptrain.lr,uptrain.sed]", "uptrain.lr=1,2", "uptrain.seed=1,2"], r"sed is not swept; did"),
        (["sweep.zip=[uptrain.lr,uptrain.seed]", "uptrain.lr=1,2", "uptrain.seed=1"], r"seed is not swept; .*valid: u"),
        (["sweep.zip=[uptrain.lr,uptrain.lr]", "uptrain.lr=1,2"], r"uptrain\.lr is listed 2 times"),
        (["sweep.zip=[[uptrain.lr,layout],[layout,measure]]", "uptrain.lr=1,2", "layout=mqa,cla", "measure=cpu,gpu"],
         "layout is listed 2 times"),
        (["experiment=quickstart", "sweep.zip=[layout.kv_layers,layout.kv_head]"], r"did you mean layout\.kv_heads\?"),
        (["sweep.zip=[uptrain.lr]"], r"uptrain\.lr is not swept; nothing is"),
    ],
)  # fmt: skip
def test_a_zip_names_what_is_swept_and_each_key_once(planner: Planner, line: list[str], message: str) -> None:
    with pytest.raises(UserError, match=rf"sweep\.zip: .*{message}"):
        planner([*BARE, *line])


def test_the_command_line_replaces_the_experiments_grid(planner: Planner) -> None:
    quick = [*BARE, "experiment=quickstart"]
    assert len(labels(planner(quick))) == 8
    assert labels(planner([*quick, "layout=mqa"])) == ["MQA-6"]
    assert labels(planner([*quick, "layout.kv_layers=6", "layout.kv_heads=2,3"])) == ["GQA-12", "GQA-18"]
    assert labels(planner([*quick, "layout.budget=2"])) == ["MLKV-2 2×1", "MLKV-2 1×2"]
    assert len(labels(planner([*quick, "uptrain.lr=1e-3,1e-4"]))) == 16


def test_groups_of_neighbours_and_drawn_layouts_are_layouts_like_any_other(planner: Planner) -> None:
    plan = planner([*BARE, "layout=groups", "layout.groups=[2,1,3],[3,2,1],[2,2,2]", "layout.kv_heads=[3,2,1],1"])
    assert labels(plan) == [
        "Custom-6 layout.groups=[2,1,3]",
        "Custom-3 layout.groups=[2,1,3]",
        "Custom-6 layout.groups=[3,2,1]",
        "Custom-3 layout.groups=[3,2,1]",
        "MLKV-6",
        "MLKV-3",
    ]
    assert [v.layout.draw() for v in plan.variants][::2] == ["3 ─ 2 1 ─ ─", "3 ─ ─ 2 ─ 1", "3 ─ 2 ─ 1 ─"]
    drawn = planner([*BARE, "layout=drawn", "layout.draw=range(0,9)", "sweep.filter=\"layout['draw'] > 6\""])
    assert [v.layout.draw() for v in drawn.variants] == ["6 6 ─ 3 ─ ←1", "3 ─ ─ 6 6 ←0"]


def test_a_budget_is_every_layout_that_has_it(planner: Planner) -> None:
    assert labels(planner([*BARE, "layout.budget=6"])) == ["MQA-6", "MLKV-6 3×2", "MLKV-6 2×3", "MLKV-6 1×6"]
    assert labels(planner([*BARE, "layout.budget=6", "layout.kv_layers=2"])) == ["MLKV-6"]
    with pytest.raises(UserError, match=r"layout\.budget = 37: .* takes 1, 2, 3, .* 36"):
        planner(["layout.budget=37"])


def test_filters_see_the_configuration_and_the_layout(planner: Planner) -> None:
    swept = [*BARE, "layout.budget=2,6", "uptrain.lr=1e-3,1e-4"]
    filtered = planner([*swept, 'sweep.filter="kv_layers > 1 and uptrain.lr < 5e-4 and budget == 6"'])
    assert labels(filtered) == ["MQA-6", "MLKV-6 3×2", "MLKV-6 2×3"]
    with pytest.raises(UserError, match=r"'kv_layer' is not defined .* names: .*kv_layers"):
        planner([*swept, 'sweep.filter="kv_layer > 1"'])
    with pytest.raises(UserError, match="no variant is left"):
        planner([*swept, 'sweep.filter="budget > 99"'])


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("1/0", "division by zero"),
        ("[1][5]", "list index out of range"),
        ("int(name)", "invalid literal for int"),
        ("uptrain['nope']", "no key 'nope'"),
        ("int('9' * 5000)", "Exceeds the limit"),
        ("budget = 6", "invalid syntax"),
        ("budget; 6", "invalid syntax"),
        ("randint(3)", "Function 'randint' not defined"),
        ("[x for x in range(10)]", "Function 'range' not defined"),
        ("(" * 300 + ")" * 300, "too many nested parentheses"),
        ("2 ** 10 ** 10", "I don't want to evaluate"),
        ("12", "is 12, neither true nor false; compare it, as in `budget > 6`"),
        ("budget", "neither true nor false"),
        ("name or None", "neither true nor false"),
        ("None", "is None, neither true nor false"),
    ],
)
def test_a_filter_that_cannot_be_evaluated_is_one_line(planner: Planner, expression: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"sweep\.filter = .*: .*{re.escape(reason)}.*; names: .*kv_layers") as caught:
        planner([*BARE, f'sweep.filter="{expression}"'])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("layout.kv_layers=range(0,1,0)", "has no values"),
        ("uptrain.lr=range(0.1,0.5,0.0)", "has no values"),
        ("uptrain.lr=range(0,inf)", "has no values"),
        ("layout.kv_layers=range(1,4,-1)", "has no values"),
        ("uptrain.lr=interval(0,1)", "an interval has no end of values"),
        ("model=glob(zzz*)", "glob matches nothing; valid: .*tiny"),
        ("uptrain.lr=glob(*)", "glob is for groups of configurations"),
        ("uptrain.seed=range(1,1000000000000)", "999,999,999,999 points .*at most 100,000 are planned together"),
        ("+sweep.grid={uptrain.seed:'range(1,1000000000000)'}", "999,999,999,999 points"),
        (f"uptrain.seed=range(1,1{'0' * 4000})", r"more than 10\^18 points"),
        ("+sweep.grid={uptrain.seed:[]}", r"sweep\.grid\.uptrain\.seed = \[\]: has no values"),
        ("+sweep.grid={uptrain.lr:{a:1}}", "not an override|cannot|must be"),
        ("+sweep.grid={name:[a,b]}", "name: cannot be swept"),
        ("cluster.slots=1,2", r"cluster\.slots: cannot be swept"),
    ],
)
def test_what_is_no_list_of_values_is_one_line(planner: Planner, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        planner([*BARE, line])
    assert str(caught.value).isprintable()


def test_points_are_counted_before_any_is_planned(planner: Planner) -> None:
    with pytest.raises(UserError, match=r"the sweep has 998,001 points \(uptrain\.seed has 999, uptrain\.lr has 999\)"):
        planner([*BARE, "uptrain.seed=range(1,1000)", "uptrain.lr=range(1,1000)"])


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


def test_a_zipped_value_that_differs_is_in_every_label(planner: Planner) -> None:
    zipped = ["layout.kv_layers=6,2", "layout.kv_heads=1,6", "uptrain.lr=1e-3,1e-4"]
    line = [*zipped, "sweep.zip=[layout.kv_layers,layout.kv_heads,uptrain.lr]"]
    assert labels(planner(line)) == [
        "untouched",
        "MHA-36 uptrain.lr=0.001",
        "MHA-36 uptrain.lr=0.0001",
        "MQA-6 uptrain.lr=0.001",
        "MLKV-12 uptrain.lr=0.0001",
    ]


def test_heads_that_do_not_go_with_their_width_are_named(planner: Planner) -> None:
    scratch = [*BARE, "convert=scratch", "layout=mqa", "model.decoder.heads=6,3"]
    assert labels(planner(scratch)) == ["MQA-6 model.decoder.heads=6", "MQA-6 model.decoder.heads=3"]
    wide = labels(planner([*scratch, "model.decoder.head_dim=32,16"]))
    assert wide[0] == "H32 MQA-6 model.decoder.heads=6"
    assert len(set(wide)) == 4


SWEPT = {
    "uptrain.lr": ["0.1", "0.2", "0.3"],
    "uptrain.seed": ["1", "2", "3"],
    "uptrain.micro_batch": ["1", "2", "4"],
    "convert.merge": ["mean", "first", "pairwise"],
    "base.lr": ["0.1", "0.2", "0.3"],
    "corpus.seed": ["1", "2", "3"],
    "layout.kv_heads": ["1", "2", "6"],
    "layout.kv_layers": ["6", "3", "2"],
}


def applies(key: str, variant: Variant) -> bool:
    """Whether the variant would be another with another value of the key."""
    if key == "convert.merge":
        return variant.layout != variant.model.layout
    return getattr(variant, key.partition(".")[0]) is not None


def value(key: str, variant: Variant) -> str:
    group, _, name = key.partition(".")
    return str(getattr(getattr(variant.config, group), name))


@settings(max_examples=10)
@given(
    st.lists(st.sampled_from(sorted(SWEPT)), min_size=2, max_size=4, unique=True),
    st.integers(2, 3),
    st.booleans(),
    st.booleans(),
)
def test_labels_are_unique_and_name_every_value_that_differs(
    planner: Planner, keys: list[str], n: int, zipped: bool, baselines: bool
) -> None:
    line = ["evaluate=none", "measure=none", *(f"{key}={','.join(SWEPT[key][:n])}" for key in keys)]
    line += [] if baselines else ["sweep.baselines=[]"]
    together = [f"sweep.zip=[{','.join(keys)}]"] if zipped else [f"sweep.zip=[{','.join(keys[:2])}]"]
    variants = planner([*line, *together]).variants
    assert len({variant.label for variant in variants}) == len(variants)
    assert not any("#" in variant.label for variant in variants)
    for key in (key for key in keys if not key.startswith("layout") and key != "uptrain.micro_batch"):
        ours = [variant for variant in variants if applies(key, variant)]
        if len({value(key, variant) for variant in ours}) > 1:
            assert all(f"{key}={value(key, variant)}" in variant.label.split() for variant in ours), key


def test_a_label_says_the_rule_that_was_asked_for_and_head_widths_that_differ(planner: Planner) -> None:
    scratch = [*BARE, "convert=scratch", "layout.kv_heads=1"]
    assert labels(planner([*scratch, "layout=cla,mlkv", "layout.kv_layers=3"])) == ["CLA-3"], "one layout, one variant"
    assert labels(planner([*scratch, "layout.pattern=even,cla,pizza", "layout.kv_layers=3"])) == ["MLKV-3", "Pizza-3"]
    widths = ["model.decoder.heads=6,12", "model.decoder.head_dim=32,16"]
    zipped = "sweep.zip=[model.decoder.heads,model.decoder.head_dim]"
    assert labels(planner([*scratch, "layout=mqa", *widths, zipped])) == ["H32 MQA-6", "H16 MQA-6"]


def test_a_sweep_has_one_scale(planner: Planner) -> None:
    with pytest.raises(UserError, match="scale: cannot be swept"):
        planner(["experiment=mlkv_table", "scale=full,small"])
