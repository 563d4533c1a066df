"""Keys and values of a layout's owners from those of a base: prepared, averaged, and scaled back to their size.

Legend: `G` KV heads of an owner, `K` head width, `R` base heads that become one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..layout import KVLayout
from ..merges import counted_grouping, merge_named
from .frames import FRAMES
from .grouping import grouped
from .heads import Group, State, groups_of, in_frames, restored_norms, weighed
from .key_norms import key_norm, merged_key_norm

if TYPE_CHECKING:
    from torch import Tensor

    from ..merges import Merge
    from .calibration import Calibration


def merge_kv(
    old: State,
    fresh: State,
    source: KVLayout,
    layout: KVLayout,
    merge: str,
    rotated: int = 0,
    calibration: Calibration | None = None,
    grouping: str = "adjacent",
) -> State:
    """What a merge changes: the key and value projections of `layout`'s owners, made from those of `source`'s, and the
    queries and outputs of their readers where it maps heads into common frames, or heads in another order. `fresh` has
    newly initialised ones.

    rotated: how many dimensions of a key its position rotates. calibration: for a merge or grouping that needs it.
    Raises ValueError for an unknown merge, for what needs a calibration where there is none, and for another order of
    heads where keys and values are apart: they merge in different groups, and queries have one order for both.
    """
    row = merge_named(merge)
    similar = counted_grouping(grouping, merge, source, layout) == "similar"
    if similar and (source.apart or layout.apart):
        raise ValueError("grouping = similar: keys and values merge in different groups; use adjacent")
    if similar and calibration is None:
        raise ValueError("grouping = similar: needs a calibration")
    merged: State = {}
    for group in groups_of(source, layout, rotated):
        if not group.merges:
            names = [*_names(fresh, group), *({key_norm(group.owner)} & fresh.keys() if "k" in group.kinds else ())]
            merged |= {name: old[_of(name, group.sources[0])] for name in names}
            continue
        if row.calibrated and calibration is None:
            raise ValueError(f"merge = {merge}: needs a calibration")
        # In float32 until the end, because a sum of bf16 weights is rounded at every term.
        moved, known = grouped(old, group, row.frames, calibration) if similar and calibration else ({}, calibration)
        given = old | moved
        prepared = moved | (_prepared(given, group, row, known) if known else {})
        heads = _combined(given | prepared, fresh, group, merge, row) | merged_key_norm(given | prepared, group, merge)
        if row.restores_norms and known:
            heads |= restored_norms(heads, given, group, known)
        folded = {name: weight for name, weight in prepared.items() if re.search(r"\.attention\.(q|o|q_norm)\.", name)}
        merged |= heads | folded
    return {name: weight.to(fresh[name].dtype) for name, weight in merged.items()}


def _prepared(old: State, group: Group, row: Merge, calibration: Calibration) -> State:
    """What is combined instead of the base's projections."""
    if row.frames:
        # Any maps give no exact model, so a reader's heads can as well be fitted to what the merged head will see.
        return in_frames(old, group, FRAMES[row.frames], calibration, refit=row.frames == "any")
    return weighed(old, group, calibration) if row.weighed else {}


def _names(state: State, group: Group) -> list[str]:
    parts = [f"{kind}.{part}" for kind in group.kinds for part in ("weight", "bias")]
    names = [f"blocks.{group.owner}.attention.{part}" for part in parts]
    return [name for name in names if name in state]


def _of(name: str, layer: int) -> str:
    """The same weight of another layer."""
    return f"blocks.{layer}.attention.{name.split('.attention.')[1]}"


def _combined(state: State, fresh: State, group: Group, name: str, row: Merge) -> State:
    """Heads within a layer first, then over layers. Those whose queries share a KV head in the new layout are
    neighbours, as in GQA (arXiv 2305.13245)."""
    heads: State = {}
    for weight in _names(fresh, group):
        members = [
            state[_of(weight, layer)].float().unflatten(0, (group.kv_heads, runs, -1))
            for layer, runs in zip(group.sources, group.run_lengths, strict=True)
        ]
        combined = row.combine(members, fresh[weight].unflatten(0, (group.kv_heads, -1)))
        _check_shape(combined, members, name)
        heads[weight] = combined.flatten(0, 1)
    return heads


def _check_shape(combined: Tensor, members: Sequence[Tensor], merge: str) -> None:
    """Raises ValueError where a merge's function, which may be an extension's, gives heads of another shape."""
    expected, shape = members[0][:, 0].shape, getattr(combined, "shape", None)
    if shape != expected:
        given = type(combined).__name__ if shape is None else f"the shape {[*shape]}"
        raise ValueError(f"merge = {merge}: must give the shape {[*expected]}, not {given}")
