"""Whatever files hold, the import reads them or refuses them in one line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.data import frame
from analysis.statistics.results import results
from analysis.tables import results_table
from mlkv.files import Json
from tests.support.lm_eval_files import GSM8K, MEMBERS, MMLU, content, few_examples, read_or_refusal, write

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | st.just(math.nan) | st.just(10**400)
    | st.text(max_size=8) | st.sampled_from(["\ud800", "\x00", "a b", "acc,none", "mmlu", "../x", ","]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["acc,none", "mmlu", "acc", ""]) | st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
SAMPLES: Json = {"n-samples": {"arc": {"original": 10, "effective": 5}}}
WHOLE = content(
    {**MMLU, "gsm8k": GSM8K},
    group_subtasks=MEMBERS,
    groups={"mmlu": {"acc,none": 0.3}},
    configs={"arc": {"task": "arc"}},
    higher_is_better={"arc": {"acc": True}},
    model_name="me/llama",
    model_source="hf",
    chat_template="{{x}}",
    date=1.5,
    **SAMPLES,
)


def places(value: Any, before: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    yield before
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*before, key))


def replaced(value: Any, place: tuple[str, ...], other: Any) -> Any:
    if not place:
        return other
    return {key: replaced(inner, place[1:], other) if key == place[0] else inner for key, inner in value.items()}


@settings(few_examples, max_examples=60)
@given(st.sampled_from(sorted(places(WHOLE))), anything, anything)
def test_whatever_stands_in_a_file_it_is_read_or_refused_in_a_line(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[str, ...], other: Any, whole: Any
) -> None:
    directory = write(tmp_path_factory.mktemp("any"), replaced(WHOLE, place, other), WHOLE, whole)
    found = read_or_refusal(directory)
    if isinstance(found, str):
        assert "\n" not in found
        return
    path = directory / "out.csv"
    path.write_text(frame.write_csv(found.table), encoding="utf-8")
    again = frame.read_csv(path)
    pd.testing.assert_frame_equal(again, found.table)
    results_table.markdown(results(again))
    assert "llama" in " ".join(found.table["variant"])


@few_examples
@given(st.lists(st.lists(st.text(max_size=6), max_size=6), max_size=4), st.booleans())
def test_whatever_stands_in_a_table_it_is_read_or_refused_in_a_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[list[str]], layouts: bool
) -> None:
    directory = write(tmp_path_factory.mktemp("any"), WHOLE)
    heading = "variant,baseline,kv_layers,kv_heads" if layouts else "variant,batch,metric,value,context"
    text = "\n".join([heading, *map(",".join, lines)])
    (directory / ("layouts.csv" if layouts else "speed.csv")).write_text(text, encoding="utf-8", newline="")
    found = read_or_refusal(directory)
    assert "csv" in found if isinstance(found, str) else not results(found.table).frame.empty
