"""What variants are called: their layout's family and budget, and every swept value in which variants differ."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlkv.layout import KVLayout

if TYPE_CHECKING:
    from sweeps.planning.config import ModelConfig
    from sweeps.planning.variant import Variant

_HEAD_WIDTH, _HEADS = "model.decoder.head_dim", "model.decoder.heads"
RULE = "layout.rule"
"""The key by which a variant's row and label name the rules that made its layout."""
SPREAD = "layout.spread"
"""The same of how its heads are spread over owners, where that is not equally."""
_MODEL = ("model", "model.path", "model.hub", "model.name")
"""Keys that choose a model: labels show its name instead."""


def labelled(variants: Sequence[Variant]) -> Iterator[Variant]:
    """The variants with their unique labels. A swept key whose values differ is in the label of every variant that has
    the key."""
    wide = len({variant.shape.head_dim for variant in variants}) > 1
    of_one_name: dict[str, list[Variant]] = defaultdict(list)
    for variant in variants:
        of_one_name[_layout_label(variant, wide)].append(variant)
    differing, models = _differing(variants, wide), _model_names(variants)
    taken: Counter[str] = Counter()
    for variant in variants:
        name, model = _layout_label(variant, wide), models[variant.config.model]
        values = _values(variant, of_one_name[name], differing)
        named = dict.fromkeys(f"model={model}" if key_of(line) in _MODEL else line for line in values)
        label = " ".join([name, *_shape(variant, of_one_name[name]), *named])
        taken[label] += 1
        yield replace(variant, label=label if taken[label] == 1 else f"{label} #{taken[label]}")


def _model_names(variants: Sequence[Variant]) -> dict[ModelConfig, str]:
    """Each model's name; where models of one name lie in different places, as much of the place's end as tells them
    apart."""
    of_one_name: dict[str, dict[ModelConfig, tuple[str, ...]]] = defaultdict(dict)
    for model in (variant.config.model for variant in variants):
        of_one_name[model.name][model] = Path(os.path.abspath(model.path)).parts if model.path else (model.name,)
    names: dict[ModelConfig, str] = {}
    for name, places in of_one_name.items():
        ends = [{parts[-n:] for parts in places.values()} for n in range(1, 1 + max(map(len, places.values())))]
        shortest = next((n for n, end in enumerate(ends) if len(end) == len(ends[-1])), 0) + 1
        names |= {m: "/".join(parts[-shortest:]) if len(ends[-1]) > 1 else name for m, parts in places.items()}
    return names


def key_of(line: str) -> str:
    return line.partition("=")[0]


def _differing(variants: Sequence[Variant], wide: bool) -> set[str]:
    """Swept keys whose values differ between variants, without the keys that the layout's label already shows.

    A layout's keys are its family, budget and shape. With `wide`, the head width is `H64`, and so is the number of
    heads where it goes with the width.
    """
    lines = {line for variant in variants for line in variant.varying}
    counted = Counter(map(key_of, lines))
    widths = {(v.shape.head_dim, line) for v in variants for line in v.varying if key_of(line) == _HEADS}
    own_words = {_HEAD_WIDTH} if wide else set()
    if wide and len(widths) == len({width for width, _ in widths}):
        own_words.add(_HEADS)
    return {key for key, values in counted.items() if values > 1 and not _of_layout(key)} - own_words


def _of_layout(key: str) -> bool:
    return key.partition(".")[0] == "layout"


def _layout_label(variant: Variant, wide: bool) -> str:
    """`MLKV-6`; with `wide`, where head widths differ, as CLA's authors write it: `H64 MLKV-6`."""
    width = f"H{variant.shape.head_dim} " if wide else ""
    return width + ("untouched" if variant.baseline == "untouched" else variant.name)


def _shape(variant: Variant, others: Sequence[Variant]) -> list[str]:
    """M×G, where layouts of one name differ in it."""
    return [shape_label(variant.layout)] if len({shape_label(other.layout) for other in others}) > 1 else []


def _values(variant: Variant, others: Sequence[Variant], differing: Collection[str]) -> Iterator[str]:
    """The swept values to show, and the rule that made its layout; a layout's other values only where its name and M×G
    are the same in one of `others`."""
    unclear = len({other.layout for other in others}) > len({shape_label(other.layout) for other in others})
    for line in variant.varying:
        if key_of(line) in (RULE, SPREAD):
            yield line
        elif _of_layout(key_of(line)):
            if unclear and any(line not in other.varying for other in others):
                yield line
        elif key_of(line) in differing:
            yield line


def shape_label(layout: KVLayout) -> str:
    """M×G; where owners have different numbers of KV heads, all of them. `3×6+1×6` where keys and values are apart."""
    if layout.apart:
        return f"{shape_label(layout.keys)}+{shape_label(layout.values)}"
    heads = str(layout.kv_heads[0]) if len(set(layout.kv_heads)) == 1 else "/".join(map(str, layout.kv_heads))
    return f"{layout.kv_layers}×{heads}"
