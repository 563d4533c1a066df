"""Reads what a sweep's similarity steps found: one for each base that they compared the layers of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mlkv.similarity.results import ATTENTION, DAMAGE, DISTANCE, Similarity
from sweeps.store.errors import DamagedFileError
from sweeps.store.schema import PlanFile

if TYPE_CHECKING:
    from analysis.data.gather import Steps

TITLES = {
    "cka_keys": "CKA of keys",
    "cka_values": "CKA of values",
    "cka_unrotated_keys": "CKA of keys before rotation",
    "cosine_keys": "cosine of keys",
    "cosine_values": "cosine of values",
    ATTENTION: "attention divergence (bits)",
    DISTANCE: "distance of mean caches",
}
COLUMNS = ("base", "step", "measure", "level", "layer", "head", "other_layer", "other_head", "value", "stderr")


@dataclass(frozen=True)
class BaseSimilarity:
    """base: what the step is called by, made different where two bases have one name. step: its id."""

    base: str
    step: str
    found: Similarity


def of_plan(plan: PlanFile, steps: Steps) -> list[BaseSimilarity]:
    """Of the plan's finished similarity steps. Raises DamagedFileError."""
    done = [id for id, step in plan.steps.items() if step.kind == "similarity" and steps.record(id)]
    labels = [plan.steps[id].label for id in done]
    names = [
        label if labels.count(label) == 1 else f"{label} {id[-4:]}" for label, id in zip(labels, done, strict=True)
    ]
    return [BaseSimilarity(name, id, _load(steps, id)) for name, id in zip(names, done, strict=True)]


def _load(steps: Steps, id: str) -> Similarity:
    try:
        return Similarity.load(steps.out(id))
    except (ValueError, OSError) as error:
        advice = "run `mlkv status NAME --verify`, which sets the step aside, and the sweep's line again"
        raise DamagedFileError(f"{error}; {advice}") from None


def table_of(bases: list[BaseSimilarity]) -> pd.DataFrame:
    """A row for each measure of each ordered pair, of layers and of heads. Of the damage, `layer` reads what
    `other_layer` computed."""
    parts = [part for each in bases for part in _parts(each)]
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
    table = pd.concat(parts, ignore_index=True)[list(COLUMNS)]
    return table.astype({"head": "Int64", "other_head": "Int64"})


def _parts(each: BaseSimilarity) -> Iterator[pd.DataFrame]:
    found, layers = each.found, [(layer, None) for layer in range(len(each.found.key_heads))]
    damage, errors = found.damage, found.damage_errors
    for measure, values in found.layers.items():
        yield _part(each, measure, "layer", layers, values)
    if damage is not None:
        yield _part(each, DAMAGE, "layer", layers, damage, errors)
    for measure, values in found.heads.items():
        yield _part(each, measure, "head", found.head_names(measure), values)


def _part(
    each: BaseSimilarity,
    measure: str,
    level: str,
    names: list[tuple[int, int]] | list[tuple[int, None]],
    values: np.ndarray,
    errors: np.ndarray | None = None,
) -> pd.DataFrame:
    rows, columns = (index.ravel() for index in np.indices(values.shape))
    own, other = ([names[i] for i in index] for index in (rows, columns))
    return pd.DataFrame(
        {
            "base": each.base,
            "step": each.step,
            "measure": measure,
            "level": level,
            "layer": [layer for layer, _ in own],
            "head": pd.array([head for _, head in own], "Int64"),
            "other_layer": [layer for layer, _ in other],
            "other_head": pd.array([head for _, head in other], "Int64"),
            "value": values.ravel(),
            "stderr": np.full(values.size, np.nan) if errors is None else errors.ravel(),
        }
    )
