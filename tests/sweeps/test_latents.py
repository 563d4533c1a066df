"""Latents on the command line: which variants, labels and steps a line gives, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from matplotlib.patches import Rectangle

from analysis.figures.layouts import layouts_figure
from analysis.figures.measurements import Measurement
from sweeps.planning.plan import Plan
from sweeps.store.errors import UserError
from sweeps.store.schema import VariantRow
from sweeps.store.typed_json import as_json, from_json
from tests.support.planned import frozen

Planner = Callable[[Sequence[str]], Plan]
BARE = ["sweep.baselines=[]", "measure=none"]
QUICK = ["experiment=quickstart", *BARE]


def labels(plan: Plan) -> list[str]:
    return [variant.label for variant in plan.variants]


def test_every_layout_of_an_experiment_gets_the_ranks_that_are_asked_for(planner: Planner) -> None:
    """An owner of one head has 2 · 32 numbers, of which 8 rotate: more than 56 there is nothing to hold."""
    names = ("MHA-36", "GQA-12", "MLKV-12", "MQA-6", "MLKV-6", "MLKV-3", "MLKV-2", "MLKV-1")
    one_headed = {"MQA-6", "MLKV-3", "MLKV-2", "MLKV-1"}
    plan = planner([*QUICK, "layout.latent=32,64"])
    assert labels(plan) == [
        *(f"{name} r=32" for name in names),
        *(f"{name} r={56 if name in one_headed else 64}" for name in names),
    ]
    sizes = {variant.label: variant.kv_bytes_per_token for variant in plan.variants}
    assert sizes["MHA-36 r=32"] == 6 * (32 + 6 * 8) * variant_bytes(plan)
    assert sizes["MLKV-1 r=56"] == 2 * 32 * variant_bytes(plan), "as much as its keys and values"
    assert len(planner([*QUICK, "layout.latent=56,64", "layout.kv_layers=1", "layout.kv_heads=1"]).variants) == 1


def variant_bytes(plan: Plan) -> int:
    return plan.variants[0].element_bytes


def test_labels_tell_rotated_parts_apart(planner: Planner) -> None:
    line = ["layout=mha", "layout.latent=40", "layout.rotary_dims=4,8", "layout.shared_rotary=false,true", *BARE]
    assert labels(planner(line)) == [
        f"MHA-36 r=40 layout.rotary_dims={dims} layout.shared_rotary={shared}"
        for dims in (4, 8)
        for shared in ("False", "True")
    ]
    owners = ["layout=explicit", "layout.kv_source_layers=[0,0,2,2,4,4]", "layout.kv_heads=[6,2,1]"]
    assert labels(planner([*owners, "layout.latent=80", *BARE])) == ["MLKV-9 r=80/56"]


def test_a_latent_is_calibrated_and_merged_only_where_heads_become_fewer(planner: Planner) -> None:
    line = [*BARE, "layout.latent=40", "layout.kv_heads=6,2", "convert.merge=mean,first"]
    plan = planner(line)
    assert labels(plan) == ["MHA-36 r=40", "GQA-12 r=40 convert.merge=mean", "GQA-12 r=40 convert.merge=first"]
    for variant in plan.variants:
        assert variant.calibrate
        assert variant.convert
        assert variant.convert.parents["calibration"] == variant.calibrate.id
        assert variant.convert.slice["layout"]["latent"] == {"ranks": [40] * 6, "rotary_dims": 8, "shared": False}
        assert ("merge" in variant.convert.slice) is (variant.layout.budget < 36)
    scratch = planner([*BARE, "layout.latent=40", "convert=scratch"])
    assert {step.kind for step in scratch.steps.values()} == {"corpus", "convert", "uptrain", "evaluate"}


def test_the_base_stays_the_baseline_and_layouts_without_a_latent_keep_their_steps(planner: Planner) -> None:
    line = ["layout=mha,mqa", "measure=none"]
    plain, both = planner(line), planner([*line, "layout.latent=null,40"])
    assert plain.steps.keys() < both.steps.keys()
    assert [variant.baseline for variant in both.variants] == ["untouched", "mha", None, None, None]


def test_a_row_with_a_latent_is_read_as_it_was_written(planner: Planner) -> None:
    rows = [variant.row() for variant in planner(["layout=mqa", "layout.latent=null,9", *BARE]).variants]
    assert [from_json(VariantRow, as_json(row)) for row in rows] == rows
    assert ["latent" in as_json(row)["layout"] for row in rows] == [False, True]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["layout.latent=193"], r"layout\.latent = 193: must be 1 to 192, the rank of all keys and values"),
        (["layout.latent=0"], r"layout\.latent = 0: must be greater than 0"),
        (["layout.rotary_dims=4"], r"layout: rotary_dims = 4: is of a latent; set latent too"),
        (["layout.shared_rotary=true"], r"layout: shared_rotary = True: is of a latent; set latent too"),
        (["layout.latent=9", "layout.rotary_dims=3"], r"layout\.rotary_dims = 3: must be even, and 0 to 8: a head "),
        (["layout.latent=9", "layout.rotary_dims=10"], r"layout\.rotary_dims = 10: must be even, and 0 to 8"),
        (["layout.latent=9", "layout.rotary_dims=-2"], r"layout\.rotary_dims = -2: must be greater than or equal to 0"),
        (["layout.latent=9", "model=tiny-gpt2", "layout.rotary_dims=2"], r"even, and 0 to 0: a head has 0 that rotate"),
    ],
)  # fmt: skip
def test_what_no_base_can_have_is_one_line(planner: Planner, line: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planner([*BARE, *line])


def test_the_figure_of_layouts_draws_latents_by_their_bytes(planner: Planner, tmp_path: Path) -> None:
    plan = planner(["layout=mha", "layout.latent=null,96,144", *BARE])
    figure = layouts_figure(frozen(plan, tmp_path))
    assert figure
    [axes] = figure.axes
    assert [text.get_text() for text in axes.texts] == ["6 × 6 = 36", "6 × r 96", "6 × r 144"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["MHA-36", "MHA-36 r=96", "MHA-36 r=144"]
    bars = [patch.get_height() for patch in axes.patches if isinstance(patch, Rectangle)][1::2]
    shares = [bars[6 * row] / bars[0] for row in range(3)]
    assert shares == pytest.approx([1, (96 + 48) / 384, (144 + 48) / 384])
    assert len(axes.lines) == 6 * 5, "lines between heads where there are heads in the cache"


def test_memory_and_speed_call_a_latent_by_its_rank(planner: Planner) -> None:
    [variant] = planner(["layout=mha", "layout.latent=40", "uptrain.lr=1e-3", *BARE]).variants
    cell = {"family": "MHA", "budget": 36, "kv_bytes_per_token": 1, "cache": None, "step": "s", "machine": None}
    names = [
        Measurement(variant=label, batch=1, context=1, metric="m", value=1.0, x=1, **cell).layout  # type: ignore[arg-type]
        for label in (variant.label, "MHA-36 r=40/8 uptrain.lr=0.001", "MHA-36 uptrain.lr=0.001", "untouched")
    ]
    assert names == ["MHA-36 r=40", "MHA-36 r=40/8", "MHA-36", "MHA-36"]
