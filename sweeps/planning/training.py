"""Plans make what a training run makes of its settings, so that what transformers or torch would refuse is refused
before anything runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from contextlib import suppress
from importlib.metadata import version

from mlkv.training_recipes import READ_WITH, TrainRecipe
from sweeps.store.errors import UserError
from sweeps.store.files import read_cache, write_json
from sweeps.store.user_cache import user_cache

ACCEPTED = "accepted_training.json"


def check_training(recipes: Collection[tuple[str, TrainRecipe]]) -> None:
    """Raises UserError where the recipe of a kind of step could not be begun with.

    This takes torch, whose import takes longer than the rest of most plans. So choices that this installation has taken
    before are noted in the user's cache. Numbers are no part of such a note: their ranges are in the schema, and
    tests/mlkv/test_arguments.py holds them against transformers and torch.
    """
    accepted = read_cache(user_cache(ACCEPTED))
    new = {_choices_of(recipe) for _, recipe in recipes} - accepted.keys()
    if not new:
        return
    from mlkv.train.arguments import check

    for kind, recipe in recipes:
        try:
            check(recipe)
        except ValueError as error:
            raise UserError(f"{kind}: {error}") from None
    with suppress(OSError):
        write_json(user_cache(ACCEPTED), {**accepted, **dict.fromkeys(new, True)})


def check_read(recipes: Collection[tuple[str, TrainRecipe]]) -> None:
    """Raises UserError for a field that was set and that no training of the sweep reads. A sweep over the field beside
    it may have some that do not: their steps do not depend on it."""
    for name, (key, value) in READ_WITH.items():
        for kind in {kind for kind, _ in recipes}:
            own = [recipe for of_kind, recipe in recipes if of_kind == kind]
            if any(recipe.reads(name) for recipe in own):
                continue
            given = next((r for r in own if getattr(r, name) != getattr(r.without_unread(), name)), None)
            if given:
                raise UserError(f"{kind}.{name} = {getattr(given, name)}: only {kind}.{key}={value} reads it")


def _choices_of(recipe: TrainRecipe) -> str:
    """What a recipe chooses, and the versions of the packages that take it."""
    names = [f.name for f in dataclasses.fields(TrainRecipe)]  # what an elastic training adds is not transformers'
    choices = {name: value for name in names if isinstance(value := getattr(recipe, name), str | bool)}
    return json.dumps([version("torch"), version("transformers"), choices], sort_keys=True)
