"""Every key with every bad value: the plan refuses it in one line, or what the steps make of it can be made."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlkv.layout import KVLayout
from mlkv.model import Decoder
from mlkv.shape import DecoderShape
from mlkv.train import arguments
from mlkv.training_recipes import TrainRecipe
from sweeps.planning.compose import Composer
from sweeps.planning.parse import Checked, parse
from sweeps.planning.plan import Plan
from sweeps.store.errors import UserError, shown
from tests.support.bad_values import VALUES, keys

Planner = Callable[[Sequence[str]], Plan]
KEYS = list(keys())
FEW = [(key, VALUES[7 * i % len(VALUES)]) for i, key in enumerate(KEYS)]
"""A value of each key, and each value with some key."""


def line(key: str, value: str) -> list[str]:
    """On SLURM, where cluster and resources have all their fields."""
    return [*(["cluster=slurm"] if key.startswith(("cluster.", "resources")) else []), f"{key}={value}"]


@cache
def train(recipe: TrainRecipe) -> None:
    arguments.check(recipe)


@cache
def make_decoder(shape: DecoderShape, layout: KVLayout, seed: int) -> None:
    """Without memory for its weights."""
    torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        Decoder(shape, layout)


def begin(plan: Plan) -> None:
    """What each step makes before it computes."""
    for variant in plan.variants:
        config = variant.config
        for recipe in (config.base, config.uptrain):
            train(recipe)
        if variant.shape.layers <= 8:
            make_decoder(variant.shape, variant.layout, config.convert.seed)
        np.random.RandomState(config.evaluate.seed)
        config.measure.check_fit(variant.shape)


def check(planner: Planner, tiny: list[str], key: str, value: str) -> None:
    try:
        plan = planner([*tiny, *line(key, value)])
    except UserError as error:
        message = str(error)
        assert message.isprintable(), (key, value)
        assert len(message) < 3000, (key, value)
        # The tests' own model takes its sizes from the corpus.
        named = (key.partition(".")[0], key.rpartition(".")[2], shown(value), "points", "model.decoder")
        assert any(name in message for name in named), (key, value, message)
    else:
        begin(plan)


ALIKE = ("1", "true", "1.0", "'1'")
"""Python has the first three equal."""


def outcome(values: Any, checked: Checked | None) -> str:
    try:
        return repr(parse(values, checked))
    except UserError as error:
        return f"refused: {error}"


def test_parts_that_were_checked_before_change_nothing() -> None:
    composed, checked = Composer(), Checked()
    outcomes = set()
    numbers = [(key, value) for key in ("uptrain.steps", "uptrain.lr", "cluster.slots") for value in ALIKE]
    for key, value in [*FEW, *reversed(FEW), *numbers]:
        try:
            values = composed(line(key, value))
        except UserError:
            continue
        alone = outcome(values, None)
        assert outcome(values, checked) == alone, (key, value)
        outcomes.add(alone.startswith("refused: "))
    assert outcomes == {True, False}
    assert len(checked) > 50


def test_a_bad_value_of_any_key_is_refused_in_one_line_or_planned(planner: Planner, tiny: list[str]) -> None:
    assert len(KEYS) > 150
    assert {value for _, value in FEW} == set(VALUES)
    for key, value in FEW:
        check(planner, tiny, key, value)


ROW = re.compile(r"^\| `([a-z_.]+)` \| (\d+) \| (\d+) \|", re.MULTILINE)
RANGES = ROW.findall((Path(__file__).parents[2] / "docs" / "sweeps.md").read_text())


@pytest.mark.parametrize(("key", "least", "most"), RANGES)
def test_ranges_are_what_the_docs_say(key: str, least: str, most: str) -> None:
    composer = Composer()
    free = ["corpus.task_items=0"]
    for value in (int(least), int(most)):
        parse(composer([*free, f"{key}={value}", *(["uptrain.steps=1"] if key == "uptrain.batch_size" else [])]))
    for value in (int(least) - 1, int(most) + 1):
        with pytest.raises(UserError, match=f"{re.escape(key)} = {value}: must be "):
            parse(composer([*free, f"{key}={value}"]))


def test_the_docs_give_ranges() -> None:
    assert len(RANGES) == 8


@pytest.mark.long
@pytest.mark.parametrize("key", KEYS)
def test_every_bad_value_of_a_key_is_refused_in_one_line_or_planned(
    planner: Planner, tiny: list[str], key: str
) -> None:
    for value in VALUES:
        check(planner, tiny, key, value)
