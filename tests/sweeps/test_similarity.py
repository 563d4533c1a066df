"""Sweeps that compare the layers of their base: the plan, what is refused, and all that is read of a whole run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import mlkv as api
from analysis.data.layout_scores import read as read_layout_scores
from analysis.figures.kinds import FIGURES
from sweeps.planning.plan import Plan
from sweeps.store.errors import UserError
from tests.support.shell import Shell

Planner = Callable[[Sequence[str]], Plan]
COMPARED = "similarity=held_out"


def ids(plan: Plan) -> list[str]:
    return [id for id, step in plan.steps.items() if step.kind == "similarity"]


def test_one_step_for_a_base_and_no_other_id_changes(planner: Planner, tiny: list[str]) -> None:
    before, plan = planner(tiny), planner([*tiny, COMPARED])
    [id] = ids(plan)
    assert {*plan.steps} - {id} == {*before.steps}
    assert [variant.label for variant in plan.variants if variant.similarity] == ["untouched"]
    assert set(plan.steps[id].parents) == {"base", "corpus"}
    without = planner([*tiny, COMPARED, "sweep.baselines=[]"])
    assert ids(without) == [id]
    assert all(variant.similarity for variant in without.variants)
    assert ids(planner([*tiny, "similarity.windows=0", "similarity.queries=3"])) == []


def test_its_id_is_what_it_computes(planner: Planner, tiny: list[str]) -> None:
    def id_of(*more: str) -> str:
        [id] = ids(planner([*tiny, COMPARED, *more]))
        return id

    usual = id_of()
    assert id_of("similarity.batch_size=2", "similarity.threads=2") == usual
    assert id_of("layout=mqa", "uptrain.lr=0.01") == usual
    lines = ("similarity.windows=9", "similarity.queries=9", "similarity.damage=false", "base.seed=1", "corpus.seed=1")
    assert len({usual, *map(id_of, lines)}) == 1 + len(lines)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            ["convert=scratch"],
            r"convert\.start = scratch: similarity compares .* add similarity=none",
        ),
        (["similarity.windows=-1"], r"similarity\.windows = -1: must be greater than or equal to 0"),
        (["similarity.queries=0"], r"similarity\.queries = 0: must be greater than 0"),
        (["similarity.window=1"], r"similarity\.window: unknown key; did you mean windows\?"),
        (["similarity=held"], r"similarity = held: did you mean held_out\? valid: held_out, none"),
        (["model.decoder.layers=1", "layout=mqa"], r"similarity: model .* has one layer"),
    ],
)
def test_what_cannot_work_is_refused(planner: Planner, tiny: list[str], line: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planner([*tiny, COMPARED, *line])


@pytest.mark.long(minutes=1)
def test_a_sweep_that_compares_layers_and_what_is_read_of_it(mlkv: Shell, tiny: list[str]) -> None:
    line = [
        *tiny,
        COMPARED,
        "similarity.windows=6",
        "model.decoder.layers=4",
        "layout=mqa",
        "sweep.baselines=[untouched]",
    ]
    line += ["evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]", "measure=none", "uptrain.steps=0"]
    mlkv("sweep", *line, timeout=1200)
    [step] = [step for step in mlkv.store.steps() if step.kind == "similarity"]
    assert (step.out / "similarity.safetensors").is_file()
    text = mlkv("table", "tiny", "similarity", "--format", "md")
    assert all(
        words in text for words in ("3 reads 0", "CKA of keys", "Spearman's correlation", "which layer reads explains")
    )
    mlkv("figure", "tiny", "similarity")
    page = Path(mlkv.folder, "reports", "tiny", "index.html").read_text("utf-8")
    assert "the damage where one reads the other" in page
    assert FIGURES["similarity"].title in page
    table = api.load(mlkv.folder / "store").similarity("tiny")
    assert set(table["level"]) == {"layer", "head"}
    own = table[(table["measure"] == "damage") & (table["layer"] == table["other_layer"])]
    assert len(own) == 4
    assert not own["value"].any()
    assert table[table["measure"] == "cka_keys"]["value"].between(0, 1.0001).all()
    assert "damage_of_next" in mlkv("gather", "tiny")
    assert mlkv("gather", "tiny", "--layouts", "scores.csv") == ""
    assert read_layout_scores(Path(mlkv.folder, "scores.csv"))
    mlkv("pack", "tiny", "tiny.mlkv")
    mlkv("unpack", "tiny.mlkv", "--store", "other")
    unpacked = mlkv("table", "tiny", "similarity", "--format", "md", "--store", "other")
    assert unpacked.splitlines()[:6] == text.splitlines()[:6]
    (step.out / "similarity.safetensors").write_bytes(b"cut")
    assert "similarity.safetensors: is damaged" in mlkv("table", "tiny", "similarity", status=2)
