"""The table of similarities: a row for each pair of layers of a base, its measures side by side, and the damage."""

from __future__ import annotations

from analysis.data.similarity import TITLES, BaseSimilarity
from analysis.statistics.similarity import (
    Agreement,
    agreement,
    agreement_of_sources,
    readers,
    similarities,
)
from analysis.statistics.sources import Source
from analysis.tables.columns import NOTHING, notes_on_entry
from analysis.tables.table import Cell, Column, Table, make_table
from mlkv.similarity.results import DAMAGE, MEASURES, pairs_below

_QUESTIONS = {
    "Spearman's correlation of unlikeness and damage over these pairs (95 % interval over layers and windows; above 0, "
    "layers that are alike share at less damage):": agreement,
    "the same over the layers that one layer could read, below and above it, the mean of all layers (above 0, the "
    "layer that is most alike is best read):": agreement_of_sources,
}
Place = tuple[BaseSimilarity, int, int]
"""A base, the layer that reads, and the layer below it whose keys and values it would read."""


def similarity(source: Source, published: Source | None = None) -> Table | None:
    """Every pair of layers, of which the upper one would read the lower one; the notes have the rank correlations of
    each measure with the damage. None where no similarity step is done."""
    bases = similarities(source)
    rows: list[Place] = [(each, j, i) for each in bases for j, i in pairs_below(len(each.found.key_heads))]
    if not rows:
        return None
    several = len(bases) > 1
    columns = [
        Column("layers", "name", [Cell(f"{j} reads {i}") for _, j, i in rows]),
        *([Column("base", "shape", [Cell(each.base) for each, _, _ in rows])] if several else []),
        Column(DAMAGE, "score", [_damage(*row) for row in rows]),
        Column("from above", "difference", [_damage(each, i, j) for each, j, i in rows]),
        *(Column(TITLES[name], "part", [_measure(name, *row) for row in rows]) for name in MEASURES),
    ]
    notes = [note for each in bases for note in _notes(each, f"{each.base}: " if several else "")]
    notes += notes_on_entry(source.results)
    return make_table(columns, baselines=[None] * len(rows), states=["DONE"] * len(rows), notes=notes)


def _measure(name: str, each: BaseSimilarity, one: int, other: int) -> Cell:
    values = each.found.layers.get(name)
    return NOTHING if values is None else Cell(f"{values[one, other]:.3f}", float(values[one, other]))


def _damage(each: BaseSimilarity, reader: int, source: int) -> Cell:
    damage, errors = each.found.damage, each.found.damage_errors
    if damage is None:
        return Cell("")
    value = float(damage[reader, source])
    if errors is None:
        return Cell(f"{value:.4f}", value)
    error = float(errors[reader, source])
    return Cell(f"{value:.4f} ± {error:.4f}", value, stderr=error)


def _notes(each: BaseSimilarity, prefix: str) -> list[str]:
    found = each.found
    if found.damage is None:
        return [f"{prefix}without damage (similarity.damage=false)"]
    base = found.nats.sum() / found.tokens.sum()
    notes = [
        f"{prefix}{DAMAGE}: nats per token more than the base's {base:.3f} where the upper layer reads the lower one's "
        f"keys and values, with its standard error over {len(found.tokens)} windows; from above: where the lower layer "
        "reads what the upper one computed in a pass before"
    ]
    if shares := readers(found):
        notes.append(
            f"{prefix}of the damage's variance over pairs, which layer reads explains {shares.reader:.0%}, and which "
            f"layer it reads {shares.source:.0%}"
        )
    for question, correlate in _QUESTIONS.items():
        each_measure = [(name, correlate(found, name)) for name in found.layers]
        if texts := [f"{TITLES[name]} {_text(rho)}" for name, rho in each_measure if rho]:
            notes.append(f"{prefix}{question} {'; '.join(texts)}")
    return notes


def _text(found: Agreement) -> str:
    interval = "" if found.low is None or found.high is None else f" ({found.low:+.2f} to {found.high:+.2f})"
    return f"{found.value:+.2f}{interval}"
