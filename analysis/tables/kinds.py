"""The tables that `mlkv table` and the report can make, a row each. Listing them loads neither pandas nor rich."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlkv.registry import Registry

if TYPE_CHECKING:
    from analysis.statistics.sources import Source
    from analysis.tables.table import Table

    MakeTable = Callable[[Source, Source | None], Table | None]


@dataclass(frozen=True)
class TableKind:
    """A table.

    `title` is its heading. `make` is a function, or `module:function` as text where importing the module should wait
    until the table is made. It is called with two arguments. The first is the Source (analysis/statistics/sources.py):
    `source.results.frame` has a row per layout, `source.table` one per measured or scored cell. The second is the
    published Source that `--published` names, or None. It returns a Table (analysis/tables/table.py, `make_table`), or
    None where there is nothing to show.
    """

    title: str
    make: str | MakeTable
    needs: str = ""
    """What there has to be, in words, for a reader who asked for the table and got none."""


TABLES: Registry[TableKind] = Registry(
    "table",
    {
        "configuration": TableKind("configurations", "analysis.tables.paper:configuration"),
        "losses": TableKind("losses", "analysis.tables.paper:losses"),
        "benchmarks": TableKind("benchmarks", "analysis.tables.paper:benchmarks"),
        "memory": TableKind("memory and throughput", "analysis.tables.paper:memory"),
        "decoding": TableKind("decoding, held against memory", "analysis.tables.decoding_table:decoding_table"),
        "training": TableKind("cost of uptraining", "analysis.tables.training_table:training"),
        "recovery": TableKind("gap at conversion and tokens to recover it", "analysis.tables.recovery:recovery_table"),
        "equivalents": TableKind(
            "layouts, in tokens of the base alone",
            "analysis.tables.equivalents_table:equivalents_table",
            needs="four lengths of one base, trained by `mlkv sweep experiment=base_lengths` and named beside it",
        ),
        "elastic": TableKind(
            "layouts cut from an elastic training and trained separately", "analysis.tables.elastic_table:elastic"
        ),
        "options": TableKind("options of the recipe", "analysis.tables.options_table:options_table"),
        "stacking": TableKind("savings on top of one another", "analysis.tables.stacking:stacking"),
        "heads_layers": TableKind("fewer heads with fewer owners", "analysis.tables.heads_layers_table:heads_layers"),
        "rules": TableKind("rules that place owners", "analysis.tables.rules_table:rules_table"),
        "similarity": TableKind(
            "layers of the base: how alike two are, and the damage where one reads the other",
            "analysis.tables.similarity_table:similarity",
        ),
    },
)
"""In the order of a paper."""
