"""A plan makes what training makes of its settings, once for each set of choices in an installation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mlkv.train import arguments
from mlkv.training_recipes import TrainRecipe
from sweeps.planning.plan import Plan
from sweeps.store.errors import UserError

Planner = Callable[[Sequence[str]], Plan]


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[TrainRecipe]:
    """The recipes that plans check, with a user's cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipes: list[TrainRecipe] = []
    check = arguments.check

    def noted(recipe: TrainRecipe) -> None:
        recipes.append(recipe)
        check(recipe)

    monkeypatch.setattr(arguments, "check", noted)
    return recipes


def test_each_set_of_choices_is_made_once(checked: list[TrainRecipe], planner: Planner, tiny: list[str]) -> None:
    planner([*tiny, "uptrain.lr=1e-3,2e-3"])
    assert sorted((recipe.steps or 0, recipe.lr) for recipe in checked) == [(4, 1e-3), (4, 2e-3), (6, 3e-3)]
    planner([*tiny, "uptrain.lr=3e-3"])
    assert len(checked) == 3
    planner([*tiny, "uptrain.strategy=fsdp"])
    assert len(checked) == 5


def test_what_is_not_trained_is_not_checked(checked: list[TrainRecipe], planner: Planner, tiny: list[str]) -> None:
    planner([*tiny, "convert=scratch", "uptrain.steps=0"])
    planner([*tiny, "convert=none", "evaluate=none", "evaluate.tasks=[]"])
    assert not checked


def test_what_transformers_refuses_is_one_line(
    checked: list[TrainRecipe], planner: Planner, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a later version may: here, one whose arguments need more steps."""

    def refuse(recipe: TrainRecipe, *_: object, **__: object) -> None:
        if recipe.steps and recipe.steps < 5:
            raise ValueError("max_steps is too small")

    monkeypatch.setattr(arguments, "training_arguments", refuse)
    for _ in range(2):
        with pytest.raises(UserError, match=r"^uptrain: max_steps is too small$"):
            planner(tiny)
