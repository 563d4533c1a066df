"""Every recipe that the schema takes, transformers and torch take too."""

from __future__ import annotations

import os
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import TypeAdapter

from mlkv.train.arguments import check, training_arguments
from mlkv.training_recipes import TrainRecipe

HINTS = get_type_hints(TrainRecipe, include_extras=True)
LENGTH = ("steps", "tokens", "epochs", "rungs")


def ends(hint: Any) -> list[Any]:
    """The least and the greatest value of a number's range; every value of a choice."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if hint is bool:
        return [False, True]
    if choice := next((part for part in get_args(hint) if get_origin(part) is Literal or part is bool), None):
        return [None, *ends(choice)]
    marked = next(part for part in (hint, *get_args(hint)) if hasattr(part, "__metadata__"))
    kind, small = get_args(marked)[0], 1 if get_args(marked)[0] is int else 5e-324
    found: dict[str, Any] = {}
    for mark in marked.__metadata__:
        match mark:
            case Ge(ge):
                found["least"] = kind(ge)
            case Gt():
                found["least"] = kind(mark.gt) + small
            case Le(le):
                found["most"] = kind(le)
            case Lt():
                found["most"] = kind(mark.lt) - 1e-9
    assert found.keys() == {"least", "most"}, f"{hint} has no end"
    return list(found.values())


@pytest.mark.parametrize("name", [field.name for field in fields(TrainRecipe)])
def test_the_ends_of_every_range_are_taken(name: str) -> None:
    for value in ends(HINTS[name]):
        length = {} if name in LENGTH else {"steps": 1}
        others = {"batch_size": 1} if name in LENGTH else {"batch_size": value} if name == "micro_batch" else {}
        given = {"rungs": (value,), "schedule": "wsd"} if name == "rungs" else {name: value}
        check(TypeAdapter(TrainRecipe).validate_python({**length, **others, **given}))


def test_every_combination_of_choices_is_taken() -> None:
    named = {name: ends(hint) for name, hint in HINTS.items() if get_origin(hint) is Literal or hint is bool}
    for values in product(*named.values()):
        chosen = dict(zip(named, values, strict=True))
        if chosen["documents"] == "together" or chosen["teacher_logits"] == "online":  # refused otherwise
            check(TrainRecipe(steps=1, **chosen))


@pytest.mark.parametrize("cpu", [True, False])
def test_batches_are_made_beside_the_steps_of_a_gpu_alone(cpu: bool, tmp_path: Path) -> None:
    plain, stored = TrainRecipe(steps=1), TrainRecipe(steps=1, teacher="base", teacher_logits="stored")
    workers = [
        training_arguments(each, 1, tmp_path, precision="fp32", processes=1, cpu=cpu).dataloader_num_workers
        for each in (plain, stored)
    ]
    assert workers == [0 if cpu else 1, 0]


def test_a_check_leaves_the_environment_as_it_was() -> None:
    before = dict(os.environ)
    check(TrainRecipe(steps=1, precision="bf16"))
    assert dict(os.environ) == before


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"lr": -1.0}, {"beta1": 1.5}, {"eps": -1.0}, {"seed": 2**64}])
def test_what_the_libraries_refuse_is_a_value_error(wrong: dict[str, Any]) -> None:
    """Values that the schema would not have let through, as one of tomorrow's versions may refuse others."""
    with pytest.raises(ValueError):  # noqa: PT011
        check(TrainRecipe(steps=1, **wrong))
