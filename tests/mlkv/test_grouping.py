"""Which heads merge: groups of equal size that lose least, an order that changes nothing, every cell of merges."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlkv.convert.calibration import Calibration, calibrate
from mlkv.convert.frames import FRAMES, key_frames
from mlkv.convert.grouping import clusters, grouped, pair_losses, similar_orders
from mlkv.convert.heads import Group, groups_of, in_frames
from mlkv.convert.step import convert
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, mha
from mlkv.merges import MERGES, FrameKind, check_conversion, counted_grouping
from mlkv.patterns import make
from mlkv.recipes import ConvertRecipe
from tests.support.matrix import HEADS, LAYERS, LAYOUTS, SHAPES, VOCAB
from tests.support.parity import State, assert_unchanged
from tests.support.tiny import blocks_of

IDS = torch.randint(VOCAB, (3, 40), generator=torch.Generator().manual_seed(5))
EVERY_FRAMES = pytest.mark.parametrize("frames", [None, "orthogonal", "any"])


@cache
def known_base(shape: str, source: str) -> tuple[MLKVForCausalLM, Calibration]:
    base = base_model(shape, LAYOUTS[source])
    return base, calibrate(base, IDS)


def base_model(shape: str, layout: KVLayout) -> MLKVForCausalLM:
    base = MLKVForCausalLM.from_shape(SHAPES[shape], layout, seed=11).eval()
    generator = torch.Generator().manual_seed(4)
    for parameter in base.parameters():  # biases are born as zeros, which would hide mistakes
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return base


def random_heads(seed: int, heads: int, tokens: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(heads, tokens, width, generator=generator, dtype=torch.float64)


# --- what two heads lose ------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(0, 3), st.integers(0, 4))
def test_two_heads_lose_what_their_merge_leaves_of_them(seed: int, planes: int, rest: int) -> None:
    assume(planes + rest)
    ours, theirs = random_heads(seed, 2, 30, 2 * planes + rest), random_heads(seed + 1, 3, 30, 2 * planes + rest)
    for i in range(2):
        for j in range(3):
            pair = torch.stack([ours[i], theirs[j]])
            losses = {kind: pair_losses(ours, theirs, 2 * planes, kind)[i, j] for kind in (None, "orthogonal", "any")}
            maps = {kind: key_frames(FRAMES[kind], pair, 2 * planes) for kind in FRAMES}
            turned = pair @ maps["orthogonal"]
            torch.testing.assert_close(losses["orthogonal"], (turned[0] - turned[1]).square().sum())
            common = (pair @ maps["any"]).mean(0)
            torch.testing.assert_close(losses["any"], (common @ maps["any"].mT - pair).square().sum())
            torch.testing.assert_close(losses[None], (pair[0] - pair[1]).square().sum())


# --- groups of equal size -----------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 4))
def test_clusters_are_equal_in_size_and_no_worse_than_neighbours(seed: int, count: int, size: int) -> None:
    points = np.random.default_rng(seed).normal(size=(count * size, 2))
    distances = np.square(points[:, None] - points[None, :]).sum(-1)

    def within(found: list[list[int]]) -> float:
        return sum(distances[np.ix_(each, each)].sum() for each in found)

    found = clusters(distances, count)
    assert sorted(head for each in found for head in each) == list(range(count * size))
    assert [len(each) for each in found] == [size] * count
    neighbours = [list(range(i * size, (i + 1) * size)) for i in range(count)]
    assert within(found) <= within(neighbours) * (1 + 1e-9)


@given(st.permutations(range(12)), st.sampled_from([2, 3, 4, 6]))
def test_heads_of_one_kind_are_found_wherever_they_stand(order: list[int], count: int) -> None:
    kinds = np.array(order) % count
    found = clusters((kinds[:, None] != kinds[None, :]).astype(float), count)
    assert all(len({int(kinds[head]) for head in each}) == 1 for each in found)


@EVERY_FRAMES
def test_heads_of_other_layers_are_matched_with_the_owners(frames: FrameKind | None) -> None:
    """The readers' heads are the owner's in another order, and all layers see the same."""
    base = base_model("neox", mha(LAYERS, HEADS))
    orders = {0: [0, 1, 2, 3], 1: [2, 0, 3, 1], 2: [3, 2, 1, 0]}
    state = base.model.state_dict()
    for layer, order in orders.items():
        for name in ("k.weight", "k.bias", "v.weight", "v.bias"):
            own = state[f"blocks.0.attention.{name}"].unflatten(0, (HEADS, -1)).clone()
            state[f"blocks.{layer}.attention.{name}"] = own[order].flatten(0, 1)
    inputs = torch.randn(200, base.shape.width, generator=torch.Generator().manual_seed(1))
    seen = Calibration(dict.fromkeys(range(LAYERS), inputs), {})
    group = Group(base.layout, make("even", LAYERS, HEADS, 2, HEADS), 0, base.shape.rotated_dims)
    found = similar_orders(state, group, frames, seen)
    for layer, order in orders.items():
        assert [order[head] for head in found[layer]] == [0, 1, 2, 3]


# --- conversion ---------------------------------------------------------------------------------------------------


def test_heads_that_are_copies_merge_without_loss_wherever_they_stand() -> None:
    """Heads 0 and 2 are one, and 1 and 3: as neighbours they would not merge."""
    base = base_model("opt", mha(LAYERS, HEADS))
    for block in blocks_of(base.model):
        for projection in (block.attention.k, block.attention.v):
            for parameter in projection.parameters():
                heads = parameter.data.unflatten(0, (HEADS, -1))
                parameter.data = torch.cat([heads[:2], heads[:2]]).flatten(0, 1)
    calibration, logits = calibrate(base, IDS), base(IDS).logits
    for merge in ("mean", "pairwise", "first", "fisher", "aligned", "svd"):
        similar = convert(base, LAYOUTS["gqa"], ConvertRecipe(merge=merge, grouping="similar"), calibration).eval()
        adjacent = convert(base, LAYOUTS["gqa"], ConvertRecipe(merge=merge), calibration).eval()
        torch.testing.assert_close(similar(IDS).logits, logits, atol=1e-3, rtol=1e-3)
        assert (adjacent(IDS).logits - logits).abs().max() > 0.1, merge


def test_fisher_information_moves_with_its_head() -> None:
    base = base_model("neox", mha(LAYERS, HEADS))
    weight = torch.tensor([0.0, 0.0, 1.0, 0.0])
    known = replace(calibrate(base, IDS), fisher=dict.fromkeys(range(LAYERS), (weight, weight)))
    converted = convert(base, LAYOUTS["gqa"], ConvertRecipe(merge="fisher", grouping="similar"), known)
    for old, new in zip(blocks_of(base.model), blocks_of(converted.model), strict=True):
        head = old.attention.v.weight.unflatten(0, (HEADS, -1))[2]
        merged = new.attention.v.weight.unflatten(0, (2, -1))
        assert any(torch.allclose(each, 2 * head) or torch.allclose(each, head) for each in merged)


CELLS = st.tuples(
    st.sampled_from(sorted(SHAPES)),
    st.sampled_from(["mha", "gqa", "cla", "explicit"]),
    st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from(["adjacent", "similar"]),
)


@settings(max_examples=15)
@given(CELLS, st.sampled_from(["orthogonal", None]))
def test_before_they_are_averaged_heads_compute_the_same_in_every_cell(
    cell: tuple[str, str, str, str], frames: FrameKind | None
) -> None:
    """Families (with biases), GQA sources, shared ones, owners of different head counts. A source that several owners
    share is left out: each owner has a copy of its own."""
    shape, source, name, grouping = cell
    assume(fits(LAYOUTS[source], layout := LAYOUTS[name]))
    base, calibration = known_base(shape, source)
    assume(not (layout.apart and grouping == "similar"))
    made_of = list(groups_of(base.layout, layout, base.shape.rotated_dims))
    read = [(layer, kind) for group in made_of for layer in group.sources for kind in group.kinds]
    assume(len(read) == len(set(read)))

    def change(state: State) -> State:
        for group in made_of:
            if not group.merges:
                continue
            known = calibration
            if grouping == "similar":
                moved, known = grouped(state, group, frames, calibration)
                state = state | moved
            if frames == "orthogonal":
                state = state | in_frames(state, group, FRAMES[frames], known)
        return state

    assert_unchanged(base, change, IDS)


@settings(max_examples=15)
@given(CELLS, st.sampled_from(sorted(MERGES)))
def test_every_merge_makes_every_cell(cell: tuple[str, str, str, str], merge: str) -> None:
    shape, source, name, grouping = cell
    assume(fits(LAYOUTS[source], layout := LAYOUTS[name]))
    base, calibration = known_base(shape, source)
    recipe = ConvertRecipe(merge=merge, grouping="similar" if grouping == "similar" else "adjacent")
    if layout.apart and counted_grouping(grouping, merge, base.layout, layout) == "similar":
        with pytest.raises(ValueError, match="grouping = similar: keys and values merge in different groups"):
            convert(base, layout, recipe, calibration)
        return
    converted = convert(base, layout, recipe, calibration)
    assert converted.layout == layout
    assert converted(IDS).logits.isfinite().all()
    if counted_grouping(grouping, merge, base.layout, layout) == "adjacent":
        same = convert(base, layout, replace(recipe, grouping="adjacent"), calibration).state_dict()
        assert all(torch.equal(weight, same[key]) for key, weight in converted.state_dict().items())


def fits(source: KVLayout, layout: KVLayout) -> bool:
    try:
        check_conversion(source, layout)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("merge", "source", "layout", "counted"),
    [
        ("mean", "mha", "gqa", "similar"),
        ("mean", "mha", "mqa", "adjacent"),  # all heads of a layer become one
        ("mean", "mha", "mlkv", "adjacent"),
        ("mean", "mha", "cla", "similar"),
        ("svd", "gqa", "keep_ends", "similar"),  # layers of two heads that are matched
        ("svd", "gqa", "gqa", "adjacent"),  # nothing merges
        ("random", "mha", "gqa", "adjacent"),  # no head of the base stays
        ("mean", "mha", "dense_front", "adjacent"),
        ("mean", "mha", "dense_back", "similar"),  # one owner merges all heads of three layers
    ],
)
def test_grouping_counts_where_there_is_a_choice(merge: str, source: str, layout: str, counted: str) -> None:
    assert counted_grouping("similar", merge, LAYOUTS[source], LAYOUTS[layout]) == counted
    assert counted_grouping("adjacent", merge, LAYOUTS[source], LAYOUTS[layout]) == "adjacent"


def test_a_grouping_that_needs_a_calibration_says_so() -> None:
    with pytest.raises(ValueError, match=r"^grouping = similar: needs a calibration$"):
        convert(base_model("neox", mha(LAYERS, HEADS)), LAYOUTS["gqa"], ConvertRecipe(grouping="similar"))
