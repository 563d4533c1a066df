"""Layouts by rule: what is planned before anything is known of the base, what when it is, and a whole sweep of both."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from mlkv.evaluate.bits import Windows
from mlkv.groupings import of_sizes
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, mha
from mlkv.layout_rules import LAYOUT_RULES, placed
from mlkv.recipes import SimilarityRecipe
from mlkv.shape import DecoderShape
from mlkv.similarity.results import Similarity
from mlkv.similarity.step import compare
from slurm.local_cluster.cluster import LocalCluster
from sweeps.planning.compose import Composer
from sweeps.planning.layout_config import LayoutConfig
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.resolve import Resolver
from sweeps.search.trials import Search
from sweeps.steps.step import Step
from sweeps.store.errors import UserError
from sweeps.store.store import Store
from tests.support.faults import SLURM, all_done, attempts
from tests.support.packs import finish
from tests.support.processes import eventually
from tests.support.records import record_of
from tests.support.shell import TEST_CONF, Shell

Planner = Callable[[Sequence[str]], Plan]
LAYERS = [
    "model.decoder.layers=4",
    "layout=searched",
    "uptrain.steps=0",
    "measure.batch_sizes=[]",
    "evaluate.accuracy=[]",
]
BITS = [*LAYERS, "evaluate.tasks=[bits_per_byte]"]
RULE = "layout.rule=similar_first_cka_values"
SHAPE = DecoderShape(vocab_size=64, width=16, layers=4, heads=2, head_dim=8, mlp_width=32, context=32)


@pytest.fixture(scope="module")
def similar() -> Similarity:
    """Of a random decoder of four layers."""
    decoder = MLKVForCausalLM.from_shape(SHAPE, mha(4, 2), seed=3).eval().model
    ids = torch.randint(1, 64, (2, 16), generator=torch.Generator().manual_seed(1)).numpy()
    windows = Windows(ids, ids[:, 1:] > 0, ids[:, 1:])
    return compare(decoder, windows, SimilarityRecipe(windows=2, queries=4))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def plan(store: Store, tiny: list[str]) -> Callable[..., Plan]:
    composer = Composer(TEST_CONF)
    return lambda *line: make_plan(composer, Resolver(store), [*tiny, *BITS, *line])


def publish(store: Store, step: Step, *, found: Similarity | None = None, bits: float = 0.0) -> None:
    claim = store.step(step.id).claim()
    assert claim
    if found:
        found.save(claim.attempt.out)
    metrics = [] if found else [{"metric": "bits_per_byte", "value": bits}]
    assert claim.step.publish(claim, record_of(claim, {"metrics": metrics}))
    claim.attempt.finish("done", "", 0)
    claim.release()


def done(store: Store, plan: Plan, found: Similarity, bits: Callable[[KVLayout], float] = lambda _: 0.0) -> None:
    """Let what a plan's rules read be done."""
    layouts = {step.id: variant.layout for variant in plan.variants for step in variant.evaluate.values()}
    for step in [step for id, step in plan.steps.items() if not store.step(id).record()]:
        if step.kind == "similarity":
            publish(store, step, found=found)
        elif step.kind == "evaluate":
            publish(store, step, bits=bits(layouts[step.id]))
        else:
            finish(store, step)


def kinds(plan: Plan) -> dict[str, int]:
    every = [step.kind for step in plan.steps.values()]
    return {kind: every.count(kind) for kind in every}


def layouts(plan: Plan) -> list[KVLayout]:
    return [variant.layout for variant in plan.variants if variant.baseline is None]


def test_first_what_a_rule_reads_and_then_its_layout(
    store: Store, plan: Callable[..., Plan], planner: Planner, tiny: list[str], similar: Similarity
) -> None:
    line = (RULE, "layout.budget=6", "layout.kv_layers=3", "base.seed=1")
    before = plan(*line)
    assert before.following == 1
    assert kinds(before) == {"corpus": 1, "base": 1, "similarity": 1}
    assert before.with_expected.keys() > before.steps.keys(), "what the layouts read is fetched with it"
    done(store, before, similar)
    after = plan(*line)
    assert after.following == 0
    [layout] = layouts(after)
    assert layout == placed("similar_first_cka_values", [(3, 2)], mha(4, 2), similar.costs())
    [variant] = [each for each in after.variants if each.baseline is None]
    row = variant.row()
    assert row.overrides == {"layout.rule": "similar_first_cka_values"}
    assert row.config["layout"] == {
        "pattern": "explicit",
        "kv_source_layers": [*layout.kv_source_layers],
        "kv_heads": [2, 2, 2],
    }
    assert variant.label.endswith(" layout.rule=similar_first_cka_values")
    sources = ",".join(map(str, layout.kv_source_layers))
    by_hand = ["layout=explicit", f"layout.kv_source_layers=[{sources}]", "layout.kv_heads=[2,2,2]"]
    written = planner([*tiny, *BITS, *by_hand, "base.seed=1", "similarity=held_out"])
    assert {*written.steps} == {*after.steps}
    [same] = [each.row() for each in written.variants if each.baseline is None]
    assert (same.config["layout"], same.steps) == (row.config["layout"], row.steps)


def test_the_best_conversion_of_all_groupings(store: Store, plan: Callable[..., Plan], similar: Similarity) -> None:
    line = ("layout.rule=untrained", "layout.budget=2", "uptrain.seed=1,2")
    before = plan(*line)
    assert before.following == 1
    assert kinds(before) == {"corpus": 1, "base": 1, "convert": 4, "evaluate": 4}
    assert {variant.layout.budget for variant in before.variants} == {2}
    best = of_sizes((3, 1))
    assert best in {variant.layout.kv_source_layers for variant in before.variants}
    done(store, before, similar, lambda layout: float(layout.kv_source_layers != best) + 1)
    after = plan(*line)
    assert [layout.kv_source_layers for layout in layouts(after)] == [best]
    [searched] = [variant for variant in after.variants if variant.baseline is None]
    assert {step.id for step in searched.steps} <= {*before.steps}, "without uptraining all of it is done"


def test_heads_are_spread_by_what_each_change_loses(
    store: Store, plan: Callable[..., Plan], similar: Similarity
) -> None:
    line = (RULE, "layout.budget=6", "layout.kv_layers=3", "layout.spread=untrained", "model.decoder.heads=6")

    def bits(layout: KVLayout) -> float:
        first, second, third = layout.kv_heads
        return 9 - first - 0.1 * second - 0.2 * third

    first = plan(*line)
    assert (first.following, "convert" in kinds(first)) == (1, False)
    done(store, first, similar)
    second = plan(*line)
    assert (second.following, kinds(second)["evaluate"]) == (1, 7), "the layout itself, and 1 or 3 heads in each owner"
    done(store, second, similar, bits)
    third = plan(*line)
    [found] = [variant for variant in third.variants if variant.baseline is None]
    assert (third.following, found.layout.kv_heads) == (0, (3, 1, 2))
    assert found.row().overrides == {"layout.rule": "similar_first_cka_values", "layout.spread": "untrained"}
    equal = plan(*line[:-2], "layout.spread=equal", line[-1])
    assert [layout.kv_heads for layout in layouts(equal)] == [(2, 2, 2)]


def test_rules_are_compared_with_each_other_and_with_patterns(
    store: Store, plan: Callable[..., Plan], similar: Similarity
) -> None:
    line = ("layout=mlkv,searched", "layout.budget=2", "layout.kv_layers=2", f"{RULE},even,similar_below_distance")
    before = plan(*line)
    assert before.following == 2
    done(store, before, similar)
    after = plan(*line)
    rules = {v.row().overrides.get("layout.rule"): v.layout for v in after.variants if v.baseline is None}
    named = [name for key in rules if key for name in key.split(",")]
    assert sorted(named) == ["even", "similar_below_distance", "similar_first_cka_values"]
    for key, layout in rules.items():
        for name in (key or "even").split(","):
            assert layout == placed(name, [(2, 1)], mha(4, 2), similar.costs())
    assert all("layout.rule" not in v.row().overrides for v in after.variants if v.baseline)


def test_every_rule_plans_inputs_and_then_a_layout(
    store: Store, plan: Callable[..., Plan], similar: Similarity
) -> None:
    rules = ",".join(name for name in LAYOUT_RULES if name not in ("cla", "untrained"))
    line = (f"layout.rule={rules}", "layout.cache=3/8", "layout.kv_heads=1", "sweep.baselines=[]")
    done(store, plan(*line), similar)
    after = plan(*line)
    assert after.following == 0
    named = [name for v in after.variants for name in v.row().overrides["layout.rule"].split(",")]
    assert sorted(named) == sorted(rules.split(","))
    assert {(v.layout.budget, v.layout.keys.kv_layers, v.layout.values.kv_layers) for v in after.variants} == {
        (3, 3, 3)
    }


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ({"budget": 12}, [(6, 2), (4, 3), (2, 6)]),
        ({"budget": 6}, [(6, 1), (3, 2), (2, 3), (1, 6)]),
        ({"budget": 6, "kv_heads": 1}, [(6, 1)]),
        ({"cache": Fraction(1, 6), "kv_layers": 3}, [(3, 2)]),
        ({"kv_layers": 3}, [(3, 6)]),
        ({"kv_layers": 3, "kv_heads": 2}, [(3, 2)]),
    ],
)
def test_the_sizes_of_a_budget(fields: dict[str, Any], sizes: list[tuple[int, int]]) -> None:
    config = LayoutConfig(pattern="searched", rule="even", **fields)
    assert config.sizes(mha(6, 6)) == sizes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            ["layout.budget=5"],
            r"model pocket: layout\.budget = 5: pattern searched on 4 layers of 2 heads takes 1, 2, 3",
        ),
        (["layout.rule=sparse"], r"layout\.rule = sparse: must be 'untrained', 'similar_first_cka_keys'"),
        (["layout.rule=null"], r"layout: rule is unset: a searched layout is placed by one"),
        (["layout.budget=null"], r"budget, cache and kv_layers are unset: a searched layout needs one of them"),
        (["layout.kv_heads=[1,2]"], r"layout: kv_heads = \[1, 2\]: the owners of a searched layout have equally many"),
        (["layout.value_heads=1"], r"layout: value_heads = 1: a searched layout has equally many for keys and values"),
        (["layout.factor=2"], r"factor = 2: only pattern cla has a factor"),
        (["layout.position=top"], r"position = top: only pattern .* \(pattern = searched\)"),
        (
            ["convert=scratch"],
            r"layout\.pattern = searched: convert\.start = scratch has no base that a rule could read",
        ),
        (
            ["layout.rule=cheapest_first_damage", "similarity=held_out", "similarity.damage=false"],
            r"layout\.rule = cheapest_first_damage: reads the damage, and similarity\.damage = false",
        ),
        (["elastic=nested", "convert=mean"], r"layout\.rule = untrained: scores conversions .* add elastic=none"),
        (
            ["layout=mlkv", "layout.spread=untrained"],
            r"layout\.spread = untrained: no layout of this sweep is by a rule",
        ),
        (
            ["layout.rule=similar_first_cka_apart", "layout.spread=untrained"],
            r"layout\.spread = untrained: similar_first_cka_apart places keys and values apart",
        ),
        (["layout=mlkv", "layout.rule=even"], r"layout\.rule = even: no layout of this sweep is by a rule"),
        (["layout=even"], r"layout = even: .*; a pattern is given as layout\.pattern=NAME, a rule as layout=searched"),
        (["layout.candidates=0"], r"layout\.candidates = 0: must be greater than or equal to 1"),
        (["uptrain.steps=4", "uptrain.decay=0.5"], r"uptrain\.decay = 0\.5: only uptrain\.schedule=wsd reads it"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    plan: Callable[..., Plan], line: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan("layout.budget=2", *line)


def test_a_search_of_its_own_lists_layouts(store: Store, tiny: list[str]) -> None:
    with pytest.raises(UserError, match=r"layout\.pattern = searched: a search chooses layouts itself"):
        Search(Composer(TEST_CONF), Resolver(store), [*tiny, "layout=mqa,searched", "layout.budget=2"])


def test_what_a_filter_removes_is_not_searched(plan: Callable[..., Plan]) -> None:
    kept = plan(RULE, "layout.budget=2,3", "sweep.filter='budget == 9'", "sweep.baselines=[mha]")
    assert (kept.following, [variant.baseline for variant in kept.variants]) == (0, ["mha"])


def test_a_similarity_that_is_damaged_is_named(store: Store, plan: Callable[..., Plan], similar: Similarity) -> None:
    before = plan(RULE, "layout.budget=2")
    done(store, before, similar)
    [id] = [id for id, step in before.steps.items() if step.kind == "similarity"]
    (store.step(id).out / "similarity.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=rf"{RULE.replace('=', ' = ')}: step {id} cannot be read .*damaged"):
        plan(RULE, "layout.budget=2")


@pytest.mark.long(minutes=1)
def test_a_sweep_of_searched_layouts(mlkv: Shell, tiny: list[str]) -> None:
    line = [*tiny, *BITS, "layout.rule=untrained,similar_first_cka_values", "layout.budget=2", "similarity.windows=4"]
    line += ["layout.kv_layers=2", "similarity.damage=false"]
    before = json.loads(mlkv("plan", *line, "--json"))
    assert before["layouts_to_follow"] == 2
    assert "2 layouts follow by rule from these steps" in mlkv("plan", *line)
    mlkv("sweep", *line, timeout=1200)
    assert {saved.number for saved in mlkv.store.plans("tiny")} == {1, 2}
    assert {step["state"] for step in json.loads(mlkv("status", "tiny", "--json"))["steps"]} == {"DONE"}
    table = mlkv("table", "tiny", "--format", "md")
    assert "layout.rule=" in table
    after = json.loads(mlkv("plan", *line, "--json"))
    assert after["layouts_to_follow"] == 0
    rules = [rule for v in after["variants"] for rule in v["overrides"].get("layout.rule", "").split(",") if rule]
    assert sorted(rules) == ["similar_first_cka_values", "untrained"]


@pytest.mark.long(minutes=2)
def test_on_slurm_a_job_plans_the_layouts_when_what_rules_read_is_done(
    mlkv: Shell, tiny: list[str], cluster: LocalCluster
) -> None:
    line = [*tiny, *BITS, RULE, "layout.budget=2", "similarity.windows=4", "similarity.damage=false", *SLURM]
    line += ["sweep.baselines=[]", "base.steps=1"]
    queued = mlkv("sweep", *line)
    assert "3 jobs submitted" in queued
    assert "plans the layouts when these have ended" in queued
    again = mlkv("sweep", *line)
    assert "0 jobs submitted" in again
    assert "plans the layouts already" in again
    shown = mlkv("status", "tiny")
    assert "1 layout follows by rule" in shown
    assert "driver: job" in shown
    assert "follow" not in mlkv("status", "tiny", "--watch", timeout=1200), "which goes on with what the job plans"
    assert (len(mlkv.store.plans("tiny")), all_done(mlkv.store)()) == (2, True), mlkv("logs", "tiny", "driver")
    assert "jobs submitted" in mlkv("logs", "tiny", "driver")
    assert "0 jobs submitted" in mlkv("sweep", *line)
    assert set(attempts(mlkv.store).values()) == {1}
    assert "follow" not in mlkv("status", "tiny")
    lost = [*line, "similarity.windows=5"]
    [job] = re.findall(r"job (\S+) plans the layouts", mlkv("sweep", *lost))
    cluster.run("scancel", job)
    assert eventually(all_done(mlkv.store), 600, 1.0)
    assert "1 layout follows by rule" in mlkv("status", "tiny"), "whose job is gone"
    assert "jobs submitted" in mlkv("sweep", *lost)
    assert "follow" not in mlkv("status", "tiny")
