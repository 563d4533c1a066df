"""A checkpoint that a user brings: how a line names it, and the layouts that its own KV heads allow."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkv.layout import KVLayout, divisors, from_owners, mha
from mlkv.merges import check_conversion, most_heads
from mlkv.patterns import PATTERNS, budgets, make
from sweeps.cli.view import _inputs
from sweeps.planning.layout_config import LayoutConfig
from sweeps.planning.plan import Plan
from sweeps.store.errors import UserError
from tests.support.bases import write_base
from tests.support.shell import ROOT

Planner = Callable[[Sequence[str]], Plan]
BARE = ["evaluate=none", "measure=none", "convert=none"]
"""Layouts alone: no corpus is read for them."""
GQA_LAYOUT = make("even", 6, 8, 6, 4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("bases") / "gqa")


@pytest.fixture(scope="module")
def whole(text_files: Path) -> list[str]:
    """With a corpus, a conversion and uptraining, and no baselines."""
    corpus = ["corpus=text_files", f"corpus.files=[{text_files}/*.txt]", "corpus.sequence_length=64"]
    return ["evaluate=none", "measure=none", "sweep.baselines=[]", *corpus]


def labels(plan: Plan) -> list[str]:
    return [variant.label for variant in plan.variants]


def ids(plan: Plan) -> dict[str, str]:
    return {variant.label: variant.uptrain.id for variant in plan.variants if variant.uptrain}


def test_a_directory_alone_is_a_base_with_its_own_name(planner: Planner, base: Path, whole: list[str]) -> None:
    plan = planner([*whole, "sweep.baselines=[untouched,mha]", f"model.path={base}/"])
    assert labels(plan) == ["untouched", "GQA-24"]
    assert {variant.layout for variant in plan.variants} == {GQA_LAYOUT}
    assert {variant.config.model.name for variant in plan.variants} == {"gqa"}
    assert plan.variants[0].row().config["model"]["name"] == "gqa"
    named = planner([*whole, "sweep.baselines=[untouched,mha]", "model=pythia-160m-deduped", f"model.path={base}"])
    assert named.config.model.name == "pythia-160m-deduped"
    assert named.steps.keys() == plan.steps.keys()
    line = [*whole, "experiment=quickstart", f"model.path={base}", "layout=mqa"]
    assert planner(line).config.model.name == "gqa"


def test_two_bases_are_told_apart_by_their_names(
    planner: Planner, base: Path, whole: list[str], tmp_path: Path
) -> None:
    others = [write_base(tmp_path / "big", seed=1), write_base(tmp_path / "deep" / "gqa", seed=2)]
    line = [*whole, "layout=mqa", "sweep.baselines=[mha]"]
    two = planner([*line, f"model.path={base},{others[0]}"])
    assert labels(two) == ["GQA-24 model=gqa", "GQA-24 model=big", "MQA-6 model=gqa", "MQA-6 model=big"]
    same_name = labels(planner([*line, f"model.path={base},{others[1]}"]))
    assert same_name[2:] == [f"MQA-6 model={base.parent.name}/gqa", "MQA-6 model=deep/gqa"]


def test_budgets_and_defaults_are_those_of_the_bases_kv_heads(planner: Planner, base: Path, whole: list[str]) -> None:
    line = [*whole, f"model.path={base}"]
    assert labels(planner([*line, "layout=mha,mqa,gqa"])) == ["GQA-24", "MQA-6", "GQA-12"]
    budgets = ["MLKV-8 4×2", "MLKV-8 2×4", "MLKV-4 4×1", "MLKV-4 2×2", "MLKV-4 1×4"]
    assert labels(planner([*line, "layout.budget=8,4"])) == budgets
    assert labels(planner([*line, "layout.kv_layers=3"])) == ["MLKV-12"]
    with pytest.raises(UserError, match=r"gqa: layout\.budget = 48: pattern even on 6 layers of 4 KV heads takes 1, "):
        planner([*line, "layout.budget=48"])
    with pytest.raises(UserError, match=r"layout\.kv_heads = 8 at layer 0: must divide the 4 of the base \(valid: 1, "):
        planner([*line, "layout.kv_heads=8"])
    random = ["layout.kv_heads=8", "convert=scratch", "corpus.vocab_size=300"]
    assert labels(planner([*line, *random])) == ["MHA-48"]


def test_a_share_of_the_cache_is_a_budget_by_another_name(planner: Planner, base: Path, whole: list[str]) -> None:
    line = [*whole, f"model.path={base}"]
    shares = planner([*line, "layout.cache=1/2,0.25"])
    assert labels(shares) == ["GQA-12", "MLKV-12", "MQA-6", "MLKV-6"]
    assert ids(shares) == ids(planner([*line, "layout.budget=12,6"]))
    assert labels(planner([*line, "layout.cache=1"])) == ["GQA-24"]
    assert labels(planner([*line, "layout=cla,pizza", "layout.cache=1/2"])) == ["GQA-12", "CLA-12", "Pizza-12"]
    assert labels(planner([*line, "layout=cla", "layout.factor=2", "layout.cache=1/2"])) == ["CLA-12"]
    patterns = ["layout.pattern=even,sandwich", "layout.cache=1/2", "layout.kv_layers=3"]
    assert labels(planner([*line, *patterns])) == ["MLKV-12", "Sandwich-12"]
    quick = ["experiment=quickstart", *whole]
    share = planner([*quick, "layout.cache=1/6"])
    assert labels(share) == ["MQA-6", "MLKV-6 3×2", "MLKV-6 2×3", "MLKV-6 1×6"]
    assert share.steps.keys() == planner([*quick, "layout.budget=6"]).steps.keys()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["layout.cache=1/5"], r"layout\.cache = 1/5: pattern even on 6 layers of 4 KV heads cannot have that share of "
                               r"the base's 24; nearest: 5/24 \(5 KV heads\)$"),
        (["layout.cache=7/24"], r"nearest: 1/4 \(6 KV heads\) or 1/3 \(8 KV heads\)$"),
        (["layout.cache=1/3", "layout.kv_layers=3"], r"even with kv_layers = 3 .* nearest: 1/4 .*kv_layers=null"),
        (["layout.cache=3/2"], r"layout\.cache = 3/2: must be a share above 0 and at most 1, such as 1/2 or 0\.25"),
        (["layout.cache=0"], r"layout\.cache = 0: must be a share"),
        (["layout.cache=1/0"], r"layout\.cache = 1/0: must be a share"),
        (["layout.cache=half"], r"layout\.cache = half: must be a share"),
        (["layout.cache=true"], r"layout\.cache = [Tt]rue: must be a share"),
        (["layout.cache=1e-999999999"], r"layout\.cache = .*: must be a share"),
        (["layout.cache=1/2", "layout.budget=4"], r"layout: budget = 4 and cache = 1/2: both set; choose one"),
        (["layout=explicit", "layout.cache=1/2"], r"layout: cache = 1/2: pattern explicit has its size written out"),
        (["layout.budget=12", "layout.kv_layers=5"], r"budget = 12: .* with kv_layers = 5 .* takes 5, 10, 20; "),
    ],
)  # fmt: skip
def test_a_size_that_cannot_be_is_one_line(
    planner: Planner, base: Path, whole: list[str], line: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        planner([*whole, f"model.path={base}", *line])
    assert "\n" not in str(caught.value)


def test_what_the_filter_removes_is_never_refused(planner: Planner, base: Path, whole: list[str]) -> None:
    line = [*whole, f"model.path={base}"]
    heads = [*line, "layout.kv_heads=1,3,8"]
    assert labels(planner([*heads, 'sweep.filter="kv_heads < 3"'])) == ["MQA-6"]
    assert labels(planner([*line, "layout.kv_layers=3,7", 'sweep.filter="kv_layers < 7"'])) == ["MLKV-12"]
    share = ["layout.cache=1/4,1/5", "layout.kv_heads=1", "sweep.filter=\"layout.cache == '1/4'\""]
    assert labels(planner([*line, *share])) == ["MQA-6"]
    lengths = ["corpus.sequence_length=64,4096", 'sweep.filter="corpus.sequence_length < 99"']
    assert labels(planner([*line, *lengths])) == ["GQA-24"]
    with pytest.raises(UserError, match="kv_heads = 3"):
        planner([*heads, "sweep.filter=\"family == 'MQA'\""])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["model={base}"], r"model = {base}: a directory with a checkpoint is given as model\.path={base}$"),
        (["model=/nowhere"], r"model = /nowhere: .* given as model\.path=DIR, and there is no /nowhere"),
        (["model=acme/words"], r"model = acme/words: valid: .*tiny.* a model of the hub as model\.hub=acme/words$"),
        (["model=tny"], r"model = tny: did you mean tiny\? .*model\.path=DIR$"),
        (["model=local"], r"model: set decoder \(to train a base here\), hub or path"),
        (["model=tiny", "model.path={base}"], r"model: decoder and hub or path are both set"),
    ],
)
def test_a_model_that_is_named_wrongly_gets_a_line_that_helps(
    planner: Planner, base: Path, line: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message.format(base=re.escape(str(base)))):
        planner([*BARE, *(part.format(base=base) for part in line)])


KV_LAYOUTS = st.builds(
    lambda owners, heads: KVLayout(from_owners(6, {0, *owners}), tuple(heads[: len({0, *owners})]), 8),
    st.sets(st.integers(1, 5)),
    st.lists(st.sampled_from([1, 2, 4, 8]), min_size=6, max_size=6),
)


@given(KV_LAYOUTS, KV_LAYOUTS)
def test_the_most_heads_are_those_that_conversion_can_make(base: KVLayout, other: KVLayout) -> None:
    """Of any base, whether its heads differ by layer or not."""
    layout = replace(other, kv_heads=most_heads(base, other.kv_source_layers))
    for owner, most in zip(layout.owners, layout.kv_heads, strict=True):
        members = [i for i, source in enumerate(layout.kv_source_layers) if source == owner]
        possible = [d for d in divisors(8) if all(base.heads_of(i) % d == 0 for i in members)]
        assert most == max(possible)
    if layout.budget <= base.budget:
        check_conversion(base, layout)


@given(KV_LAYOUTS, st.sampled_from(list(PATTERNS)), st.integers(1, 48))
def test_whatever_a_size_gives_can_be_made_of_the_base(base: KVLayout, pattern: str, budget: int) -> None:
    assert LayoutConfig().layouts(base) == [base], "no size is the base's own layout"
    rule, possible = LayoutConfig(pattern, budget=budget), budgets(pattern, base)
    if budget not in possible:
        with pytest.raises(ValueError, match=rf"layout\.budget = {budget}: pattern {pattern} on 6 layers of"):
            rule.layouts(base)
    for layout in rule.layouts(base) if budget in possible else ():
        check_conversion(base, layout)
        assert layout.budget == budget


def test_from_random_weights_a_layout_may_have_every_query_head() -> None:
    assert LayoutConfig().layouts(GQA_LAYOUT, mha(6, 8)) == [mha(6, 8)]
    assert LayoutConfig(kv_layers=3).layouts(GQA_LAYOUT, mha(6, 8)) == [make("even", 6, 8, 3, 8)]


def test_the_documented_lines_plan_a_model_of_ones_own(
    planner: Planner, base: Path, text_files: Path, tmp_path: Path
) -> None:
    """Each line of the section, without what the hub would be asked for."""
    section = (ROOT / "docs" / "experiments.md").read_text().partition("## A model of your own")[2]
    lines = re.findall(r"^mlkv (?:plan|sweep) (.*?)(?:\s*#.*)?$", section, re.MULTILINE)
    local = [line for line in lines if "model.path=" in line]
    assert len(local) == len(lines) - 1 == 5
    second = write_base(tmp_path / "second", seed=3)
    corpus = ["corpus=text_files", f"corpus.files=[{text_files}/*.txt]", "corpus.sequence_length=64"]
    for line in local:
        words = line.replace("DIR1", str(base)).replace("DIR2", str(second)).replace("DIR", str(base)).split()
        plan = planner([*words, *corpus])
        assert all("convert=none" in line or variant.base for variant in plan.variants)


def test_a_plan_says_which_ids_have_no_embedding(
    planner: Planner, base: Path, whole: list[str], tmp_path: Path
) -> None:
    longer = shutil.copytree(base, tmp_path / "longer")
    content = json.loads((longer / "tokenizer.json").read_text())
    plain = {"special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    first = len(content["model"]["vocab"])
    content["added_tokens"] += [{"id": i, "content": f"<extra{i}>"} | plain for i in range(first, 331)]
    (longer / "tokenizer.json").write_text(json.dumps(content))
    lines = {
        place: [str(line) for line in _inputs(planner([*whole, f"model.path={place}"]))] for place in (base, longer)
    }
    assert "tokenizer: that of model gqa" in lines[base]
    [note] = [line for line in lines[longer] if line.startswith("tokenizer: that of model longer; ")]
    assert "its ids 320 to 330 cannot be trained on" in note
