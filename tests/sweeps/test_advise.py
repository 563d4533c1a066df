"""`mlkv advise`: what fits, in what order, what the line is, what is refused; docs/advise.md shows what it prints."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mlkv.layout import KVLayout
from sweeps.cli.advise import Advice, AdviseOptions, make_advice, read_count, read_memory, worth_a_look
from sweeps.cli.advise_json import of_advice
from sweeps.planning.compose import Composer
from sweeps.planning.fits import Serving, fits, named_model
from sweeps.planning.resolve import Resolver
from sweeps.store.errors import UserError
from sweeps.store.store import Store
from tests.support.advice import LINE, PAGE, advice_of, example, printed
from tests.support.shell import ROOT, exit_status

GIVEN: dict[str, Any] = {
    **{"json": False, "tp": "1", "gpu": None, "cache": "model", "dtype": "bf16", "all": False, "evaluate": False},
    "config_dir": None,
}


def options(store: Path, **given: Any) -> AdviseOptions:
    return AdviseOptions(**{**GIVEN, "store": store, **given})


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("advise") / "none"


@pytest.fixture(scope="module")
def advice(empty: Path) -> Advice:
    """Of a small model, whose line is planned in a moment."""
    line = "mlkv advise --model tiny-24x16 --memory 0.1GB --context 256 --batch 64 --tp 2 --gpu H100"
    return advice_of(line, empty)


@pytest.mark.long(minutes=1)
def test_the_page_shows_what_is_printed(empty: Path) -> None:
    """`python -m tests.support.advice` writes it anew. Expected losses change with the evidence; what is printed before
    them does not."""
    advice = advice_of(LINE, empty)
    assert advice.problem is None
    shown, now = (text.splitlines() for text in (example(PAGE.read_text(), LINE), printed(advice)))
    assert shown[:4] == now[:4]
    assert shown[4].split() == now[4].split()
    begun = ("expected loss: relative to the base trained equally", "tokens to recover", "to run:")
    for start in begun:
        assert [line.startswith(start) for line in shown].count(True) == 1
        assert [line.startswith(start) for line in now].count(True) == 1


def test_the_line_can_be_planned_and_every_layout_fits(advice: Advice) -> None:
    assert advice.problem is None  # it has been planned
    assert all(each.fit.bytes.total <= 0.1e9 for each in advice.fitting)
    assert not advice.base.fits(advice.serving)
    assert 0 < len(advice.worth) <= 10
    losses = [each.cost.value for each in advice.worth if each.cost]
    assert losses == sorted(losses)
    sizes = [each.fit.bytes.total for each in advice.worth]
    assert sizes == sorted(sizes, reverse=True)
    most = max(each.fit.bytes.total for each in advice.fitting)
    assert sizes[0] <= most


def test_none_that_is_left_out_costs_less_in_fewer_bytes_than_the_first(advice: Advice) -> None:
    first = advice.worth[0]
    for each in advice.fitting:
        assert each.cost
        assert first.cost
        assert each.cost.value >= first.cost.value


def test_json_has_all_of_it(advice: Advice) -> None:
    found = json.loads(json.dumps(of_advice(advice), allow_nan=False))
    assert len(found["layouts"]) == len(advice.fitting)
    assert sum(each["shown"] for each in found["layouts"]) == len(advice.worth)
    for each in found["layouts"]:
        KVLayout.from_dict(each["layout"])
        assert sum(each["bytes"][part] for part in ("weights", "cache", "activations")) == each["bytes"]["total"]
    docs = (ROOT / "docs" / "automation.md").read_text()
    assert not [key for key in (*found, *found["layouts"][0]) if f"`{key}`" not in docs]


def test_less_memory_never_admits_more_and_never_the_larger(advice: Advice) -> None:
    memories = [1e6 * mb for mb in (20, 25, 30, 40, 60, 80, 100)]
    admitted = [
        {each.fit.layout for each in advice.fitting if each.fit.fits(replace(advice.serving, memory=memory))}
        for memory in memories
    ]
    assert all(less <= more for less, more in pairwise(admitted))
    assert len({len(each) for each in admitted}) > 2
    assert worth_a_look([]) == []


@pytest.mark.parametrize("given", ["tiny", "qwen3-8b", "Qwen/Qwen3-8B-Base"])
def test_a_model_is_named_as_conf_or_the_hub_calls_it(given: str, empty: Path) -> None:
    found = named_model(given, Composer(), Resolver(Store(empty), only_shown=True))
    assert found.line == ("model=tiny" if given == "tiny" else "model=qwen3-8b")
    assert found.trained_here == (given == "tiny")


def test_a_directory_needs_no_weights_to_be_advised_on_and_the_line_says_what_it_lacks(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 64}
    config |= {"rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    store = tmp_path / "store"
    found = make_advice(options(store, model=str(tmp_path), memory="1MB", context="64", batch="4"), Store(store))
    assert found.named.model.layout.kv_heads == (2,) * 4
    assert found.line[0] == f"model.path={tmp_path}"
    assert found.problem
    assert "once it can be planned" in printed(found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"memory": "24"}, "memory = 24: a number above 0 with a unit, as in 24GB (valid: MB, GB"),
        ({"memory": "0GB"}, "memory = 0GB: a number above 0"),
        ({"context": "4q"}, "context = 4q: a whole number above 0; k is times 1,024"),
        ({"batch": "0"}, "batch = 0: a whole number above 0"),
        ({"batch": None}, "advise: give --batch"),
        ({"gpu": "H101"}, "gpu = H101: did you mean H100? valid: A10,"),
        ({"cache": "int3"}, "cache = int3: did you mean int"),
        ({"dtype": "int8"}, "dtype = int8: valid: bf16, fp16, fp32"),
        ({"model": "tinny"}, "model = tinny: no such directory, and no model of conf/model; did you mean tiny?"),
        ({"tp": "4"}, "tp = 4: must divide the model's 6 query heads (valid: 1, 2, 3, 6)"),
    ],
)
def test_a_mistake_is_one_line(given: dict[str, Any], message: str, empty: Path) -> None:
    right = {"model": "tiny", "memory": "24GB", "context": "32k", "batch": "64"}
    with pytest.raises(UserError) as refused:
        make_advice(options(empty, **{**right, **given}), Store(empty))
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_units_are_those_of_the_help() -> None:
    assert read_memory("24GB") == 24e9
    assert read_memory("1.5 gib") == 1.5 * 2**30
    assert read_count("context", "32k") == 32_768
    assert read_count("context", "1M") == 2**20


def test_nothing_fits_is_said_and_is_no_success(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["advise", "--model", "tiny", "--memory", "1MB", "--context", "1k", "--batch", "1", "--store", str(empty)]
    assert exit_status(*words) == 1
    assert "no layout fits; the smallest of 67 takes" in capsys.readouterr().out


def test_fits_of_the_same_owners_and_heads_have_the_same_bytes(empty: Path) -> None:
    named = named_model("tiny", Composer(), Resolver(Store(empty), only_shown=True))
    _, others = fits(named.model, Serving(memory=1e9, context=256, batch=2))
    assert len({each.layout for each in others}) == len(others)
    for each in others:
        assert each.per_token == each.layout.kv_bytes_per_token(named.model.shape.head_dim)
        assert each.bytes.weights == 2 * named.model.shape.parameters(each.layout)
