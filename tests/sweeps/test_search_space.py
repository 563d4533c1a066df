"""The space of a search: what a line leaves open, and how its points are written down and read again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.planning.compose import Composer
from sweeps.planning.grammar import Choice, Grid, Interval, grid_of
from sweeps.search.space import LAYOUT_NUMBER, LayoutNumber, Listed, Range, Space
from sweeps.store.errors import UserError
from sweeps.store.journal import SearchJournal
from sweeps.store.schema import TrialRow
from tests.support.shell import TEST_CONF

LINE = ["experiment=tiny", "corpus.files=[x]"]


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer(TEST_CONF)


def space(composer: Composer, *lines: str, layouts: int = 1) -> Space:
    return Space.of(grid_of(composer, [*LINE, *lines], search=True), layouts)


def test_each_swept_key_is_a_dimension_and_what_is_zipped_is_one(composer: Composer) -> None:
    found = space(composer, "uptrain.lr=tag(log,interval(1e-4,1e-2))", "uptrain.batch_size=int(interval(2,5))")
    assert [d.name for d in found.dimensions] == [
        "layout.kv_layers layout.kv_heads",
        "uptrain.lr",
        "uptrain.batch_size",
    ]
    assert found.size is None
    assert found.varying((1, 1e-3, 4)) == [
        "layout.kv_layers=1",
        "layout.kv_heads=2",
        "uptrain.lr=0.001",
        "uptrain.batch_size=4",
    ]
    with pytest.raises(UserError, match=r"sampler = grid: uptrain\.lr is an interval"):
        found.check_listed("search.sampler = grid")
    assert space(composer, "layout=mqa", "uptrain.batch_size=int(interval(2,5))", layouts=3).size == 12


@pytest.mark.parametrize(
    ("line", "ordered"),
    [
        ("uptrain.lr=1e-4,1e-3,1e-2", True),
        ("layout.cache=1/2,1/4,1/8", True),
        ("uptrain.batch_size=4,2,8", False),
        ("layout=mqa,mlkv", False),
        ("uptrain.batch_size=range(1,5)", True),
    ],
)
def test_numbers_that_rise_or_fall_are_in_order(composer: Composer, line: str, ordered: bool) -> None:
    key = line.partition("=")[0]
    [dimension] = [d for d in space(composer, line).dimensions if d.name == key]
    assert isinstance(dimension, Listed)
    assert dimension.ordered is ordered


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("uptrain.lr=interval(1,1)", "has no values"),
        ("uptrain.lr=interval(2,1)", "has no values"),
        ("uptrain.lr=interval(0,inf)", "has no values"),
        ("uptrain.lr=tag(lin,interval(1,2))", r"tag lin: .*valid: log"),
        ("uptrain.lr=tag(log,interval(0,1))", "needs LOW > 0"),
        ("uptrain.seed=1,2,3", "the luckiest seed would win"),
        ("layout.kv_heads=int(interval(1,2))", "is an interval; only lists of values advance together"),
        ("search.sampler=tpe,gp", "cannot be swept"),
    ],
)
def test_what_is_no_dimension_is_refused_in_one_line(composer: Composer, line: str, fault: str) -> None:
    zipped = ["sweep.zip=[layout.kv_heads,layout.kv_layers]", "layout.kv_layers=1,2"] if "kv_heads" in line else []
    with pytest.raises(UserError, match=fault):
        space(composer, *zipped, line)


def test_a_sweep_has_no_intervals_and_says_who_has(composer: Composer) -> None:
    with pytest.raises(UserError, match=r"an interval has no end of values.*`mlkv search`"):
        grid_of(composer, [*LINE, "uptrain.lr=interval(1,2)"])


lists = st.lists(st.sampled_from(["1", "2", "1e-3", "a", "[1,2]", "1/4"]), min_size=1, max_size=4, unique=True)
intervals = st.builds(
    lambda low, extent, whole: Interval("c", low if whole else low + 0.25, low + extent, whole, log=False),
    st.integers(-5, 5),
    st.integers(1, 9),
    st.booleans(),
)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    axes: list[list[Choice]] = [
        [(f"{key}={text}",) for text in draw(lists)] for key in draw(st.sampled_from(["", "a", "ab"]))
    ]
    return Space.of(Grid(["x=1"], axes, draw(st.lists(intervals, max_size=1))), draw(st.integers(1, 4)))


@given(spaces(), st.data())
def test_a_point_is_read_as_it_was_written(found: Space, data: st.DataObject) -> None:
    values = [
        st.integers(0, (d.size or 1) - 1)
        if not isinstance(d, Range)
        else st.integers(int(d.interval.low), int(d.interval.high))
        if d.interval.whole
        else st.floats(d.interval.low, d.interval.high)
        for d in found.dimensions
    ]
    point = tuple(map(data.draw, values))
    assert found.read(found.texts(point)) == point
    assert found.distance(point, point) == 0
    assert found.read({**found.texts(point), "another": 1}) is None


@given(intervals, st.floats(0, 1))
def test_numbers_of_an_interval_are_short_and_stay_in_it(interval: Interval, share: float) -> None:
    value = interval.low + share * (interval.high - interval.low)
    rounded = Range(interval).rounded(round(value) if interval.whole else value)
    assert interval.low <= rounded <= interval.high
    assert Range(interval).rounded(rounded) == rounded
    assert abs(rounded - value) <= (0.5 if interval.whole else abs(value) / 1000)


@given(spaces())
def test_a_finite_space_has_as_many_points_as_it_says(found: Space) -> None:
    if found.size is not None:
        points = list(found.points())
        assert len(points) == len(set(points)) == found.size


@given(st.integers(1, 9), st.integers(1, 9))
def test_every_layout_of_a_point_has_a_number(most: int, layouts: int) -> None:
    dimension = LayoutNumber(most)
    chosen = [dimension.chosen(value, min(layouts, most)) for value in range(most)]
    assert sorted(set(chosen)) == list(range(min(layouts, most)))
    assert dimension.read({}) == 0
    assert dimension.read({LAYOUT_NUMBER: most}) is None


def test_a_longer_list_keeps_the_points_of_a_shorter_one(composer: Composer) -> None:
    short, long = space(composer, "layout=mqa,mlkv"), space(composer, "layout=cla,mqa,gqa,mlkv")
    point = next(iter(reversed(list(short.points()))))
    assert long.read(short.texts(point)) is not None
    assert short.read(long.texts(next(long.points()))) is None


def test_a_journal_has_one_driver_and_keeps_its_rows(tmp_path: Path) -> None:
    row = TrialRow(trial=1, point={"layout": "mqa", "uptrain.lr": 0.001}, steps=[["a", "b"]])
    with SearchJournal(tmp_path / "s", "s") as journal:
        journal.append([row])
        with (
            pytest.raises(UserError, match=r"process \d+ on .* drives this search"),
            SearchJournal(tmp_path / "s", "s"),
        ):
            pass
        with journal.path.open("a") as file:
            file.write('{"trial": 2, "po')  # a driver that is killed while it writes
    with SearchJournal(tmp_path / "s", "s") as journal:
        assert journal.rows() == [row]
        journal.append([none := TrialRow(trial=None, point={}, impossible="no such layout")])
        assert journal.rows() == [row, none]
