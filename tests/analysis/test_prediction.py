"""What a layout is expected to cost: the law, its intervals, and what it says without evidence."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.data.reference import read
from analysis.statistics.evidence import EvidenceSet, Row, Size, published_sets, store_sets
from analysis.statistics.prediction import Form, Law, best_form, leave_out, summaries
from analysis.statistics.recipes import own_set, recoveries
from mlkv.layout import mha
from mlkv.patterns import make
from sweeps.store.store import Store
from tests.support.filler import Filler

NONE = Size(0.0, 0.0)
PUBLISHED = published_sets()
SIZES = st.builds(Size, st.floats(0, 6), st.floats(0, 4))


def made(scale: float, name: str = "made", noise: float = 0.0, seed: int = 0, parameters: float = 1e9) -> EvidenceSet:
    """A set by the law itself."""
    rng, form = np.random.default_rng(seed), Form(0.3, 1.5)
    sizes = [Size(h * math.log(2), layers * math.log(2)) for h in range(4) for layers in range(3) if h + layers]
    rows = tuple(Row(str(size), size, scale * form(size) + noise * float(rng.normal())) for size in sizes)
    return EvidenceSet(name, "loss", name, parameters, NONE, rows)


def test_the_published_losses_are_those_of_the_tables() -> None:
    sets = {each.name: each for each in PUBLISHED}
    cla = {row.name: row for row in sets["published/cla-1b"].rows}
    assert cla["H128-MQA-CLA2"].loss == pytest.approx(math.log(13.60) / math.log(13.15) - 1)
    assert cla["H128-MQA-CLA2"].size.layers == pytest.approx(math.log(2))
    mlkv = {row.name: row for row in sets["published/mlkv"].rows}
    assert mlkv["MLKV-1"].loss == pytest.approx(1 - 41.1162 / 52.7853)
    truth = sets["published/ground_truth"]
    lines = [line for line in read("layout_scores") if line["set"] == "ground_truth"]
    assert len(truth.rows) == len({(line["sources"], line["kv_heads"]) for line in lines}) - 1


def test_a_layout_is_as_small_as_its_heads_and_owners() -> None:
    assert Size.of(mha(6, 6)) == NONE
    small = Size.of(make("even", 6, 6, 3, 2))
    assert (small.heads, small.layers) == pytest.approx((math.log(3), math.log(2)))


@settings(max_examples=50)
@given(one=SIZES, more_heads=st.floats(0, 2), more_layers=st.floats(0, 2))
def test_fewer_heads_or_owners_are_never_expected_to_cost_less(
    one: Size, more_heads: float, more_layers: float
) -> None:
    law = LAW
    less = Size(one.heads + more_heads, one.layers + more_layers)
    costs = [law.predict(size, NONE, "loss", 1e9) for size in (one, less)]
    assert costs[0] and costs[1]  # noqa: PT018
    assert costs[0].value <= costs[1].value
    assert costs[0].low <= costs[0].value <= costs[0].high


LAW = Law(PUBLISHED)


def test_a_law_is_found_again_in_what_was_made_by_it() -> None:
    sets = [made(0.01, "one", 1e-4, 1), made(0.012, "two", 1e-4, 2), made(0.008, "three", 1e-4, 3)]
    assert best_form(sets) == Form(0.3, 1.5)
    found = Law(sets).predict(Size(math.log(4), math.log(2)), NONE, "loss", 1e9)
    assert found
    expected = 0.01 * Form(0.3, 1.5)(Size(math.log(4), math.log(2)))
    assert found.value == pytest.approx(expected, rel=0.1)
    assert found.low < expected < found.high
    own = Law(sets).predict(Size(math.log(4), math.log(2)), NONE, "loss", 1e9, sets[1])
    assert own
    assert own.value == pytest.approx(1.2 * expected, rel=0.05)
    assert own.high - own.low < found.high - found.low


def test_intervals_cover_new_models_of_many_drawn_worlds() -> None:
    """Models drawn around a mean: of a further one, a row is in its 95 % interval in about 95 % of worlds."""
    rng, inside, worlds = np.random.default_rng(5), 0, 60
    size = Size(math.log(4), math.log(3))
    for world in range(worlds):
        scales = rng.normal(0.01, 0.003, 6)
        sets = [made(float(a), f"m{i}", 0.002, 100 * world + i) for i, a in enumerate(scales)]
        found = Law(sets[:5]).predict(size, NONE, "loss", 1e9)
        truth = float(scales[5]) * Form(0.3, 1.5)(size) + 0.002 * float(rng.normal())
        assert found
        inside += found.low <= truth <= found.high
    assert inside / worlds >= 0.88


def test_beyond_ten_times_the_evidence_it_says_so_and_without_evidence_there_is_no_number() -> None:
    size = Size(1.0, 1.0)
    flags = [law.extrapolated for at in (2.9e10, 3.1e10) if (law := LAW.predict(size, NONE, "loss", at))]
    assert flags == [False, True]
    assert Law([]).predict(size, NONE, "loss", 1e9) is None
    only_losses = Law([each for each in PUBLISHED if each.kind == "loss"])
    assert only_losses.predict(size, NONE, "accuracy", 1e9) is None
    deep = LAW.predict(Size(1.0, 3.0), NONE, "loss", 1e9)
    assert deep
    assert deep.beyond


def test_the_base_itself_costs_nothing() -> None:
    found = LAW.predict(NONE, NONE, "loss", 1e9)
    assert found
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_published_rows_are_predicted_from_the_others() -> None:
    sets = [each for each in PUBLISHED if each.kind == "loss"]
    found = leave_out(sets)
    assert len(found) == sum(len(each.rows) for each in sets)
    assert all(each.without_model for each in found)
    brief = {each.name for each in sets if each.brief}
    found = [each for each in found if each.set not in brief]
    known = [each for each in found if each.without_model]
    covered = [each.without_model.low <= each.loss <= each.without_model.high for each in known if each.without_model]
    assert sum(covered) / len(covered) >= 0.9
    for test in summaries(found):
        if test.rows > 10:  # better than to expect no loss
            assert test.without_model
            assert test.without_model[0] < 0.6 * test.losses


def test_layouts_that_were_trained_briefly_count_for_no_other_model() -> None:
    brief = {each.name: each for each in PUBLISHED if each.brief}
    assert "published/ground_truth_recall" in brief
    assert "published/ground_truth" not in brief
    without = [each for each in PUBLISHED if not each.brief]
    theirs = {each.row: each.without_model for each in leave_out(PUBLISHED) if each.set == "published/cla-1b"}
    assert theirs == {each.row: each.without_model for each in leave_out(without) if each.set == "published/cla-1b"}


def test_a_stores_trainings_are_a_set_against_the_base_trained_equally(finished: Filler) -> None:
    (found,) = store_sets(finished.store)
    assert found.name == "sweep demo"
    losses = [each[2] / 2.206 - 1 for each in list(finished.figures.values())[2:]]
    assert [row.loss for row in found.rows] == pytest.approx(losses)


def test_a_model_leans_on_its_own_results_and_an_empty_store_has_none(tmp_path: Path) -> None:
    assert store_sets(Store(tmp_path / "none")) == []
    mine = replace(made(0.02, "mine"), tokens=1e6, recovered=0.8, how="convert.merge=svd")
    own = own_set([*PUBLISHED, mine], "mine", LAW)
    assert own is mine
    assert own_set(PUBLISHED, "other", LAW) is None
    first, *rest = recoveries([*PUBLISHED, mine], own, 1e9)
    assert (first.tokens, first.source) == (1e6, "mine")
    sizes = [abs(math.log(1e9 / each.parameters)) for each in rest]
    assert sizes == sorted(sizes)
    assert [each.extrapolated for each in rest] == [10 * each.parameters < 1e9 for each in rest]


def test_trainings_that_were_brief_tell_other_models_nothing_of_recovery() -> None:
    long = replace(made(0.02, "long"), tokens=1e6, recovered=0.8, how="recipe", share=0.05)
    brief = replace(long, name="brief", model="other", share=0.003)
    assert {"long"} == {each.source for each in recoveries([long, brief], None, 1e9)} & {"long", "brief"}
    assert recoveries([long, brief], brief, 1e9)[0].source == "brief", "its own model it does"


def test_every_base_of_the_reference_data_has_its_tokens() -> None:
    """Else layouts that were trained briefly would count for other models."""
    ours = [each for each in PUBLISHED if each.model in {line["model"] for line in read("layout_scores")}]
    assert len(ours) == len({line["set"] for line in read("layout_scores")})
    assert all(each.share is not None for each in ours)


def test_of_several_recipes_the_one_that_lost_least_is_leaned_on_and_its_lengths_foretell_the_rest() -> None:
    """Gaps fall as (1 + t / 1e5)^-0.5, so that a tenth is left after 99e5 tokens."""
    lengths = [1e5, 4e5, 1.6e6]
    good = [
        replace(made(0.01, "sweep"), model="mine", how="good", tokens=t, recovered=1 - (1 + t / 1e5) ** -0.5)
        for t in lengths
    ]
    worse = replace(made(0.03, "other"), model="mine", how="worse", tokens=1e9, recovered=0.99)
    own = own_set([worse, *good], "mine", LAW)
    assert own
    assert own.how == "good"
    first = recoveries([worse, *good], own, 1e9)[0]
    assert first.tokens == pytest.approx(9.9e6, rel=0.1)
    assert "6.2 times the longest" in first.outcome or "6.1 times" in first.outcome
    assert recoveries(good[:1], good[0], 1e9)[0].tokens == 1e5
