"""Sweeps with an elastic training: its plan, what is refused, and a whole run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mlkv.layout import KVLayout
from sweeps.planning.plan import Plan
from sweeps.store.errors import UserError
from tests.support.read_back import present
from tests.support.shell import Shell

Planner = Callable[[Sequence[str]], Plan]
ELASTIC = ["elastic=nested", "uptrain.steps=0", "convert=mean"]
BOTH = ["convert=mean", "elastic=none,nested", "uptrain.steps=4,0"]
ZIP = "sweep.zip=[[layout.kv_layers,layout.kv_heads],[elastic,uptrain.steps]]"


def test_all_layouts_are_cut_from_one_training(planner: Planner, tiny: list[str]) -> None:
    plan = planner([*tiny, *ELASTIC])
    [elastic] = [step for step in plan.steps.values() if step.kind == "elastic"]
    for variant in plan.variants:
        if variant.baseline != "untouched":
            assert present(variant.elastic).id == elastic.id
            assert present(variant.convert).parents == {"base": elastic.id}
            assert variant.checkpoint == variant.convert
    assert set(elastic.parents) == {"base", "corpus", "calibration"}
    sampled = [KVLayout.from_dict(each) for each in elastic.slice["layouts"]]
    assert {variant.layout for variant in plan.variants} <= set(sampled)
    assert elastic.slice["merge"] == "mean"


def test_its_id_depends_on_what_it_samples_and_not_on_what_is_scored(planner: Planner, tiny: list[str]) -> None:
    def id_of(*more: str) -> str:
        [id] = [id for id, step in planner([*tiny, *ELASTIC, *more]).steps.items() if step.kind == "elastic"]
        return id

    usual = id_of()
    assert id_of("layout=mqa") == usual
    assert id_of("elastic.kv_layers=[2,2,1,1]", "elastic.kv_heads=[2,1,2,1]") == usual
    assert id_of("elastic.micro_batch=1") == usual
    others = {
        id_of("elastic.kv_layers=[2,1]", "elastic.kv_heads=[1,2]"),
        id_of("convert.merge=pairwise"),
        id_of("elastic.align=false"),
        id_of("elastic.layouts_per_step=1"),
        id_of("elastic.seed=1"),
    }
    assert len(others | {usual}) == 6


def test_without_alignment_there_is_no_calibration(planner: Planner, tiny: list[str]) -> None:
    plan = planner([*tiny, *ELASTIC, "elastic.align=false"])
    assert "calibrate" not in {step.kind for step in plan.steps.values()}


def test_both_ways_stand_in_one_table(planner: Planner, tiny: list[str]) -> None:
    plan = planner([*tiny, *BOTH, ZIP])
    assert {variant.label for variant in plan.variants} == {
        "untouched",
        "MHA-4 elastic=none uptrain.steps=4",
        "MHA-4 elastic=nested uptrain.steps=0",
        "MQA-2 elastic=none uptrain.steps=4",
        "MQA-2 elastic=nested uptrain.steps=0",
        "MLKV-2 elastic=none uptrain.steps=4",
        "MLKV-2 elastic=nested uptrain.steps=0",
    }
    assert sum(step.kind == "elastic" for step in plan.steps.values()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            ["elastic.kv_layers=[1]", "elastic.kv_heads=[1]"],
            r"layout MQA-2 \(2×1\): not among those that elastic training samples .*: MHA-4 \(2×2\), MLKV-1 \(1×1\)",
        ),
        (["convert.merge=svd"], r"convert\.merge = svd: .* valid: mean, pairwise, first"),
        (["convert.merge=random"], r"convert\.merge = random: .* valid: mean, pairwise, first"),
        (["convert.grouping=similar"], r"convert\.grouping = similar: .* set convert\.grouping=adjacent"),
        (["convert=scratch"], r"convert\.start = scratch: elastic training needs a base to convert; add elastic=none"),
        (["elastic.kv_layers=[3]"], r"elastic\.kv_layers = 3: pattern even on 2 layers takes 1 to 2"),
        (["elastic.pattern=cake"], r"elastic\.pattern = cake: must be 'even'"),
        (["elastic.strategy=fsdp"], r"elastic: strategy = fsdp: elastic training takes ddp"),
        (["elastic.layouts_per_step=3"], r"elastic: layouts_per_step = 3: must divide batch_size 4"),
    ],
)
def test_what_cannot_work_is_refused(planner: Planner, tiny: list[str], line: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planner([*tiny, *ELASTIC, *line])


def test_what_the_filter_removes_is_not_refused(planner: Planner, tiny: list[str]) -> None:
    only_mlkv = ["elastic.kv_layers=[1]", "elastic.kv_heads=[2]", "sweep.filter='kv_layers == 1'"]
    plan = planner([*tiny, *ELASTIC, *only_mlkv])
    assert [variant.label for variant in plan.variants] == ["untouched", "MHA-4", "MLKV-2"]


@pytest.mark.long(minutes=1)
def test_a_sweep_of_both_ways_and_its_table(mlkv: Shell, tiny: list[str]) -> None:
    line = [*tiny, "convert=mean", "elastic=nested", "elastic.steps=0,4", "uptrain.steps=4,0", "measure=none"]
    line += ["sweep.zip=[[layout.kv_layers,layout.kv_heads],[elastic.steps,uptrain.steps]]"]
    line += ["sweep.baselines=[untouched]", "evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]"]
    mlkv("sweep", *line, timeout=1200)
    store = mlkv.store
    [elastic] = [step for step in store.steps() if step.kind == "elastic"]
    trained = load_file(elastic.out / "model.safetensors")
    cuts = [step for step in store.steps() if elastic.id in present(step.spec()).parents.values()]
    assert [step.kind for step in cuts] == ["convert", "convert"]
    for cut in cuts:
        weights = load_file(cut.out / "model.safetensors")
        assert torch.equal(weights["model.embed.weight"], trained["model.embed.weight"])
    printed = mlkv("table", "tiny", "elastic", "--format", "md")
    assert all(words in printed for words in ("worse by", "MQA-2", "MLKV-2", "Kendall's tau"))
    assert "tokens, in parentheses above, for all layouts together" in mlkv("plan", *line)
    page = Path(mlkv.folder, "reports", "tiny", "index.html").read_text("utf-8")
    assert "Cut from one elastic training" in page
