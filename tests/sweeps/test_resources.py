"""How many processes train one step: said in one line, checked before anything runs, and no part of its identity."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence

import pytest

from sweeps.dispatch.grouping import job_specs
from sweeps.planning.plan import Plan
from sweeps.store.errors import UserError
from sweeps.store.stepdir import StepDir
from tests.support.read_back import present
from tests.support.shell import Shell

Planner = Callable[[Sequence[str]], Plan]
WIDE = ["resources.gpus=2", "resources.nodes=2"]


def test_one_line_says_what_training_asks_for_and_no_step_becomes_another(planner: Planner) -> None:
    line = ["experiment=quickstart", "cluster=slurm"]
    plain, wide = planner(line), planner([*line, *WIDE])
    assert list(wide.steps) == list(plain.steps)
    resources = wide.config.cluster.resources
    assert {kind: (need.gpus, need.nodes) for kind, need in resources.items() if need.nodes > 1} == {
        "base": (2, 2),
        "elastic": (2, 2),
        "uptrain": (2, 2),
    }
    assert {kind: need for kind, need in resources.items() if need.nodes == 1}.items() <= (
        plain.config.cluster.resources.items()
    )
    processes = {job.kind: job.resources.tasks for job in job_specs(wide.steps.values(), wide.config.cluster)}
    assert processes == {"corpus": 1, "base": 2, "calibrate": 1, "uptrain": 2, "evaluate": 1, "measure": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["resources.gpu=4"], r"resources\.gpu: unknown key; did you mean gpus"),
        (["resources.gpus=-1"], r"resources\.gpus = -1: must be greater than or equal to 0"),
        (["resources.nodes=2"], r"resources\.base\.nodes = 2: cluster local is one machine"),
        (["cluster=slurm", "resources.gpus=3"], r"base\.batch_size = 16: 3 processes .* cannot share it"),
        (
            ["cluster=slurm", *WIDE, "uptrain.batch_size=12", "uptrain.micro_batch=2"],
            r"uptrain\.batch_size = 12: 4 processes with micro_batch 2 cannot share it evenly",
        ),
        (["uptrain.strategy=zero"], r"uptrain\.strategy = zero: must be 'ddp' or 'fsdp'"),
    ],
)
def test_what_cannot_be_is_refused_with_the_plan(line: list[str], message: str, planner: Planner) -> None:
    with pytest.raises(UserError, match=message):
        planner(["experiment=quickstart", *line])


def test_more_gpus_than_this_machine_has_are_refused_in_one_line(mlkv: Shell, tiny: list[str]) -> None:
    printed = mlkv("sweep", *tiny, "resources.gpus=4", status=2)
    assert "resources.gpus = 4, but this machine has" in printed
    assert "Traceback" not in printed


def trained(mlkv: Shell) -> tuple[StepDir, list[float]]:
    (step,) = (step for step in mlkv.store.steps() if step.kind == "uptrain")
    return step, [row.fields["loss"] for row in step.metrics() if "loss" in row.fields]


@pytest.mark.long(minutes=1)
def test_two_processes_of_this_machine_train_as_one_does(mlkv: Shell, tiny: list[str]) -> None:
    line = [
        *tiny,
        "layout=mqa",
        "sweep.baselines=[]",
        "evaluate.tasks=[]",
        "evaluate.accuracy=[]",
        "evaluate.axis=null",
    ]
    line += ["measure.batch_sizes=[]", "uptrain.precision=fp32"]
    mlkv("sweep", *line)
    alone, losses = trained(mlkv)
    shutil.rmtree(alone.path)
    mlkv("sweep", *line, "resources.tasks_per_node=2", "uptrain.strategy=fsdp")
    together, shared = trained(mlkv)
    record = present(together.record())
    assert together.id == alone.id
    assert record.facts["devices"] == 2
    assert shared == pytest.approx(losses, rel=1e-4)
    assert [attempt.number for attempt in together.attempts()] == [1]
    assert (together.attempts()[0].path / "rank-1.log").exists()
