"""Runs that learn from their base: what is planned, what is refused, and what a sweep leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from analysis.data.curves import of_store
from analysis.figures.curves import curves_of
from analysis.statistics.sources import load
from mlkv.training_recipes import TeacherRecipe
from sweeps.cli.view import _teacher
from sweeps.planning.compose import Composer
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.reconcile import Costs
from sweeps.planning.resolve import Resolver
from sweeps.planning.teachers import teacher_costs
from sweeps.steps.step import Step
from sweeps.store.errors import UserError
from sweeps.store.store import Store
from sweeps.worker.supervisor import DONE, Worker
from tests.support.read_back import present
from tests.support.shell import TEST_CONF
from tests.support.workers_here import workers_here

Planner = Callable[[Sequence[str]], Plan]
BARE = ["evaluate=none", "measure.batch_sizes=[]", "sweep.baselines=[]"]
RUNGS = ["uptrain.steps=null", "uptrain.rungs=[4,8]", "uptrain.schedule=wsd"]
DISTILLED, STORED = "uptrain.teacher=base", "uptrain.teacher_logits=stored"


def steps_of(plan: Plan, kind: str) -> list[Step]:
    return [step for step in plan.steps.values() if step.kind == kind]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (["uptrain.temperature=2"], r"^uptrain.temperature = 2.0: only uptrain.teacher=base reads it$"),
        ([STORED], "^uptrain.teacher_logits = stored: only uptrain.teacher=base reads it$"),
        ([DISTILLED, STORED, "uptrain.hidden_weight=1"], "^uptrain: hidden_weight = 1: stored logits have no hidden"),
        (
            [DISTILLED, STORED, *RUNGS],
            r"^teacher.tokens is unset: all rungs of a chain .*; set it \(2048 is what the la",
        ),
        ([DISTILLED, "convert=scratch"], "^uptrain.teacher = base: convert = scratch has no base to learn from"),
        (["base.teacher=base"], "^base.teacher = base: a base has no teacher; set uptrain.teacher$"),
        ([DISTILLED, "uptrain.distill_weight=2"], "^uptrain.distill_weight = 2: must be less than or equal to 1"),
        ([DISTILLED, "uptrain.temperature=0"], "^uptrain.temperature = 0: must be greater than or equal to 0.001"),
        (
            [DISTILLED, "teacher.top_k=8"],
            "^teacher.top_k=8: no run of this sweep reads it; set uptrain.teacher_logits=sto",
        ),
    ],
)
def test_what_would_be_ignored_or_cannot_work_is_refused(
    planner: Planner, tiny: list[str], line: list[str], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        planner([*tiny, *BARE, *line])


def test_a_run_is_identified_by_its_teacher_and_by_what_it_takes_from_it(planner: Planner, tiny: list[str]) -> None:
    ids = {
        line: steps_of(planner([*tiny, *BARE, "layout=mqa", *line.split()]), "uptrain")[0]
        for line in (
            "",
            "uptrain.temperature=1 uptrain.distill_weight=1",
            DISTILLED,
            f"{DISTILLED} uptrain.distill_weight=0.5",
            f"{DISTILLED} {STORED}",
            f"{DISTILLED} {STORED} teacher.top_k=8",
        )
    }
    plain, same, *others = (step.id for step in ids.values())
    assert plain == same
    assert len({plain, *others}) == 5
    assert "teacher" not in ids[""].slice
    assert ids[DISTILLED].parents["teacher"].startswith("base-")
    assert ids[f"{DISTILLED} {STORED}"].parents["teacher"].startswith("teacher-")


def test_one_store_of_predictions_serves_all_layouts_seeds_and_rates(planner: Planner, tiny: list[str]) -> None:
    line = [*tiny, *BARE, DISTILLED, STORED, "uptrain.seed=1,2", "uptrain.lr=1e-4,1e-3", "convert.merge=mean,first"]
    plan = planner(line)
    (teacher,) = steps_of(plan, "teacher")
    assert len(steps_of(plan, "uptrain")) == 16
    assert {step.parents["teacher"] for step in steps_of(plan, "uptrain")} == {teacher.id}
    run = plan.config.uptrain.batch_size * plan.config.corpus.sequence_length
    vocabulary = plan.variants[0].model.shape.vocab_size
    assert teacher.slice == {"top_k": min(1024, vocabulary), "tokens": 4 * run, "seed": 42, "precision": "auto"}
    warm = steps_of(planner([*line, "uptrain.temperature=2"]), "teacher")[0]
    assert warm.slice == {**teacher.slice, "temperature": 2.0}
    epochs = steps_of(planner([*line, "uptrain.steps=null", "uptrain.epochs=0.5"]), "teacher")[0]
    assert epochs.slice == {**teacher.slice, "tokens": None, "share": 0.5}


@pytest.mark.parametrize(("given", "stored"), [({"steps": 10}, 5120), ({"tokens": 1025}, 1536)])
def test_as_many_tokens_are_stored_as_a_run_needs(
    given: dict[str, int], stored: int, planner: Planner, tiny: list[str]
) -> None:
    line = ["uptrain.steps=null", *(f"uptrain.{name}={value}" for name, value in given.items()), "uptrain.batch_size=8"]
    (teacher,) = steps_of(planner([*tiny, *BARE, DISTILLED, STORED, *line]), "teacher")
    assert teacher.slice["tokens"] == stored


def test_the_rungs_of_a_chain_learn_from_one_store_of_predictions(planner: Planner, tiny: list[str]) -> None:
    line = [*tiny, *BARE, "layout=mqa", DISTILLED, STORED, *RUNGS, "teacher.tokens=512"]
    plan = planner(line)
    (teacher,), (first, last) = steps_of(plan, "teacher"), steps_of(plan, "uptrain")
    assert {first.parents["teacher"], last.parents["teacher"]} == {teacher.id}
    assert last.parents["shorter"] == first.id
    trunk = 4 - round(0.2 * 4)
    assert present(teacher_costs(plan, Costs({}))).tokens == (4 + 8 - trunk) * 4 * 64


def test_a_plan_says_what_asking_and_storing_cost(planner: Planner, tiny: list[str]) -> None:
    costs = Costs({"uptrain": 1.0})
    line = [*tiny, *BARE, DISTILLED, "teacher.top_k=100", "uptrain.teacher_logits=online,stored"]
    plan = planner(line)
    found = present(teacher_costs(plan, costs))
    run = 4 * 4 * 64
    assert (found.online, found.stored, found.tokens, found.stored_tokens) == (2, 2, 4 * run, run)
    assert found.bytes == 16 * TeacherRecipe(top_k=100).row_bytes(64, 512) == 16 * (128 + 63 * (200 + 202))
    work = {step.id: present(costs.seconds(step)) for step in plan.steps.values() if step.kind == "uptrain"}
    plain = [step for step in planner([*tiny, *BARE]).steps.values() if step.kind == "uptrain"]
    assert found.seconds == pytest.approx(sum(present(costs.seconds(step)) for step in plain) / 3 * 2)
    assert sum(work.values()) == pytest.approx(sum(present(costs.seconds(step)) for step in plain) * (1 + 4 / 3))
    (shown,) = _teacher(found)
    assert shown.plain.startswith(
        "teacher: online and stored (uptrain.teacher_logits); online: 4 runs ask it on 4.1 K tokens in all ("
    )
    assert "; stored: once on 1 K tokens (" in shown.plain
    assert teacher_costs(planner([*tiny, *BARE]), costs) is None
    apart = planner([*tiny, *BARE, DISTILLED, "uptrain.documents=apart"])
    assert present(teacher_costs(apart, costs)).stored_tokens == run, "though it could not be trained with these"


def test_a_distilled_sweep_leaves_curves_of_what_its_losses_are_made_of(tiny: list[str], tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    line = [*tiny, *BARE, "layout=mqa", DISTILLED, STORED]
    plan = make_plan(Composer(TEST_CONF), Resolver(store), line)
    saved = freeze(plan, store, line)
    with workers_here():
        assert Worker(store).run(list(plan.steps)) == DONE
    logged = of_store(store, saved)
    assert set(logged["metric"]) >= {"train/loss", "train/kl", "train/cross_entropy"}
    (step,) = steps_of(plan, "uptrain")
    assert present(store.step(step.id).record()).facts["teacher_logits"] == "stored"
    (teacher,) = steps_of(plan, "teacher")
    assert json.loads((store.step(teacher.id).out / "teacher.json").read_text())["rows"] == 16
    drawn = {curve.losses[0] for curve in curves_of(load(store, "tiny"))}
    entropies = logged[(logged["metric"] == "train/cross_entropy") & (logged["global_step"] == 1)]["value"]
    assert drawn == set(entropies)
