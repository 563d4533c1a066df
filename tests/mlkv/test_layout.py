"""Layouts: every pattern against its definition, every broken rule by name, budgets against brute force."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Container
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mlkv.layout import KVLayout, Latent, divisors, mha
from mlkv.patterns import PATTERNS, Pattern, Position, budgets, cla, make, name_of, of_budget
from sweeps.planning.layout_config import LayoutConfig

LAYERS = st.integers(1, 40)
POSSIBLE: dict[str, Callable[[int], Container[int]]] = {
    "even": lambda layers: range(1, layers + 1),
    "cla": lambda layers: {-(-layers // factor) for factor in range(1, layers + 1)},
    "keep_ends": lambda layers: range(3, layers + 1),
    "dense_front": lambda layers: range(2, layers + 1),
    "dense_back": lambda layers: range(2, layers + 1),
    "pizza": lambda layers: range(1, layers + 1),
    "sandwich": lambda layers: range(1, layers + 1),
    "fusedkv_lite": lambda layers: range(2, layers + 1),
    "fusedkv_lite_reverse": lambda layers: range(2, layers + 1),
    "svformer": lambda layers: {layers},
}
HEADS = st.sampled_from([1, 2, 4, 6, 12, 32])


def owners(pattern: str, layers: int, kv_layers: int) -> tuple[int, ...]:
    return make(pattern, layers, 1, kv_layers, 1).owners


@given(st.data(), st.sampled_from(list(PATTERNS)), LAYERS, HEADS)
def test_a_pattern_makes_the_layout_asked_for_or_says_which_sizes_it_takes(
    data: st.DataObject, pattern: str, layers: int, heads: int
) -> None:
    kv_layers = data.draw(st.integers(-1, layers + 2))
    kv_heads = data.draw(st.sampled_from(divisors(heads)))
    if kv_layers not in POSSIBLE[pattern](layers):
        with pytest.raises(ValueError, match=f"layout.kv_layers = {kv_layers}: pattern {pattern} on {layers} layers"):
            make(pattern, layers, heads, kv_layers, kv_heads)
        return
    layout = make(pattern, layers, heads, kv_layers, kv_heads)
    value_owners = 1 if pattern == "svformer" else kv_layers
    assert (layout.layers, layout.kv_layers) == (layers, kv_layers)
    assert layout.budget == (kv_layers + value_owners) * kv_heads / 2
    for part in (layout.keys, layout.values):
        assert sum(1 + len(part.readers(owner)) for owner in part.owners) == layers
        nearest = list(part.kv_source_layers) == sorted(part.kv_source_layers)
        assert nearest or PATTERNS[pattern].values, "each layer reads the nearest owner below"


@given(LAYERS, st.data())
def test_even_groups_differ_by_at_most_one_layer(layers: int, data: st.DataObject) -> None:
    kv_layers = data.draw(st.integers(1, layers))
    layout = make("even", layers, 1, kv_layers, 1)
    sizes = [len(layout.readers(owner)) for owner in layout.owners]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("kv_layers", "expected"),
    [(12, tuple(range(12))), (4, (0, 3, 6, 9)), (6, (0, 2, 4, 6, 8, 10)), (2, (0, 6)), (1, (0,))],
)
def test_even_places_owners_where_the_published_models_have_them(kv_layers: int, expected: tuple[int, ...]) -> None:
    assert owners("even", 12, kv_layers) == expected


def test_even_differs_from_the_published_rule_only_by_float_rounding() -> None:
    def published(layers: int, kv_layers: int) -> tuple[int, ...]:
        return (0, *(int((i + 1) * (layers / kv_layers)) for i in range(kv_layers - 1)))

    pairs = [(layers, m) for layers in range(1, 97) for m in range(1, layers + 1)]
    different = [pair for pair in pairs if owners("even", *pair) != published(*pair)]
    assert (len(different), different[0]) == (37, (30, 22))


@pytest.mark.parametrize(
    ("layers", "factor", "expected"),
    [(10, 3, (0, 1, 4, 7)), (20, 2, tuple(range(0, 20, 2))), (5, 5, (0,)), (5, 1, (0, 1, 2, 3, 4)), (5, 4, (0, 1))],
)
def test_cla_puts_the_short_group_first(layers: int, factor: int, expected: tuple[int, ...]) -> None:
    sources = cla(layers, factor)
    assert tuple(dict.fromkeys(sources)) == expected


@pytest.mark.parametrize("factor", [0, 11, -1])
def test_cla_names_the_factors_it_takes(factor: int) -> None:
    with pytest.raises(ValueError, match=f"layout.factor = {factor}: cla on 10 layers takes 1 to 10"):
        cla(10, factor)


@pytest.mark.parametrize(
    ("pattern", "layers", "kv_layers", "sources"),
    [
        ("keep_ends", 8, 5, (0, 1, 1, 3, 3, 5, 5, 7)),
        ("dense_front", 8, 5, (0, 1, 2, 3, 3, 3, 3, 7)),
        ("dense_back", 8, 5, (0, 1, 1, 1, 1, 5, 6, 7)),
        ("pizza", 8, 3, (0, 1, 2, 2, 2, 2, 2, 2)),
        ("sandwich", 8, 3, (0, 1, 1, 1, 1, 1, 1, 7)),
        ("sandwich", 8, 4, (0, 1, 2, 2, 2, 2, 2, 7)),
    ],
)
def test_patterns_on_eight_layers(pattern: str, layers: int, kv_layers: int, sources: tuple[int, ...]) -> None:
    assert make(pattern, layers, 1, kv_layers, 1).kv_source_layers == sources


def test_yoco_on_22_layers_is_pizza() -> None:
    assert make("pizza", 22, 1, 12, 1).kv_source_layers == (*range(11), *[11] * 11)


def text(pattern: str, layers: int, kv_layers: int, position: Position) -> str:
    """As LCKV's configurations write it."""
    return "_".join(map(str, make(pattern, layers, 1, kv_layers, 1, position=position).kv_source_layers))


@pytest.mark.parametrize(
    ("pattern", "layers", "kv_layers", "position", "published"),
    [
        ("sandwich", 22, 3, "top", "0_" + "20_" * 20 + "21"),
        ("sandwich", 22, 11, "top", "0_1_2_3_4_" + "16_" * 12 + "17_18_19_20_21"),
        ("sandwich", 22, 3, "middle", "0_" + "10_" * 20 + "21"),
        ("sandwich", 12, 3, "top", "0_" + "10_" * 10 + "11"),
        ("sandwich", 8, 3, "top", "0_6_6_6_6_6_6_7"),
        ("pizza", 22, 12, "bottom", "0_1_2_3_4_5_6_7_8_9_10" + "_11" * 11),
        ("pizza", 8, 3, "middle", "0_1_4_4_4_4_4_4"),
        ("pizza", 8, 3, "top", "0_1_7_7_7_7_7_7"),
        ("even", 7, 4, "top", "0_2_2_4_4_6_6"),
        ("even", 7, 3, "middle", "0_2_2_2_5_5_5"),
        ("even", 4, 1, "top", "3_3_3_3"),
    ],
)
def test_owners_stand_where_the_study_has_them(
    pattern: str, layers: int, kv_layers: int, position: Position, published: str
) -> None:
    assert text(pattern, layers, kv_layers, position) == published


@given(st.sampled_from(["even", "pizza", "sandwich"]), LAYERS, st.sampled_from(["middle", "top"]), st.data())
def test_a_layout_whose_owners_moved_is_stored_named_and_counted(
    pattern: str, layers: int, position: Position, data: st.DataObject
) -> None:
    kv_layers = data.draw(st.integers(1, layers))
    layout = make(pattern, layers, 4, kv_layers, 2, position=position)
    assert (layout.kv_layers, layout.budget) == (kv_layers, 2 * kv_layers)
    assert layout.kv_bytes_per_token(8) == 2 * 2 * 8 * 2 * kv_layers
    assert KVLayout.from_dict(json.loads(json.dumps(layout.as_dict()))) == layout
    if layout.reads_above:
        assert name_of(layout, pattern) == f"{PATTERNS[pattern].label_above}-{position}-{2 * kv_layers}"
        assert (layout.forward_passes, layout.backward_passes) == (7, 2)
    assert [layer for segment in layout.segments for layer in segment] == list(range(layers))
    for segment in layout.segments:
        assert all(layout.kv_source_layers[layer] <= segment[-1] for layer in segment)


def test_readers_of_layers_above_are_drawn_with_an_arrow_up() -> None:
    assert make("sandwich", 6, 2, 3, 2, position="top").draw() == "2 ↑4 ↑4 ↑4 2 2"
    assert make("sandwich", 6, 2, 3, 2, position="middle").draw() == "2 ↑2 2 ─ ─ 2"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"forward_passes": -1}, "forward_passes = -1: must be at least 0"),
        ({"backward_passes": 0}, "backward_passes = 0: must be at least 1"),
        ({"kv_source_layers": (0, 0, 2), "forward_passes": 3}, "forward_passes = 3: no layer reads the keys"),
        ({"latent": Latent((4, 4), 2)}, "latent: layers that read from above take keys and values"),
        ({"value_source_layers": (0, 0, 2)}, r"value_source_layers = \[0, 0, 2\]: a layer that reads from above"),
    ],
)
def test_what_goes_with_no_layer_that_reads_from_above_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(KVLayout((0, 2, 2), (2, 2), 4), **fields)


def test_a_position_is_refused_where_nothing_reads_it() -> None:
    with pytest.raises(ValueError, match="position = top: only pattern even, pizza, sandwich has another than bottom"):
        LayoutConfig("cla", position="top")
    with pytest.raises(ValueError, match=r"layout\.forward_passes = 3: MLKV-6 has no layer that reads from above"):
        LayoutConfig("even", kv_layers=3, forward_passes=3).layouts(mha(6, 2))
    (layout,) = LayoutConfig("even", kv_layers=3, position="top", forward_passes=0).layouts(mha(6, 2))
    assert (layout.forward_passes, layout.backward_passes) == (0, 2)


CLA_TABLE_1 = [
    # model, head_dim, query heads, KV heads, pattern, KV layers, published bytes per token (arXiv 2405.12981, table 1)
    ("H128-MHA", 128, 16, 16, "even", 20, 163840),
    ("H128-GQA4", 128, 16, 4, "even", 20, 40960),
    ("H128-MQA", 128, 16, 1, "even", 20, 10240),
    ("H46-MQA", 46, 45, 1, "even", 20, 3680),
    ("H90-MQA-CLA2", 90, 22, 1, "cla", 10, 3600),
    ("H128-GQA2-CLA2", 128, 16, 2, "cla", 10, 10240),
    ("H128-MQA-CLA3", 128, 16, 1, "cla", 7, 3584),
    ("H128-MQA-CLA4", 128, 16, 1, "cla", 5, 2560),
    ("KeepEnds", 128, 16, 1, "keep_ends", 11, 5632),
    ("DenseFront", 128, 16, 1, "dense_front", 11, 5632),
    ("DenseBack", 128, 16, 1, "dense_back", 11, 5632),
]


@pytest.mark.parametrize(("_", "head_dim", "heads", "kv_heads", "pattern", "kv_layers", "published"), CLA_TABLE_1)
def test_bytes_per_token_equal_cla_table_1(
    _: str, head_dim: int, heads: int, kv_heads: int, pattern: str, kv_layers: int, published: int
) -> None:
    layout = make(pattern, 20, heads, kv_layers, kv_heads)
    assert layout.kv_bytes_per_token(head_dim) == published
    assert layout.kv_bytes_per_token(head_dim, element_bytes=4) == 2 * published


@given(st.lists(st.integers(-1, 5), max_size=5))
def test_sources_are_accepted_exactly_when_every_layer_reads_an_owner(sources: list[int]) -> None:
    valid = bool(sources) and all(0 <= s < len(sources) and sources[s] == s for s in sources)
    kv_heads = (1,) * sum(s == i for i, s in enumerate(sources))
    if not valid:
        with pytest.raises(ValueError, match="kv_source_layers"):
            KVLayout(tuple(sources), kv_heads, 1)
        return
    layout = KVLayout(tuple(sources), kv_heads, 1)
    for owner in layout.owners:
        assert layout.readers(owner) == tuple(i for i, s in enumerate(sources) if s == owner != i)


@pytest.mark.parametrize(
    ("sources", "kv_heads", "heads", "message"),
    [
        ((0, 3, 2), (1, 1), 4, r"kv_source_layers\[1\] = 3: a layer reads itself or another layer \(0 to 2\)"),
        ((0, 2, 0), (1,), 4, r"kv_source_layers\[1\] = 2: layer 2 keeps no keys and values, it reads 0"),
        ((0, 0, 1), (1,), 4, r"kv_source_layers\[2\] = 1: layer 1 keeps no keys and values, it reads 0"),
        ((0, 1), (1,), 4, "1 entries for 2 owners"),
        ((0, 1), (1, 3), 4, "kv_heads = 3 at layer 1: must divide 4 query heads"),
        ((0,), (0,), 4, "kv_heads = 0 at layer 0"),
        ((0,), (8,), 4, "kv_heads = 8 at layer 0"),
        ((), (), 4, "at least one layer"),
    ],
)
def test_a_broken_rule_is_named_with_its_layer(
    sources: tuple[int, ...], kv_heads: tuple[int, ...], heads: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        KVLayout(sources, kv_heads, heads)


@given(st.sampled_from(list(PATTERNS)), st.integers(1, 9), st.sampled_from([1, 2, 4, 6]), st.integers(0, 60))
def test_a_budget_finds_every_layout_that_has_it(pattern: str, layers: int, heads: int, budget: int) -> None:
    everything = []
    for kv_layers in range(layers, 0, -1):
        for kv_heads in divisors(heads):
            try:
                everything.append(make(pattern, layers, heads, kv_layers, kv_heads))
            except ValueError:
                continue
    expected = [layout for layout in everything if layout.budget == budget]
    assert of_budget(pattern, budget, mha(layers, heads)) == expected
    whole = {layout.budget for layout in everything if isinstance(layout.budget, int)}
    assert budgets(pattern, mha(layers, heads)) == sorted(whole)
    if budget and not expected:
        with pytest.raises(ValueError, match=f"layout.budget = {budget}: pattern {pattern} on {layers} layers"):
            LayoutConfig(pattern, budget=budget).layouts(mha(layers, heads))


def test_an_impossible_budget_lists_the_possible_ones() -> None:
    with pytest.raises(ValueError, match=r"takes 2, 3, 4, 6$"):
        LayoutConfig("dense_front", budget=5).layouts(mha(3, 2))


def test_an_unknown_pattern_lists_the_known_ones() -> None:
    for call in (lambda: make("evn", 4, 4, 2, 1), lambda: of_budget("evn", 2, mha(4, 4))):
        with pytest.raises(ValueError, match=r"^pattern = evn: must be one of even, cla, .*svformer$"):
            call()


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (mha(12, 12), "MHA-144"),
        (make("even", 12, 12, 12, 4), "GQA-48"),
        (make("even", 12, 12, 12, 1), "MQA-12"),
        (make("even", 12, 12, 4, 12), "MLKV-48"),
        (make("even", 12, 12, 1, 1), "MLKV-1"),
        (KVLayout(cla(10, 3), (1,) * 4, 4), "CLA-4"),
        (make("keep_ends", 8, 4, 5, 2), "KeepEnds-10"),
        (make("pizza", 8, 4, 3, 1), "Pizza-3"),
        (KVLayout((0, 1, 0, 1), (1, 1), 4), "Custom-2"),
        (KVLayout((0, 1), (4, 1), 4), "Custom-5"),
    ],
)
def test_names_are_those_of_the_papers(layout: KVLayout, name: str) -> None:
    assert name_of(layout) == name


def test_one_head_per_layer_of_a_one_headed_model_is_mha() -> None:
    assert name_of(mha(3, 1)) == "MHA-3"


def test_drawing_tells_readers_of_the_owner_below_from_others() -> None:
    assert KVLayout((0, 0, 2, 0, 2), (4, 1), 4).draw() == "4 ─ 1 ←0 ─"


def test_what_plans_import_loads_no_torch() -> None:
    modules = "mlkv.layout, mlkv.shape, mlkv.recipes, mlkv.context, mlkv.families, mlkv.convert"
    code = f"import sys, {modules}; assert not {{'torch', 'transformers', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("layout", [mha(2, 4), make("pizza", 6, 4, 3, 2), KVLayout((0, 0, 2, 0), (4, 2), 4)])
def test_a_layout_is_the_same_after_json(layout: KVLayout) -> None:
    written = json.dumps(layout.as_dict())
    assert list(json.loads(written)) == ["kv_source_layers", "kv_heads", "heads"]
    assert KVLayout.from_dict(json.loads(written)) == layout


def _top_group(layers: int, kv_layers: int) -> tuple[int, ...]:
    return (*range(kv_layers), *[0] * (layers - kv_layers))


def test_a_pattern_takes_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TypeAdapter(LayoutConfig)
    with pytest.raises(ValidationError, match="'svformer', 'explicit' or 'searched'"):
        config.validate_python({"pattern": "top_group"})
    monkeypatch.setitem(PATTERNS, "top_group", Pattern("TopGroup", _top_group))
    (layout,) = config.validate_python({"pattern": "top_group", "kv_layers": 2, "kv_heads": 1}).layouts(mha(5, 4))
    assert layout == KVLayout((0, 1, 0, 0, 0), (1, 1), 4)
    assert [name_of(layout, "top_group"), name_of(layout)] == ["TopGroup-2", "Custom-2"]
    assert layout in of_budget("top_group", 2, mha(5, 4))


def test_a_factor_needs_a_pattern_that_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^factor = 2: only pattern cla has a factor \(pattern = even\)$"):
        LayoutConfig(factor=2)
    monkeypatch.setitem(PATTERNS, "pairs", Pattern("Pairs", PATTERNS["cla"].rule, by_factor=cla))
    assert LayoutConfig("pairs", factor=2, kv_heads=1).layouts(mha(4, 4)) == [KVLayout((0, 0, 2, 2), (1, 1), 4)]
