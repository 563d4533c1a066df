"""Rungs of a sweep: which steps they are, and that a longer chain runs what is missing alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from analysis.data.gather import gather
from analysis.page.page_json import _steps
from analysis.statistics.results import results
from analysis.statistics.sources import load
from analysis.tables.paper import make_tables
from sweeps.dispatch.grouping import job_specs
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan
from sweeps.steps.registry import whole_history
from sweeps.store.errors import UserError
from sweeps.store.prune import prunable
from sweeps.store.store import Store
from sweeps.tracking.runs import SweepRuns
from sweeps.worker.supervisor import Worker
from tests.support.read_back import present
from tests.support.workers_here import workers_here

Planner = Callable[[Sequence[str]], Plan]
CHAIN = ["uptrain.schedule=wsd", "uptrain.decay=0.5", "evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]"]
CHAIN += ["measure.batch_sizes=[]", "layout.kv_layers=1", "layout.kv_heads=1"]


def trainings(plan: Plan, label: str = "MLKV-1") -> dict[int, str]:
    """By number of steps, the ids of a layout's trainings."""
    found = {}
    for variant in plan.variants:
        if variant.label.startswith(label) and variant.uptrain:
            found[variant.uptrain.slice["rungs"][-1]] = variant.uptrain.id
    return found


def test_a_longer_chain_has_the_steps_of_a_shorter_one(planner: Planner, tiny: list[str]) -> None:
    one, two, three = (planner([*tiny, *CHAIN, f"uptrain.rungs=[{rungs}]"]).steps for rungs in ("2", "2,4", "2,4,8"))
    assert one.keys() < two.keys() < three.keys()
    added = Counter(step.kind for id, step in three.items() if id not in two)
    assert added == {"uptrain": 2, "evaluate": 2}, "of the layout, and of the base trained equally"
    assert trainings(planner([*tiny, *CHAIN, "uptrain.rungs=[4]"]))[4] not in two, "it has no ancestor"


def test_one_run_of_the_schedule_can_be_continued(planner: Planner, tiny: list[str]) -> None:
    alone = planner([*tiny, *CHAIN, "uptrain.steps=4"])
    chain = planner([*tiny, *CHAIN, "uptrain.rungs=[4,8]"])
    assert trainings(alone)[4] == trainings(chain)[4]
    assert [variant.label for variant in alone.variants] == ["untouched", "MHA-4", "MLKV-1"]


def test_each_rung_is_a_variant_like_a_swept_length(planner: Planner, tiny: list[str]) -> None:
    chain = planner([*tiny, *CHAIN, "uptrain.rungs=[2,4]"])
    swept = planner([*tiny, *CHAIN[2:], "uptrain.steps=2,4"])
    expected = ["untouched", *(f"{name} uptrain.steps={n}" for name in ("MHA-4", "MLKV-1") for n in (2, 4))]
    assert [variant.label for variant in chain.variants] == expected
    assert sorted(expected) == sorted(variant.label for variant in swept.variants)
    short, long = (row for variant in chain.variants if (row := variant.row()).variant.startswith("MLKV"))
    assert (short.overrides["uptrain.steps"], long.overrides["uptrain.steps"]) == ("2", "4")
    assert {**long.config, "uptrain": {**long.config["uptrain"], "rungs": [2]}} == short.config
    assert long.steps.earlier == [short.steps.uptrain]
    assert short.steps.earlier is None


def test_rungs_and_lengths_replace_each_other(planner: Planner, tiny: list[str]) -> None:
    """The tests' experiment sets steps: 4; conf/uptrain/rungs.yaml sets rungs."""
    assert set(trainings(planner([*tiny, *CHAIN, "uptrain.rungs=[3,5]"]))) == {3, 5}
    line = ["experiment=quickstart", "layout.kv_layers=1", "layout.kv_heads=1"]
    assert set(trainings(planner([*line, "uptrain=rungs"]))) == {43, 130}
    assert set(trainings(planner([*line, "uptrain=rungs", "uptrain.rungs=[130,260]"]))) == {130, 260}
    assert set(trainings(planner([*line, "uptrain=rungs", "uptrain.steps=9"]))) == {9}


def test_the_first_rung_may_be_the_model_before_any_training(planner: Planner, tiny: list[str]) -> None:
    chain, with_it = (planner([*tiny, *CHAIN, f"uptrain.rungs=[{rungs}]"]) for rungs in ("2,4", "0,2,4"))
    assert trainings(chain) == trainings(with_it), "and it changes none of the others"
    untrained = [variant for variant in with_it.variants if variant.label == "MLKV-1 uptrain.steps=0"]
    [alone] = [v for v in planner([*tiny, *CHAIN[2:], "uptrain.steps=0"]).variants if v.label == "MLKV-1"]
    assert [[step.id for step in variant.steps] for variant in untrained] == [[step.id for step in alone.steps]]
    added = Counter(step.kind for id, step in with_it.steps.items() if id not in chain.steps)
    assert added == {"evaluate": 2}, "of the layout and of the base's own"
    fewer = planner([*tiny, *CHAIN, "uptrain.rungs=[0,2,4]", "sweep.filter='uptrain.steps != 2'", "sweep.baselines=[]"])
    assert [variant.label for variant in fewer.variants] == ["MLKV-1 uptrain.steps=0", "MLKV-1 uptrain.steps=4"]


def test_one_training_behind_it_may_have_any_schedule(planner: Planner, tiny: list[str]) -> None:
    """Nothing is continued, so that it is the training that a length alone makes."""
    line = [*CHAIN[2:], "uptrain.schedule=cosine"]
    alone, behind = (planner([*tiny, *line, each]) for each in ("uptrain.steps=4", "uptrain.rungs=[0,4]"))
    assert alone.steps.keys() < behind.steps.keys()
    assert {step.kind for id, step in behind.steps.items() if id not in alone.steps} == {"evaluate"}


def test_a_filter_can_leave_rungs_out_and_their_trainings_stay(planner: Planner, tiny: list[str]) -> None:
    plan = planner([*tiny, *CHAIN, "uptrain.rungs=[2,4,8]", "sweep.filter='uptrain.steps == 8'", "sweep.baselines=[]"])
    assert [variant.label for variant in plan.variants] == ["MLKV-1"]
    assert Counter(step.kind for step in plan.steps.values())["uptrain"] == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["uptrain.rungs=[2,4]", "uptrain.schedule=linear"], r"uptrain: rungs = \[2, 4\]: .* set schedule=wsd"),
        (["uptrain.rungs=[0,2,4]", "uptrain.schedule=linear"], r"uptrain: rungs = \[0, 2, 4\]: .* set schedule=wsd"),
        (["uptrain.rungs=[2,0]"], r"uptrain: rungs = \[2, 0\]: must rise"),
        (["uptrain.rungs=[-1,2]"], r"uptrain\.rungs\.0 = -1: must be greater than or equal to 0"),
        (["uptrain.rungs=[2,4]", "uptrain.steps=4"], r"exactly one of .* \(set: steps, rungs\)"),
        (["base.rungs=[2,4]", "base.schedule=wsd"], r"base\.rungs = \[2, 4\]: a base is trained once"),
        (["uptrain.schedule=cosine", "uptrain.steps=4"], r"uptrain\.decay = 0\.5: only uptrain\.schedule=wsd reads it"),
    ],
)
def test_what_cannot_be_continued_is_refused(line: list[str], message: str, planner: Planner, tiny: list[str]) -> None:
    with pytest.raises(UserError, match=message):
        planner([*tiny, *CHAIN, *line])


def test_the_job_of_a_rung_waits_for_the_shorter_training_alone(planner: Planner, tiny: list[str]) -> None:
    plan = planner([*tiny, *CHAIN, "uptrain.rungs=[2,4]", "sweep.baselines=[]"])
    short, long = trainings(plan).values()
    jobs = {job.kind: job for job in job_specs(plan.steps.values(), plan.config.cluster) if short in job.steps}
    assert [plan.steps[id].kind for id in jobs["uptrain"].steps] == ["convert", "uptrain"]
    longer = next(job for job in job_specs(plan.steps.values(), plan.config.cluster) if long in job.steps)
    assert jobs["uptrain"].name in longer.after
    assert [plan.steps[id].kind for id in longer.steps] == ["convert", "uptrain", "evaluate"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, text_files: Path, planner: Planner) -> tuple[Store, Plan]:
    """A chain that was run, then made longer."""
    store = Store.open(tmp_path_factory.mktemp("rungs") / "store")
    line = ["experiment=tiny", f"corpus.files=[{text_files}/*.txt]", *CHAIN, "sweep.baselines=[]"]
    with workers_here():
        for rungs in ("2", "2,4"):
            plan = planner([*line, f"uptrain.rungs=[{rungs}]"])
            freeze(plan, store, line)
            assert Worker(store).run(list(plan.steps)) == 0
    return store, plan


def test_a_longer_chain_runs_what_is_missing_alone(done: tuple[Store, Plan]) -> None:
    store, plan = done
    assert all(len(store.step(id).attempts()) == 1 for id in plan.steps)
    longer = trainings(plan)[4]
    assert [row.step for row in store.step(longer).metrics()] == [2, 3, 4], "the trunk of 2 steps ends after the first"
    assert [position for position, _ in whole_history(store, longer)] == [1, 2, 3, 4]
    run = SweepRuns(store, store.sweep("tiny")).variant("MLKV-1 uptrain.steps=4")
    assert [row["train/global_step"] for _, row in run.rows] == [1, 2, 3, 4]
    assert run.summary["final/tokens"] == present(store.step(longer).record()).facts["tokens"]


def test_rows_of_a_chain_differ_in_their_length_alone(done: tuple[Store, Plan]) -> None:
    store, plan = done
    table = gather(store, "tiny")
    trained = table[(table["kind"] == "uptrain") & (table["metric"] == "tokens")]
    assert list(trained["overrides"]) == ["uptrain.steps=2", "uptrain.steps=4"]
    assert trained["value"].iloc[1] == pytest.approx(2 * trained["value"].iloc[0], abs=1)
    costs = [present(store.step(id).record()).wall_seconds for id in trainings(plan).values()]
    assert list(trained["wall_seconds"]) == pytest.approx([costs[0], sum(costs)]), "what it takes to get there"
    same = ["family", "budget", "sources", "lr", "seed", "baseline", "untouched", "mha"]
    assert all(table[name].nunique(dropna=False) == 1 for name in same)
    frame = results(table).frame
    assert list(frame["variant"]) == ["MLKV-1 uptrain.steps=2", "MLKV-1 uptrain.steps=4"]
    assert set(frame["state"]) == {"DONE"}


def test_the_table_of_training_shows_what_it_cost(done: tuple[Store, Plan]) -> None:
    store, plan = done
    table = make_tables(load(store, "tiny"), ["training"])["training"]
    shown = [dict(zip(table.headers, (cell.number for cell in row), strict=True)) for row in table.rows]
    assert [row["trained parameters"] for row in shown] == [variant.parameters for variant in plan.variants]
    assert [row["parameters"] for row in shown] == [variant.parameters for variant in plan.variants]
    records = [present(store.step(id).record()) for id in trainings(plan).values()]
    assert [row["tokens"] for row in shown] == [record.facts["tokens"] for record in records]
    assert shown[1]["time"] == pytest.approx(sum(record.wall_seconds for record in records))
    assert shown[1]["peak memory"] == max(record.peak_memory_bytes for record in records)
    assert table.notes == ["time of a rung: with those that it continues"]


def test_the_page_names_the_shorter_training_apart(done: tuple[Store, Plan]) -> None:
    store, plan = done
    short, long = trainings(plan).values()
    named = {each.id: each.name for each in _steps(store.sweep("tiny").variants[1:])}
    assert (named[short], named[long]) == ("shorter uptrain", "uptrain")


def test_pruning_keeps_what_a_longer_rung_needs(done: tuple[Store, Plan]) -> None:
    store, plan = done
    assert list(prunable(store)) == []
    short, long = (store.step(id) for id in trainings(plan).values())
    assert {"trunk/optimizer.pt", "trunk/model.safetensors"} < present(short.record()).outputs.keys()
    assert present(short.record()).outputs.keys() == present(long.record()).outputs.keys()


# Other fields that only one choice reads


def test_adapters_fields_are_part_of_runs_with_adapters_alone(planner: Planner, tiny: list[str]) -> None:
    line = [*tiny, "layout.kv_layers=1", "layout.kv_heads=1", "sweep.baselines=[]"]
    plan = planner([*line, "uptrain.train=all,lora", "uptrain.lora_rank=2,4"])
    assert [variant.label for variant in plan.variants] == [
        "MLKV-1 uptrain.train=all",
        "MLKV-1 uptrain.train=lora uptrain.lora_rank=2",
        "MLKV-1 uptrain.train=lora uptrain.lora_rank=4",
    ]
    assert planner(line).steps.keys() <= plan.steps.keys()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["uptrain.lora_rank=2"], r"uptrain\.lora_rank = 2: only uptrain\.train=lora reads it"),
        (["uptrain.train=kv", "uptrain.lora_alpha=2"], r"uptrain\.lora_alpha = 2\.0: only uptrain\.train=lora"),
        (["uptrain.train=some"], r"uptrain\.train = some: must be 'all', 'kv' or 'lora'"),
        (["base.train=lora"], r"base\.train = lora: a base begins with random weights"),
        (
            ["uptrain.train=lora", "uptrain.strategy=fsdp", "cluster=slurm", "resources.gpus=2"],
            r"uptrain\.strategy = fsdp: train = lora keeps .*; set uptrain\.strategy=ddp",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused(line: list[str], message: str, planner: Planner, tiny: list[str]) -> None:
    with pytest.raises(UserError, match=message):
        planner([*tiny, *line])
