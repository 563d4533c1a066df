"""Statistics of what hardly is a sample: one variant, one seed, equal scores, no spread, numbers that are none. A cell
has a number, or the reason why not; nothing warns and nothing ends in an error."""

from __future__ import annotations

import math
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.data import frame
from analysis.data.frame import Row
from analysis.statistics.results import Results, results
from analysis.statistics.sources import Source
from analysis.tables import rendering
from analysis.tables.paper import make_tables

ODD = (0.0, -0.0, 0.5, 1.0, -1.0, math.nan, math.inf, 5e-324, 1e-200, 1e99, 1e200, None)
NUMBERS = st.one_of(st.sampled_from(ODD), st.floats(0, 1))


def cell(variant: str, seed: int | None, value: float | None, stderr: float | None, **own: object) -> Row:
    """One score of an accuracy of one task; variants with a seed are repetitions."""
    return {
        "sweep": "s",
        "variant": variant if seed is None else f"{variant} uptrain.seed={seed}",
        "replicate_of": None if seed is None else variant,
        "mha": "base",
        "untouched": "base",
        "baseline": "mha" if variant == "base" else None,
        "kv_bytes_per_token": 64,
        "kind": "evaluate",
        "task": "t",
        "metric": "acc",
        "in_accuracy": True,
        "state": "DONE",
        "value": value,
        "stderr": stderr,
        **own,
    }


def made(rows: list[Row]) -> Results:
    """The results, with every table printed, and nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = frame.make(rows)
        source = Source("s", table)
        for printed in make_tables(source, []).values():
            for form in (rendering.markdown, rendering.latex, rendering.csv):
                assert "nan" not in form(printed).lower()
        again = Results.from_frame(source.results.frame)
        again.select([row["variant"] for row in again.rows()][:1])
        results(table)
        return source.results


@pytest.mark.parametrize(
    "rows",
    [
        [cell("a", None, 0.5, None)],
        [cell("base", None, 0.5, 0.1)],
        [cell("a", None, math.nan, math.nan), cell("base", None, math.inf, None)],
        [cell(name, None, 0.5, 0.0) for name in ("a", "b", "base")],
        [cell("a", seed, 0.5, 0.0) for seed in (1, 2, 3)],
        [cell("a", seed, value, None) for seed, value in ((1, 0.5), (2, math.nan))],
        [cell("a", 1, 0.5, 0.1, n=0), cell("a", 2, 0.5, 0.1, n=1)],
        [cell("a", seed, value, 1e200) for seed, value in ((1, 1e99), (2, -1e99))],
        [cell("a", None, 0.5, 0.1, kv_bytes_per_token=0), cell("base", None, 0.5, 0.1, kv_bytes_per_token=-1)],
    ],
)
def test_hardly_a_sample_has_results(rows: list[Row]) -> None:
    assert len(made(rows).rows()) == len({row["replicate_of"] or row["variant"] for row in rows})


def test_a_number_that_is_none_has_a_reason_in_the_table() -> None:
    (row,) = made([cell("a", None, math.nan, None)]).rows()
    assert (row["quality"], row["quality_missing"]) == (None, "no value")


@pytest.mark.long
@given(
    scores=st.lists(
        st.tuples(st.sampled_from(("a", "b", "base")), st.sampled_from((None, 1, 2, 3)), NUMBERS, NUMBERS),
        max_size=8,
        min_size=1,
        unique_by=lambda score: score[:2],
    ),
    n=st.sampled_from((None, 0, 1, 100)),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_scores_have_results(
    scores: list[tuple[str, int | None, float | None, float | None]], n: int | None
) -> None:
    made([cell(*score, n=n) for score in scores])
