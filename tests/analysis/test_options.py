"""The table of options: swept values of a recipe against independent computations."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from analysis.data import frame
from analysis.statistics.options import options
from analysis.statistics.sources import Source
from analysis.tables.options_table import options_table
from tests.support.landscapes import BYTES, WINDOWS, Answers

LAYOUTS = {"MHA-8": ("0 1", "4", 512), "MQA-2": ("0 1", "1", 128), "MLKV-1": ("0 0", "1", 64)}
RATES = ("0.0001", "0.0003", "0.001")
WARMUPS = ("0.1", "0.3")
SEEDS = (1, 2, 3)


def source(
    rates_of: dict[str, float], noise: float, zipped: bool = False, without: tuple[str, ...] = (), tie: bool = False
) -> tuple[Source, Answers]:
    """Every layout × rate × warmup × seed. A layout's score is the worse the farther its rate is from the one in
    `rates_of`; a longer warmup costs 0.01. `zipped`: the two options are varied together."""
    random, answers, rows = np.random.default_rng(3), Answers(), []
    hard = random.normal(0, 0.3, WINDOWS)
    hard -= hard.mean()
    recipes = list(zip(RATES, (*WARMUPS, WARMUPS[0]), strict=True)) if zipped else list(product(RATES, WARMUPS))
    for (layout, (sources, heads, size)), (rate, warmup), seed in product(LAYOUTS.items(), recipes, SEEDS):
        name = f"{layout} uptrain.lr={rate} uptrain.warmup={warmup}"
        off = 0.0 if tie else 0.02 * abs(np.log10(float(rate)) - np.log10(rates_of[layout]))
        score = 2 + size / 10_000 + off + 0.01 * (warmup == "0.3") + random.normal(0, noise)
        label = f"{name} uptrain.seed={seed}"
        window = random.normal(0, noise, WINDOWS)
        answers.parts[label] = (score + hard + window - window.mean()) * BYTES
        if name in without:
            continue
        rows.append(
            {
                "sweep": "s",
                "variant": label,
                "replicate_of": name,
                "sources": sources,
                "kv_heads": heads,
                "kv_bytes_per_token": size,
                "baseline": "mha" if layout == "MHA-8" else None,
                "overrides": f"layout.kv_heads={heads} uptrain.lr={rate} uptrain.warmup={warmup} uptrain.seed={seed}",
                "seed": seed,
                "state": "DONE",
                "kind": "evaluate",
                "task": "bits_per_byte",
                "metric": "bits_per_byte",
                "value": float(answers.parts[label].mean() / BYTES),
                "step": label,
                "in_axis": True,
            }
        )
    return Source("s", frame.make(rows), samples=answers), answers


LOWER_IS_WANTED_BY_LARGE = {"MHA-8": 1e-4, "MQA-2": 3e-4, "MLKV-1": 1e-3}


def mean(answers: Answers, layout: str, rate: str, warmup: str) -> float:
    labels = [f"{layout} uptrain.lr={rate} uptrain.warmup={warmup} uptrain.seed={seed}" for seed in SEEDS]
    return float(np.mean([answers.parts[label] for label in labels]) / BYTES)


def test_each_option_is_compared_where_all_else_is_equal() -> None:
    made, answers = source(LOWER_IS_WANTED_BY_LARGE, noise=0.003)
    rate, warmup = options(made)
    assert (rate.keys, rate.groups, rate.layouts) == (("uptrain.lr",), 6, list(LAYOUTS))
    assert (warmup.keys, warmup.groups) == (("uptrain.warmup",), 9)
    for level in rate.levels:
        [value] = level.value
        cells = [mean(answers, layout, value, each) for layout in LAYOUTS for each in WARMUPS]
        assert level.mean == pytest.approx(np.mean(cells))
        for layout, (own, _) in level.of_layout.items():
            assert own == pytest.approx(np.mean([mean(answers, layout, value, each) for each in WARMUPS]))
    means = {level.value[0]: level.mean for level in rate.levels}
    best = min(means, key=means.__getitem__)
    for level in rate.levels:
        assert level.behind.value == pytest.approx(means[level.value[0]] - means[best])


def test_the_error_is_that_of_seeds_and_windows_paired() -> None:
    made, answers = source(LOWER_IS_WANTED_BY_LARGE, noise=0.004)
    [_, warmup] = options(made)
    worse = next(level for level in warmup.levels if level.behind.value)
    by_seed = np.array(
        [
            [
                answers.parts[f"{layout} uptrain.lr={rate} uptrain.warmup={each} uptrain.seed={seed}"] / BYTES
                for seed in SEEDS
            ]
            for each in WARMUPS
            for layout, rate in product(LAYOUTS, RATES)
        ]
    )
    spread = np.mean(np.var(by_seed.mean(2), axis=1, ddof=1)) / len(SEEDS)
    of_seeds = spread * 2 / 9
    halves = by_seed.mean(1).reshape(2, 9, WINDOWS).mean(1)
    of_windows = np.var(halves[1] - halves[0], ddof=1) / WINDOWS
    assert worse.behind.error
    assert of_seeds * 0.9999 <= worse.behind.error**2 <= (of_seeds + of_windows) * 1.0001


def test_what_is_varied_together_is_one_option() -> None:
    made, _ = source(LOWER_IS_WANTED_BY_LARGE, noise=1e-6, zipped=True)
    [both] = options(made)
    assert both.keys == ("uptrain.lr", "uptrain.warmup")
    assert [level.value for level in both.levels] == list(zip(RATES, ("0.1", "0.3", "0.1"), strict=True))
    assert both.with_bytes is None


def test_layouts_that_cache_less_may_want_more() -> None:
    made, _ = source(LOWER_IS_WANTED_BY_LARGE, noise=1e-6)
    rate = options(made)[0]
    found = rate.with_bytes
    assert found
    assert found.value == pytest.approx(stats.spearmanr([512, 128, 64], [1e-4, 3e-4, 1e-3]).statistic)
    assert [found.low, found.high] == pytest.approx([-1, -1])
    wins = {
        level.value[0]: [name for name, (_, each) in level.of_layout.items() if each.value == 0]
        for level in rate.levels
    }
    assert wins == {"0.0001": ["MHA-8"], "0.0003": ["MQA-2"], "0.001": ["MLKV-1"]}


def test_all_want_the_same() -> None:
    made, _ = source(dict.fromkeys(LAYOUTS, 3e-4), noise=1e-6)
    assert options(made)[0].with_bytes is None


def test_a_group_that_lacks_a_value_is_left_out() -> None:
    lacking = "MQA-2 uptrain.lr=0.001 uptrain.warmup=0.3"
    made, _ = source(LOWER_IS_WANTED_BY_LARGE, noise=1e-6, without=(lacking,))
    rate = options(made)[0]
    assert (rate.groups, rate.layouts) == (5, list(LAYOUTS))


def test_ties_are_no_wins() -> None:
    made, _ = source(LOWER_IS_WANTED_BY_LARGE, noise=0.003, tie=True)
    table = options_table(made)
    assert table
    text = {row[0].text: row for row in table.rows}
    assert [name for name in text if name.startswith("uptrain.lr")] == [f"uptrain.lr={rate}" for rate in RATES]
    behind = table.headers.index("behind the best")
    assert sum(text[f"uptrain.lr={rate}"][behind].text == "best" for rate in RATES) == 1
    assert all(
        "≈" in text[f"uptrain.lr={rate}"][behind].text or text[f"uptrain.lr={rate}"][behind].text == "best"
        for rate in RATES
    )


def test_nothing_swept_is_no_table() -> None:
    made, _ = source(LOWER_IS_WANTED_BY_LARGE, noise=1e-6)
    few = made.table[made.table["variant"].str.contains("uptrain.lr=0.001 uptrain.warmup=0.1")]
    assert options_table(Source("s", few)) is None
