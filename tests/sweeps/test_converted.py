"""Which steps score a checkpoint against its base, and a conversion before it is uptrained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from sweeps.dispatch.grouping import job_specs
from sweeps.planning.config import ClusterConfig
from sweeps.planning.plan import Plan
from sweeps.planning.variant import Variant
from sweeps.store.errors import UserError
from sweeps.store.schema import VariantSteps
from sweeps.store.typed_json import as_json, from_json

Planner = Callable[[Sequence[str]], Plan]
BOTH = ["layout=mqa", "evaluate.tasks=[bits_per_byte,agreement]", "measure=none"]


def variants(plan: Plan) -> dict[str, Variant]:
    return {variant.label: variant for variant in plan.variants}


def test_agreement_has_the_base_as_a_parent_and_is_of_no_base_itself(planner: Planner) -> None:
    found = variants(planner([*BOTH, "evaluate.converted=[agreement]"]))
    assert list(found["untouched"].evaluate) == ["bits_per_byte"]
    for label in ("MHA-36", "MQA-6"):
        own = found[label]
        assert own.base
        assert own.convert
        assert own.evaluate["agreement"].parents["base"] == own.base.id
        assert "base" not in own.evaluate["bits_per_byte"].parents
        parents = own.converted["agreement"].parents
        assert (parents["base"], parents["checkpoint"]) == (own.base.id, own.convert.id)


def test_what_is_trained_from_scratch_has_no_base_to_agree_with(planner: Planner) -> None:
    scratch = [*BOTH, "convert.start=scratch"]
    for variant in planner(scratch).variants:
        assert list(variant.evaluate) == ["bits_per_byte"]
        assert variant.converted == {}
    with pytest.raises(UserError, match=r"convert = scratch: has no base that agreement \(evaluate\.accuracy, axis\)"):
        planner([*scratch, "evaluate.accuracy=[]", "evaluate.axis=[agreement,agreement]"])


def test_a_conversion_is_scored_once_however_it_is_uptrained(planner: Planner) -> None:
    plan = planner([*BOTH, "evaluate.converted=[bits_per_byte]", "uptrain.steps=2,4"])
    short, long = (variant for variant in plan.variants if variant.label.startswith("MQA-6"))
    assert short.converted == long.converted
    assert short.convert
    assert short.converted["bits_per_byte"].parents["checkpoint"] == short.convert.id
    assert short.converted["bits_per_byte"].slice == short.evaluate["bits_per_byte"].slice


def test_without_uptraining_the_score_of_the_conversion_is_the_variants_own(planner: Planner) -> None:
    plan = planner([*BOTH, "uptrain=none"])
    own = variants(plan)["MQA-6"]
    assert own.converted["bits_per_byte"].id == own.evaluate["bits_per_byte"].id
    ids = [step.id for step in own.steps]
    assert len(set(ids)) == len(ids)
    assert own.row().steps.ids == ids


def test_steps_of_conversions_are_written_and_read_and_earlier_plans_have_none(planner: Planner) -> None:
    steps = variants(planner(BOTH))["MQA-6"].row().steps
    assert from_json(VariantSteps, as_json(steps)) == steps
    earlier = {key: value for key, value in as_json(steps).items() if key != "converted"}
    assert from_json(VariantSteps, earlier).converted is None
    bare = variants(planner([*BOTH, "evaluate.converted=[]"]))["MQA-6"].row().steps
    assert "converted" not in as_json(bare)


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ([], ["bits_per_byte"]),
        (["evaluate.tasks=[agreement]"], []),
        (["evaluate.tasks=[agreement]", "evaluate.converted=agreement"], ["agreement"]),
    ],
)
def test_the_options_own_go_with_the_tasks_that_a_line_replaces(
    planner: Planner, line: list[str], left: list[str]
) -> None:
    plan = planner(["layout=mqa", "measure=none", "evaluate.accuracy=[]", *line])
    assert list(variants(plan)["MQA-6"].converted) == left


def test_a_conversion_is_scored_on_no_task_that_nothing_else_is(planner: Planner) -> None:
    with pytest.raises(UserError, match=r"evaluate: converted = bits_per_bite: not among tasks; did you mean bits_per"):
        planner([*BOTH, "evaluate.converted=[bits_per_bite]"])


def test_what_scores_a_conversion_runs_behind_the_first_training_of_it(planner: Planner) -> None:
    steps = planner([*BOTH, "sweep.baselines=[]", "uptrain.steps=2,4"]).steps
    jobs = [[steps[id].kind for id in job.steps] for job in job_specs(steps.values(), ClusterConfig())]
    assert ["convert", "uptrain", "evaluate", "evaluate", "evaluate"] in jobs
    assert ["convert", "uptrain", "evaluate", "evaluate"] in jobs
