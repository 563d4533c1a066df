"""Whether savings add up: the interaction and its interval against an independent computation over the samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.data import frame
from analysis.statistics.interaction import Stacked, stacked
from analysis.statistics.results import by_layout
from analysis.statistics.sources import Source
from analysis.tables.stacking import stacking
from mlkv.evaluate.outcomes import Outcomes

N = 50
RANDOM = np.random.default_rng(3)
WEIGHTS = RANDOM.integers(5, 20, N).astype(float)
HARD = RANDOM.normal(20, 4, N)
"""What all share of every sample."""


class Answers:
    """Samples by step."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = parts

    def outcomes(self, step: str, task: str, metric: str) -> Outcomes:
        return Outcomes(np.arange(N), self.parts[step], WEIGHTS)


PARTS = {
    f"{layout} {cache}": HARD + heads + bits + (0.3 if heads and bits else 0) + RANDOM.normal(0, 0.2, N)
    for layout, heads in (("MHA", 0.0), ("GQA", 1.0), ("MQA", 2.0))
    for cache, bits in (("model", 0.0), ("int8", 0.1), ("int4", 0.5))
}


def table(without: tuple[str, ...] = ()) -> pd.DataFrame:
    rows = []
    for name, parts in PARTS.items():
        layout, cache = name.split()
        common = {
            "sweep": "s",
            "variant": name,
            "baseline": "mha" if layout == "MHA" else None,
            "kv_heads": {"MHA": "4", "GQA": "2", "MQA": "1"}[layout],
            "sources": "0 0 2 2" if layout == "MQA" else "0 1 2 3",
            "cache": cache,
            "kv_bytes_per_token": {"MHA": 64, "GQA": 32, "MQA": 16}[layout]
            // {"model": 1, "int8": 2, "int4": 4}[cache],
            "overrides": f"cache={cache} layout.kv_heads=1",
        }
        value = None if name in without else float(parts.sum() / WEIGHTS.sum())
        score = {"kind": "evaluate", "task": "bits_per_byte", "metric": "bits_per_byte", "value": value, "step": name}
        rows.append({**common, **score, "in_axis": True, "state": "DONE" if value else "FAILED"})
    return frame.make(rows)


def found(without: tuple[str, ...] = ()) -> dict[str, Stacked]:
    made = table(without)
    return {each.variant: each for each in stacked(by_layout(made, Answers(PARTS)), made)}


def ratio(parts: Any) -> float:
    return float(parts.sum() / WEIGHTS.sum())


def test_every_variant_that_saves_twice_is_compared_with_those_that_save_once() -> None:
    rows = found()
    assert set(rows) == {"GQA int8", "GQA int4", "MQA int8", "MQA int4"}
    for name, row in rows.items():
        layout, cache = name.split()
        assert row.reference == "MHA model"
        assert {way: single for way, (single, _) in row.parts.items()} == {
            "fewer heads": f"{layout} model",
            "cache": f"MHA {cache}",
        }
        base = ratio(PARTS["MHA model"])
        heads, bits = ratio(PARTS[f"{layout} model"]) - base, ratio(PARTS[f"MHA {cache}"]) - base
        assert row.together.value == pytest.approx(ratio(PARTS[name]) - base)
        assert row.interaction.value == pytest.approx(row.together.value - heads - bits)


def test_a_latent_is_a_saving_of_its_own() -> None:
    made = table()
    twice = made.assign(
        variant=made["variant"] + " r=8",
        latent=[f"{' '.join('8' * len(set(sources.split())))} rotary 2" for sources in made["sources"]],
        step=made["step"] + " r=8",
        baseline=None,
        value=made["value"] + 0.25,
    )
    parts = PARTS | {f"{name} r=8": part + 0.25 * WEIGHTS for name, part in PARTS.items()}
    both = frame.make([*frame.records(made), *frame.records(twice)])
    rows = {each.variant: each for each in stacked(by_layout(both, Answers(parts)), both)}
    assert set(rows) == {*found(), *(f"{name} r=8" for name in PARTS if name != "MHA model")}
    row = rows["MQA int4 r=8"]
    assert [single for single, _ in row.parts.values()] == ["MQA model", "MHA model r=8", "MHA int4"]
    assert row.parts["latent"][1].value == pytest.approx(0.25)
    assert row.interaction.value == pytest.approx(rows["MQA int4"].interaction.value), "0.25 more, whatever else"


def with_bases(made: pd.DataFrame) -> pd.DataFrame:
    """Of a sweep of formats of the cache: there is an untouched base in each of them too."""
    rows = [{**row, "untouched": f"base {row['cache']}", "mha": f"MHA {row['cache']}"} for row in frame.records(made)]
    bases = [
        {**row, "variant": row["untouched"], "baseline": "untouched", "step": row["step"]}
        for row in rows
        if row["baseline"] == "mha"
    ]
    return frame.make([*bases, *rows])


def test_baselines_in_each_format_of_the_cache_are_one_base() -> None:
    made = with_bases(table())
    rows = {each.variant: each for each in stacked(by_layout(made, Answers(PARTS)), made)}
    assert set(rows) == set(found())
    assert {row.reference for row in rows.values()} == {"MHA model"}


def test_sweeps_on_other_bases_are_no_parts_of_one_another() -> None:
    one = with_bases(table())
    other = frame.records(with_bases(table(without=("MHA int4",))))
    names = ("variant", "untouched", "mha")
    renamed = [{**row, "sweep": "t", **{name: f"t/{row[name]}" for name in names}} for row in other]
    made = frame.make([*frame.records(one), *renamed])
    rows = {each.variant: each for each in stacked(by_layout(made, Answers(PARTS)), made)}
    assert set(rows) == {*found(), "t/GQA int8", "t/MQA int8"}
    assert {name: row.reference for name, row in rows.items()} == {
        name: "t/MHA model" if name.startswith("t/") else "MHA model" for name in rows
    }


def test_the_interval_is_that_of_one_number_per_sample() -> None:
    row = found()["MQA int4"]
    signs = {"MQA int4": 1, "MQA model": -1, "MHA int4": -1, "MHA model": 1}
    moved = sum(sign * (PARTS[name] - ratio(PARTS[name]) * WEIGHTS) for name, sign in signs.items()) / WEIGHTS.mean()
    error = float(np.std(moved, ddof=1)) / N**0.5
    assert row.interaction.error == pytest.approx(error)
    low, high = row.interaction.interval or (0.0, 0.0)
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, N - 1) * error)
    assert low > 0, "0.3 more than the sum, in every sample"


def test_what_lacks_a_part_has_no_row_and_what_saves_once_has_no_table() -> None:
    assert set(found(without=("MHA int4",))) == {"GQA int8", "MQA int8"}
    assert set(found(without=("MHA model",))) == set()
    made = table()
    once = made[made["cache"] == "model"]
    assert stacking(Source("s", once, samples=Answers(PARTS))) is None


def test_the_table_says_what_adds_up() -> None:
    shown = stacking(Source("s", table(), samples=Answers(PARTS)))
    assert shown is not None
    assert shown.headers == [
        "variant",
        "KV bytes/token",
        "smaller by",
        "fewer heads alone",
        "cache alone",
        "sum",
        "together",
        "together − sum",
    ]
    cells = {row[0].text: [cell.text for cell in row] for row in shown.rows}
    assert cells["MQA int4"][1:3] == ["4", "16×"]
    assert "≈" not in cells["MQA int4"][-1]
    numbers = [row[i].number or 0.0 for row in shown.rows for i in (3, 4, 5)]
    assert all(numbers[i] + numbers[i + 1] == pytest.approx(numbers[i + 2]) for i in range(0, len(numbers), 3))
