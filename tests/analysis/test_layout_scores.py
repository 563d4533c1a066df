"""Scores of layouts as a file to keep: parts in any order make one file, and it says what the sweep said."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.data import frame
from analysis.data.layout_scores import COLUMNS, Line, lines_of, long_table, merged, read, text_of
from analysis.data.published import published
from analysis.data.reference import read as read_reference
from analysis.statistics.heads_layers import together
from analysis.statistics.landscape import landscapes
from analysis.statistics.sources import Source, published_source
from mlkv.groupings import groupings
from tests.support.landscapes import Groups, measured


def damage(groups: Groups, heads: int) -> float:
    return 0.01 * (4 - len(groups)) + 0.02 / heads


def sweep(noise: float = 1e-3) -> Source:
    return measured(damage, noise=noise, samples=False, converted=lambda groups, heads: 2 * damage(groups, heads))


def filled(source: Source) -> Source:
    return Source(source.name, source.table.assign(model="tiny", parameters=1000))


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return lines_of(filled(sweep()).table, "ground_truth", "a line")


def test_a_line_is_a_layout_and_a_seed(lines: list[Line]) -> None:
    assert len(lines) == 2 * 3 * len(list(groupings(4)))
    assert all(set(line) == set(COLUMNS) for line in lines)
    one = next(line for line in lines if line["sources"] == "0 0 2 2" and line["kv_heads"] == "1 1")
    assert one["seed"] == "1"
    assert float(one["bits_per_byte"]) == pytest.approx(2 + damage((2, 2), 1), abs=0.01)
    assert float(one["converted"]) == pytest.approx(2 + 2 * damage((2, 2), 1))
    assert {line["baseline"] for line in lines} == {"", "mha"}


@settings(max_examples=20)
@given(st.randoms(use_true_random=False), st.integers(1, 5))
def test_parts_in_any_order_make_one_file(lines: list[Line], shuffle: random.Random, parts: int) -> None:
    every, whole = list(lines), text_of(merged([], lines))
    shuffle.shuffle(every)
    kept: list[Line] = []
    for part in range(parts):
        kept = merged(kept, every[part::parts])
        kept = merged(kept, every[part::parts])  # the same part once more changes nothing
    assert text_of(kept) == whole


def test_a_line_that_is_computed_anew_takes_the_place_of_the_old_one(lines: list[Line]) -> None:
    again = lines_of(filled(sweep(noise=2e-3)).table, "ground_truth", "another line")
    assert {line["source"] for line in merged(lines, again)} == {"another line"}
    assert len(merged(lines, again)) == len(lines)


def test_the_file_is_read_as_it_was_written(lines: list[Line], tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    assert read(path) == []
    path.write_text(text_of(lines))
    assert read(path) == lines
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"scores\.csv: has other columns than set, model"):
        read(path)


def test_the_kept_lines_say_what_the_sweep_said(lines: list[Line]) -> None:
    [ours], [kept] = (landscapes(each) for each in (filled(sweep()), Source("p", long_table(lines))))
    assert [(p.sources, p.heads) for p in kept.points] == [(p.sources, p.heads) for p in ours.points]
    for theirs, own in zip(together(kept), together(ours), strict=True):
        assert theirs.interaction.value == pytest.approx(own.interaction.value, abs=1e-7)
        assert theirs.interaction.error == pytest.approx(own.interaction.error, abs=1e-7)


def test_models_and_lengths_of_one_set_are_told_apart(lines: list[Line]) -> None:
    others = [line | {"model": "other", "tokens": "5"} for line in lines]
    table = long_table([*(line | {"tokens": "7"} for line in lines), *others])
    names = frame.records(table.drop_duplicates("variant"))
    assert len(names) == 2 * len(lines)
    assert {row["mha"] for row in names if row["model"] == "other" and not row["baseline"]} == {
        f"MHA-16 [4 4 4 4] model=other tokens=5 uptrain.seed={seed}" for seed in (1, 2)
    }


def test_what_is_no_line_is_refused() -> None:
    source = filled(sweep())
    with pytest.raises(ValueError, match="s: no variant is scored by bits_per_byte yet"):
        lines_of(source.table.assign(value=None), "s", "")
    twice = source.table.assign(seed=1)
    with pytest.raises(ValueError, match=r"1\+1\+1\+1 × 1 uptrain\.seed=1 and .*seed=2 have one layout, seed and"):
        lines_of(twice, "s", "")


def test_the_published_lines_are_in_order_and_each_names_its_source() -> None:
    every = read_reference("layout_scores")
    assert every == merged([], every)
    assert all(line["source"].startswith("mlkv sweep ") for line in every)
    for name in dict.fromkeys(line["set"] for line in every):
        assert not published(name).empty
        assert landscapes(published_source(name))
