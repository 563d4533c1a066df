"""Which layers own keys and values, in words: `0, 3, 6, 9`."""

from __future__ import annotations

from analysis.data.published import layout_of
from analysis.data.reference import read
from analysis.statistics.sources import PUBLISHED, Source
from mlkv.layout import KVLayout
from mlkv.patterns import PATTERNS

_MOST = 8
"""Layers that are listed one by one."""


def owners_of(source: Source) -> dict[str, str]:
    """Variant, or layout where it has several seeds → its owners; empty where the layouts are not known."""
    if source.parts:
        return {part.name(row): text for part in source.parts for row, text in owners_of(part.source).items()}
    if source.sweep:
        return {each.row: _text_of(each.variant.layout) for each in source.planned}
    rows = [row for row in read("layouts") if PUBLISHED + row["set"] == source.name and row["pattern"] in PATTERNS]
    return {row["variant"]: _text(layout_of(row).kv_source_layers) for row in rows}


def _text_of(layout: KVLayout) -> str:
    """`K all, V 0` where keys and values have other owners."""
    keys, values = (_text(part.kv_source_layers) for part in (layout.keys, layout.values))
    return keys if keys == values else f"K {keys}; V {values}"


def _text(sources: tuple[int, ...]) -> str:
    owners = sorted(set(sources))
    if len(owners) == len(sources):
        return "all"
    return ", ".join(map(str, owners)) if len(owners) <= _MOST else f"{len(owners)} of {len(sources)}"
