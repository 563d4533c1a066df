"""Whether savings add up: what two or more ways to save bytes cost together, against the sum of what each costs alone.

With L(x) the score of a row: L(both) - L(one) - L(other) + L(neither), the interaction of a two-factor experiment. All
of it is over the same samples, so that its error is that of one number per sample.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.data import frame
from analysis.data.frame import Row
from analysis.data.replicates import SEEDS
from analysis.statistics.estimate import Difference, Estimate, contrast
from analysis.statistics.results import Results
from mlkv.cache.formats import AS_COMPUTED


def _latent(row: Row) -> object:
    """The rank of a latent, of however many owners it is, with its rotated dimensions; ranks that differ are those of
    these owners."""
    ranks, _, rotary = (row["latent"] or "").partition(" rotary ")
    return ranks if len(set(ranks.split())) > 1 else ranks.partition(" ")[0], rotary


SAVINGS: Mapping[str, Callable[[Row], object]] = {
    "fewer heads": lambda row: (row["sources"], row["kv_heads"]),
    "latent": _latent,
    "cache": lambda row: row["cache"] or AS_COMPUTED,
}
"""Each way to save bytes, and how much of it a row of the long table has. A further one is a line."""
_KEYS = ("layout.", "cache", *SEEDS)
"""Swept keys that are in SAVINGS already, or repetitions."""


@dataclass(frozen=True)
class Stacked:
    """A row that saves in several ways. `parts` has, for each of these, the row's name that saves in this way alone and
    what that costs; `together` is the cost of all of them, `interaction` that minus the sum of the parts."""

    variant: str
    reference: str
    parts: Mapping[str, tuple[str, Difference]]
    together: Difference
    interaction: Difference


@dataclass(frozen=True)
class _Setting:
    """What a row has of each saving, and its other swept values."""

    savings: tuple[object, ...]
    others: frozenset[str]
    baseline: str | None


def stacked(results: Results, table: pd.DataFrame) -> list[Stacked]:
    """Every row of the results that saves in two ways or more, and for which the rows that save in one alone are there
    and scored. The reference saves nothing: the equally trained base, or the untouched one where there is none."""
    settings, found = _settings(table), []
    rows = {row["variant"]: row for row in results.rows()}
    scored = {name: one for name, row in rows.items() if (one := results.estimates.of(row, "quality"))}
    for others in dict.fromkeys(setting.others for setting in settings.values()):
        members = {name: s for name, s in settings.items() if s.others == others and name in scored}
        if reference := _reference(members):
            found += _of_group(members, scored, reference)
    return [each for name in rows for each in found if each.variant == name]


def _settings(table: pd.DataFrame) -> dict[str, _Setting]:
    """By the name that seeds of one layout share."""
    rows, settings = frame.records(table.drop_duplicates("variant")), dict[str, _Setting]()
    bases = _bases(rows)
    for row in rows:
        swept = _swept(row) | {bases.get(row["untouched"]) or row["sweep"]}  # of several sweeps, those on one base
        savings = tuple(amount(row) for amount in SAVINGS.values())
        settings.setdefault(row["replicate_of"] or row["variant"], _Setting(savings, swept, row["baseline"]))
    return settings


def _swept(row: Row) -> frozenset[str]:
    return frozenset(word for word in shlex.split(row["overrides"] or "") if not word.startswith(_KEYS))


def _bases(rows: Sequence[Row]) -> dict[str, str]:
    """The name of an untouched base → the first name of the same one: there is a row in each format of the cache."""
    first: dict[object, str] = {}
    untouched = [row for row in rows if row["baseline"] == "untouched"]
    return {
        row["variant"]: first.setdefault((row["sweep"], row["model"], _swept(row)), row["variant"]) for row in untouched
    }


def _reference(members: Mapping[str, _Setting]) -> str | None:
    plain = [(name, s.baseline) for name, s in members.items() if AS_COMPUTED in s.savings and s.baseline]
    return next((name for role in ("mha", "untouched") for name, baseline in plain if baseline == role), None)


def _of_group(members: Mapping[str, _Setting], scored: Mapping[str, Estimate], reference: str) -> list[Stacked]:
    nothing, role = members[reference].savings, members[reference].baseline
    # The other baseline has the reference's layout too, and other training.
    named = {s.savings: name for name, s in members.items() if s.baseline in (role, None)}
    found = []
    for savings, name in named.items():
        changed = [i for i, amount in enumerate(savings) if amount != nothing[i]]
        alone = {i: named.get((*nothing[:i], savings[i], *nothing[i + 1 :])) for i in changed}
        singles = {i: single for i, single in alone.items() if single is not None}
        if len(changed) > 1 and len(singles) == len(changed):
            found.append(_stacked(name, reference, singles, scored))
    return found


def _stacked(name: str, reference: str, singles: Mapping[int, str], scored: Mapping[str, Estimate]) -> Stacked:
    ways: Sequence[str] = list(SAVINGS)
    base = scored[reference]
    parts = {ways[i]: (single, contrast([(1, scored[single]), (-1, base)])) for i, single in singles.items()}
    sums = [(-1, scored[single]) for single in singles.values()]
    interaction = contrast([(1, scored[name]), *sums, (len(singles) - 1, base)])
    return Stacked(name, reference, parts, contrast([(1, scored[name]), (-1, base)]), interaction)
