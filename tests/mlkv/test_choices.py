"""A name that nobody knows is an error that lists the valid ones, whoever passes it: it never means the last branch."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from mlkv.device import require_device, resolve_precision
from mlkv.hf import MLKVForCausalLM
from mlkv.layers import ACTIVATIONS, NORMS
from mlkv.measure.runs import PROTOCOLS
from mlkv.patterns import make
from mlkv.recipes import ConvertRecipe, CorpusRecipe, EvaluateRecipe, MeasureRecipe
from mlkv.registry import NameOf
from mlkv.shape import DecoderShape
from mlkv.train.sharded import fsdp_arguments
from mlkv.training_recipes import TrainRecipe
from tests.support.matrix import LAYOUTS, SHAPES

MADE = (
    SHAPES["neox"],
    CorpusRecipe(),
    TrainRecipe(steps=1),
    ConvertRecipe(),
    EvaluateRecipe("bits_per_byte"),
    MeasureRecipe(),
)


def choices(schema: type[Any]) -> dict[str, tuple[Any, ...]]:
    hints = get_type_hints(schema, include_extras=True)
    literals = {f.name: get_args(hints[f.name]) for f in fields(schema) if get_origin(hints[f.name]) is Literal}
    marks = {f.name: mark for f in fields(schema) for mark in getattr(hints[f.name], "__metadata__", ())}
    return literals | {name: tuple(mark.valid()) for name, mark in marks.items() if isinstance(mark, NameOf)}


NAMED = [(made, name, valid) for made in MADE for name, valid in choices(type(made)).items()]


@pytest.mark.parametrize(("made", "name", "valid"), NAMED, ids=lambda each: each if isinstance(each, str) else "")
def test_every_field_with_choices_refuses_any_other(made: Any, name: str, valid: tuple[Any, ...]) -> None:
    for value in ("nonsense", valid[0].upper(), "", None):
        with pytest.raises(ValueError, match=f"^{name} = {value}: must be one of {re.escape(', '.join(valid))}$"):
            replace(made, **{name: value})


def test_what_the_fields_can_hold_is_what_the_code_has() -> None:
    assert {*choices(DecoderShape)["norm"]} == {*NORMS}
    assert {*choices(DecoderShape)["activation"]} == {*ACTIVATIONS}
    assert {*choices(MeasureRecipe)["protocol"]} == {*PROTOCOLS}
    assert {*choices(TrainRecipe)["precision"]} == {*choices(EvaluateRecipe)["precision"]}


def test_functions_that_are_given_a_name_refuse_it_too() -> None:
    shape, layout = SHAPES["neox"], LAYOUTS["mlkv"]
    nonsense: Any = "nonsense"  # what the annotated choices would not let pass
    calls = {
        "keys = nonsense: must be one of rotated, unrotated": lambda: MLKVForCausalLM.from_shape(
            shape, layout, seed=0, keys=nonsense
        ),
        "precision = nonsense: must be one of auto, fp32, bf16": lambda: resolve_precision(
            nonsense, torch.device("cpu")
        ),
        "strategy = nonsense: must be one of ddp, fsdp": lambda: fsdp_arguments(nonsense, 2),
        "device = nonsense: must be one of cpu, cuda": lambda: require_device(nonsense),
        "pattern = nonsense: must be one of even, ": lambda: make(nonsense, 6, 4, 2, 1),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            call()
