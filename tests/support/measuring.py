"""Measurements of small layouts, for tests of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlkv.context import Outcome
from mlkv.layout import KVLayout, mha
from mlkv.measure import step as measure
from mlkv.patterns import make
from mlkv.recipes import MeasureRecipe
from mlkv.shape import DecoderShape
from tests.support.tiny import context

LAYOUTS = [
    mha(4, 4),
    make("even", 4, 4, 4, 2),
    make("even", 4, 4, 4, 1),
    make("even", 4, 4, 2, 1),
    make("even", 4, 4, 1, 1),
    KVLayout((0, 1, 1, 3), (4, 1, 2), 4),
]
DEEPER = DecoderShape(vocab_size=97, width=24, layers=4, heads=4, head_dim=8, mlp_width=48, context=64)


def go(layout: KVLayout, shape: DecoderShape = DEEPER, ctx: Any = None, **changes: Any) -> Outcome:
    recipe = MeasureRecipe(**{"batch_sizes": (1, 3), "contexts": (8, 20), "new_tokens": 4, **changes})
    return measure.run(recipe, Path("unused"), ctx or context(Path("unused")), shape=shape, layout=layout)
