"""Tables mark what a number shows by a fixed rule, in every format, and say the rule below."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.data.gather import gather
from analysis.data.signatures import Sign, collapsed_scores, joined, split
from analysis.page.page import page
from analysis.statistics.long_form import long_form
from analysis.statistics.results import Results, by_layout, results
from analysis.statistics.sources import load
from analysis.tables import rendering, results_table
from analysis.tables.columns import word
from analysis.tables.paper import make_tables
from mlkv.signature import CHANCE, SPIKES, Chance
from sweeps.cli.status import remarks
from tests.support.filler import TASKS, Filler

UNIGRAM = {CHANCE: {"bits_per_byte": Chance(2.39, 0.002, "the unigram model", lower_is_better=True).as_json()}}
GUESSING = {CHANCE: {"acc": Chance(0.08, 0.017, "guessing").as_json()}}
SPIKED = {SPIKES: [{"step": 40, "loss": 5.0, "median": 3.5}]}


@pytest.fixture
def marked(tmp_path: Path) -> Filler:
    """MLKV-1 has collapsed by its bits per byte; no one is better than guessing at the cloze; GQA-12 spiked."""
    filler = Filler(tmp_path / "store")
    facts: dict[str, Any] = {"bits_per_byte": UNIGRAM, "cloze": GUESSING}
    of_steps = {filler.variant("GQA-12")["steps"]["uptrain"]: SPIKED}
    of_steps |= {variant["steps"]["evaluate"][task]: own for variant in filler.variants for task, own in facts.items()}
    done = filler.done

    def with_facts(step: str, metrics: Any, *args: Any, **given: Any) -> None:
        done(step, metrics, *args, **{**given, "facts": of_steps.get(step)})

    filler.done = with_facts  # type: ignore[method-assign]
    filler.everything()
    return filler


def test_a_table_marks_scores_at_chance_and_names_what_is_unstable(marked: Filler) -> None:
    source = load(marked.store, marked.name)
    table = results_table.of_source(source)
    rows = {row[0].text: dict(zip(table.headers, row, strict=True)) for row in table.rows}
    assert {"MLKV-1 (collapsed)", "GQA-12 (unstable)", "MLKV-6", "MHA-36 (baseline)"} <= rows.keys()
    assert rows["MLKV-1 (collapsed)"]["bits per byte ↓"].text == "2.404† ± 0.004"
    assert [row["cloze ↑"].chance for row in rows.values()] == [True] * len(rows)
    assert not any(row["mean of 3 ↑"].chance for row in rows.values()), "the other tasks are above chance"
    assert "†: collapsed, within noise of chance or worse (mlkv why NAME VARIANT)" in table.notes
    reason = "bits_per_byte = 2.404 is no better than the unigram model, 2.39 (noise 0.0039)"
    assert f"† bits_per_byte.bits_per_byte, MLKV-1: {reason}" in table.notes
    assert (
        "unstable (GQA-12), uptrain: a logged loss spiked (5 at step 40, over a running median of 3.5)" in table.notes
    )
    assert "2.404† ± 0.004" in rendering.markdown(table)
    assert r"2.404\dag{} {\tiny $\pm$" in rendering.latex(table, compact=False)
    lines = list(csv.DictReader(rendering.csv(table).splitlines()))
    assert {line["variant"]: line["variant signatures"] for line in lines if line["variant signatures"]} == {
        "MLKV-1": "collapsed",
        "GQA-12": "unstable",
    }
    assert [line["variant"] for line in lines if line["bits per byte collapsed"]] == ["MLKV-1"]


def test_the_long_form_for_programs_has_the_lines(marked: Filler) -> None:
    lines = {
        (line["variant"], line["metric"]): line["signatures"] for line in long_form(load(marked.store, marked.name))
    }
    spiked = "unstable: a logged loss spiked (5 at step 40, over a running median of 3.5)"
    assert lines["GQA-12", "bits_per_byte.bits_per_byte"] == lines["GQA-12", "two_way.acc"] == [spiked]
    assert [line.partition(":")[0] for line in lines["GQA-12", "cloze.acc"]] == ["unstable", "collapsed"]
    assert lines["MLKV-6", "bits_per_byte.bits_per_byte"] == []


def test_every_table_that_shows_a_mark_says_what_it_is(marked: Filler) -> None:
    for kind, table in make_tables(load(marked.store, marked.name), []).items():
        shown = " ".join(cell.text for row in table.rows for cell in row)
        assert ("†" in shown) == any(note.startswith("†:") for note in table.notes), kind
        assert ("(unstable)" in shown) == any(note.startswith("unstable (") for note in table.notes), kind
        assert "(unstable)" in shown, kind


def test_the_page_has_a_line_for_each(marked: Filler, tmp_path: Path) -> None:
    data = page(marked.store, load(marked.store, marked.name), tmp_path).data
    facts = {entry.variant: {fact.name: fact.value for fact in entry.facts} for entry in data.variants}
    assert facts["GQA-12"]["unstable uptrain"].startswith("a logged loss spiked")
    assert facts["GQA-12"]["collapsed cloze.acc"].startswith("acc = ")
    assert not any(name.startswith("unstable") for name in facts["MLKV-6"])


def test_results_that_do_not_say_what_chance_is_have_no_marks(filler: Filler) -> None:
    filler.everything()
    table = gather(filler.store, filler.name)
    made = results(table)
    assert made.frame["signatures"].isna().all()
    assert table["signature"].isna().all()
    earlier = Results.from_frame(made.frame.drop(columns="signatures"))
    assert results_table.results_table(earlier).notes == results_table.results_table(made).notes


def test_marks_survive_a_file_a_selection_and_several_seeds(marked: Filler) -> None:
    table = gather(marked.store, marked.name)
    made = results(table)
    again = Results.from_frame(made.frame).select(["GQA-12", "MLKV-1"])
    names = [row[0].text for row in results_table.results_table(again).rows]
    assert names == ["GQA-12 (unstable)", "MLKV-1 (collapsed)"]
    seeds = table[table["variant"].isin(["MLKV-2", "GQA-12"])].assign(replicate_of="both")
    [row] = by_layout(seeds).rows()
    assert collapsed_scores(row["signatures"]) == {"cloze.acc"}
    assert [sign.word for sign in split(row["signatures"])].count("unstable") == 1


def test_why_says_the_rule_and_the_numbers(marked: Filler) -> None:
    scored, trained = marked.variant("MLKV-1")["steps"], marked.variant("GQA-12")["steps"]
    why = {
        name: remarks(marked.store.step(id))
        for name, id in {**trained, **scored["evaluate"]}.items()
        if isinstance(id, str)
    }
    assert why["bits_per_byte"] == [
        "collapsed: bits_per_byte = 2.404 is no better than the unigram model, 2.39 (noise 0.0039)"
    ]
    assert why["uptrain"] == ["unstable: a logged loss spiked (5 at step 40, over a running median of 3.5)"]
    assert why["two_way"] == why["convert"] == []


names = st.text(st.characters(categories=["Ll", "Lu", "Nd"], include_characters="_-/. "), min_size=1).map(str.strip)


@settings(max_examples=30)
@given(st.lists(st.builds(Sign, st.sampled_from(["collapsed", "unstable"]), names.filter(bool), names), unique=True))
def test_signs_are_the_same_after_a_file(signs: list[Sign]) -> None:
    assert split(joined(signs)) == signs


@pytest.mark.parametrize(
    ("missing", "shown"),
    [
        ("FAILED: out of memory: CUDA out of memory. Tried to allocate 2 GiB; it takes less with x", "out of memory"),
        ("BLOCKED by base-1 (out of memory: the kernel killed it at 1.0 GiB or more)", "out of memory"),
        ("OUT OF MEMORY in every cell", "out of memory"),
        ("FAILED: loss = nan at step 5: training diverged; lower lr or raise warmup", "unstable"),
        ("FAILED: loss = 9.000 at step 55: a spike over the running median 5.000 (on_spike = fail)", "unstable"),
        ("FAILED: ValueError: no", "failed"),
    ],
)
def test_an_empty_cell_says_in_a_word_why(missing: str, shown: str) -> None:
    assert word(missing) == shown
    assert len(TASKS) == 4
