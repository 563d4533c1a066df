"""The power of a plan: against published tables, simulated trials, and what tables say of the same results."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.data import reference
from analysis.statistics import estimate
from analysis.statistics.noise import Evidence, Wanted, evidence, of_store, recipe_key
from analysis.statistics.power import POWER, Noise, least_difference, power
from analysis.statistics.sources import load
from sweeps.cli.power import PlannedPower, as_json, power_lines
from sweeps.store.store import Store
from tests.support.filler import Filler
from tests.support.seeded import TASK, answered, with_seeds

BITS = (("bits_per_byte", "bits_per_byte"),)


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_the_seeds_are_those_of_cohens_tables(effect: float, seeds: int) -> None:
    """Two groups, 5 %, two-sided, power 80 % (Cohen 1988, tables 2.4.1; R's power.t.test gives 393.4, 63.77, …)."""
    assert Noise(1.0).seeds_for(effect) == seeds


def test_the_power_is_that_of_rs_own_example() -> None:
    """`power.t.test(n = 20, delta = 1, sd = 1)` prints power = 0.8689528."""
    assert power(1.0, *Noise(1.0).error(20)) == pytest.approx(0.8689528, abs=1e-6)


def test_so_many_simulated_trials_find_the_difference() -> None:
    rng, trials, seeds = np.random.default_rng(1), 20_000, 3
    noise = Noise(0.02)
    least = noise.least_difference(seeds)
    a_RN, b_RN = (rng.normal(shift, noise.spread, (trials, seeds)) for shift in (least, 0.0))
    error_R = np.sqrt((a_RN.var(1, ddof=1) + b_RN.var(1, ddof=1)) / seeds)
    t_R = np.abs(a_RN.mean(1) - b_RN.mean(1)) / error_R
    critical = 2.776445  # of four degrees of freedom, from a printed table
    assert float((t_R > critical).mean()) == pytest.approx(POWER, abs=0.01)


def test_so_many_trials_find_it_where_samples_blur_it_too() -> None:
    """Scores of samples with effects of the layout, of the training, and of both on single samples, compared as tables
    compare them."""
    rng, seeds, samples, trials = np.random.default_rng(2), 4, 60, 500
    own, of_sample, of_layout, of_seed = 0.01, 1.0, 0.06, 0.08
    spread = math.sqrt(own**2 + of_seed**2 / samples)
    noise = Noise(spread, paired=math.sqrt(2 * of_layout**2 / samples), samples=samples)
    least, found = noise.least_difference(seeds), 0
    for _ in range(trials):
        easy_N = rng.normal(0, of_sample, samples)
        rows = []
        for shift in (least, 0.0):
            layout_N = easy_N + shift + rng.normal(0, of_layout, samples)
            runs = [layout_N + rng.normal(0, own) + rng.normal(0, of_seed, samples) for _ in range(seeds)]
            each = [estimate.of_samples(float(run.mean()), run, np.ones(samples), "text") for run in runs]
            values = [one.value for one in each]
            error = float(np.std(values, ddof=1)) / math.sqrt(seeds)
            rows.append(estimate.of_seeds(float(np.mean(values)), error, each))
        p = estimate.difference(*rows).p
        found += p is not None and p < estimate.ALPHA
    assert found / trials == pytest.approx(POWER, abs=0.06)


@settings(max_examples=25)
@given(spread=st.floats(1e-4, 1), paired=st.floats(0, 1), samples=st.integers(20, 500), part=st.floats(0.2, 0.95))
def test_the_seeds_are_the_fewest_and_more_find_more(spread: float, paired: float, samples: int, part: float) -> None:
    noise = Noise(spread, paired, samples=samples)
    wanted = part * noise.least_difference(3)
    seeds = noise.seeds_for(wanted)
    if seeds is None:
        assert noise.least_difference(1000) > wanted
    else:
        assert noise.least_difference(seeds) <= wanted
        assert seeds == 2 or noise.least_difference(seeds - 1) > wanted
    assert noise.with_samples(4 * samples).error(3)[0] <= noise.error(3)[0]


def test_without_noise_everything_is_told_apart_and_one_seed_has_no_spread() -> None:
    assert Noise(0.0).least_difference(1) == 0.0
    assert power(1e-9, 0.0, math.inf) == 1.0
    with pytest.raises(ValueError, match="a spread needs at least two"):
        Noise(0.1).error(1)


@pytest.fixture
def crowd(filler: Filler, tmp_path: Path) -> Filler:
    """Three seeds of two layouts that were scored on 80 samples."""
    crowd = with_seeds(filler, tmp_path / "crowd")
    rng = np.random.default_rng(3)
    easy = rng.random(80)
    shares = {"MHA-36": 0.7, "MLKV-6": 0.5}
    names = [variant["variant"] for variant in crowd.variants]
    for name in names:
        right = easy + rng.normal(0, 0.2, 80) < shares[name.split()[0]]
        answered(crowd, {name: right.astype(np.float64)})
    return crowd


def wanted_of(crowd: Filler, **changes: object) -> Wanted:
    saved = crowd.store.sweep(crowd.name)
    recipe = recipe_key(saved.variants[0].config["uptrain"])
    return Wanted(**{"model": None, "scores": ((TASK, "acc"),), "recipes": frozenset({recipe}), **changes})  # type: ignore[arg-type]


def test_the_noise_is_the_one_that_tables_compare_by(crowd: Filler) -> None:
    found = of_store(crowd.store, wanted_of(crowd))
    assert found is not None
    assert found.freedom == 4
    assert found.source == f"2 layouts with several seeds in sweep {crowd.name}"
    results = load(crowd.store, crowd.name).results
    rows = {row["variant"]: results.estimates.of(row, "quality") for row in results.rows()}
    one, other = rows["MHA-36"], rows["MLKV-6"]
    assert one
    assert other
    printed = estimate.difference(one, other).error
    assert found.noise.error(3)[0] == pytest.approx(printed)
    assert found.noise.samples == 80


def test_another_recipe_is_used_only_with_a_word(crowd: Filler) -> None:
    found = evidence(crowd.store, wanted_of(crowd, recipes=frozenset({"other"})))
    assert found is not None
    assert "with other recipes" in found.source
    assert evidence(crowd.store, wanted_of(crowd, recipes=frozenset())) is None  # nothing there is untrained


def test_fewer_samples_blur_more_and_no_more_are_promised_than_there_are(crowd: Filler) -> None:
    all_of_them = evidence(crowd.store, wanted_of(crowd))
    half = evidence(crowd.store, wanted_of(crowd, limit=20))
    more = evidence(crowd.store, wanted_of(crowd, limit=8000))
    assert all_of_them and half and more  # noqa: PT018
    assert half.noise.paired == pytest.approx(2 * (all_of_them.noise.paired or 0))
    assert more.noise == all_of_them.noise


def test_without_a_store_the_reference_data_say_whose_seeds_they_are(tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    own = evidence(store, Wanted("tiny", BITS, frozenset({"any"})))
    other = evidence(store, Wanted("mine", BITS, frozenset({"any"})))
    assert own
    assert other
    looks_back = evidence(store, Wanted("embedded_recall", BITS, frozenset({"any"})))
    assert looks_back
    assert own.noise.spread < other.noise.spread < looks_back.noise.spread  # pooled over both models
    assert "published/ground_truth" in own.source
    assert "embedded_recall, embedded_recall-8, tiny" in other.source
    lines = [line for line in reference.read("layout_scores") if line["model"] == "embedded_recall" and line["seed"]]
    trained = {tuple(line[name] for name in ("sources", "kv_heads", "tokens", "seed", "baseline")) for line in lines}
    layouts = {each[:3] + each[4:] for each in trained}
    assert len(trained) < len(lines), "sets share trainings"
    assert looks_back.freedom == len(trained) - len(layouts), "each of which counts once"
    assert "other models" in other.source
    assert "other models" not in own.source
    assert evidence(store, Wanted("tiny", (("piqa", "acc"),), frozenset({"any"}))) is None
    assert evidence(store, Wanted("tiny", BITS, frozenset())) is None


def lines(seeds: int, found: Evidence | None, recipes: frozenset[str] = frozenset({"any"})) -> str:
    planned = PlannedPower(Wanted("tiny", BITS, recipes), seeds, found)
    assert as_json(planned)["seeds"] == seeds
    return "\n".join(power_lines([planned]))


def test_what_is_not_known_is_said_and_no_number_takes_its_place() -> None:
    known = Evidence(Noise(0.001), 5, "somewhere")
    assert "not known" in lines(3, None)
    assert not any(letter.isdigit() for letter in lines(3, None).replace("3 seeds", ""))
    assert "cannot tell a difference of trainings from the noise of seeds" in lines(1, known)
    assert "tell apart 0.0031 bits per byte" in lines(3, known)
    assert "nothing is trained" in lines(1, None, frozenset())
    planned = as_json(PlannedPower(Wanted("tiny", BITS, frozenset({"any"})), 3, known))
    assert planned["least_difference"] == pytest.approx(least_difference(0.001 * math.sqrt(2 / 3), 4))
    assert [each["seeds"] for each in planned["seeds_for"]] == [8, 28]
