"""Whatever compares two rows uses the errors of the table: on the same samples, where they were kept."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.data import frame
from analysis.figures.pareto_data import pareto_data
from analysis.figures.tasks import panels, tasks_figure
from analysis.statistics.results import results
from analysis.statistics.scores import other_scores, shown_scores
from analysis.statistics.sources import Source, load
from analysis.tables.paper import make_tables
from tests.support.figures import source_of
from tests.support.filler import Few
from tests.support.read_back import present
from tests.support.records import save_sweep
from tests.support.seeded import TASK, keep

SAMPLES = 400


@pytest.fixture
def answers() -> dict[str, np.ndarray]:
    """Each variant errs where the one before does and on some samples more."""
    hard = np.random.default_rng(0).permutation(SAMPLES) / SAMPLES
    shares = {"MHA-36": 0.50, "GQA-12": 0.47, "MQA-6": 0.46, "MLKV-6": 0.43}
    return {name: (hard < share).astype(float) for name, share in shares.items()}


@pytest.fixture
def source(few: Few, answers: dict[str, np.ndarray]) -> Source:
    """The accuracy of one task is the axis; bits per byte are a loss beside it, of the same samples."""
    filler = few(answers)
    save_sweep(filler.store, filler.name, {**filler.plan, "accuracy": [[TASK, "acc"]], "axis": None}, filler.variants)
    for label, own in answers.items():
        steps = filler.variant(label)["steps"]["evaluate"]
        for task, metric, parts in ((TASK, "acc", own), ("bits_per_byte", "bits_per_byte", 3 - own)):
            value, error = float(parts.mean()), float(parts.std(ddof=1)) / SAMPLES**0.5
            cell = {"metric": metric, "value": value, "stderr": error, "n": SAMPLES}
            filler.done(steps[task], [cell], leave=keep(parts, metric=metric))
    return load(filler.store, filler.name)


def test_bars_have_the_error_of_the_same_samples(source: Source, answers: dict[str, np.ndarray]) -> None:
    (panel,) = panels(source.results)
    for bar in panel.bars:
        apart = answers[bar.variant] - answers["MHA-36"]
        assert bar.error == pytest.approx(100 * apart.std(ddof=1) / SAMPLES**0.5)
        assert bar.difference == pytest.approx(100 * apart.mean())
    unpaired = panels(results(source.table))[0].bars
    errors = [(paired.error, one.error) for paired, one in zip(panel.bars, unpaired, strict=True)]
    assert all(small and large and small < large / 2 for small, large in errors)


def test_bars_are_full_where_the_table_sees_a_difference(source: Source) -> None:
    (panel,) = panels(source.results)
    table = source.results.frame.set_index("variant")["quality_vs_mha_p"]
    assert [bar.p for bar in panel.bars] == [table[bar.variant] for bar in panel.bars]
    assert all(bar.beyond_noise == (table[bar.variant] <= 0.05) for bar in panel.bars)
    assert any(bar.beyond_noise for bar in panel.bars)


def test_the_losses_are_judged_on_the_same_samples_as_the_table_beside_them(source: Source) -> None:
    sheet = make_tables(source, ["losses"])["losses"]
    column = next(i for i, header in enumerate(sheet.headers) if header.startswith("bits per byte"))
    bold = {row[0].text: row[column].best for row in sheet.rows}
    assert bold == {"MHA-36 (baseline)": False, "GQA-12": True, "MQA-6": False, "MLKV-6": False}
    assert any("on the same samples" in note for note in sheet.notes)
    apart = make_tables(Source(source.name, source.table), ["losses"])["losses"]
    assert not any(cell.best for row in apart.rows for cell in row[column : column + 1])  # within noise of each other


def test_chances_of_any_score_compare_on_the_same_samples(source: Source) -> None:
    loss = next(score for score in other_scores(source.results) if score.metric == "bits_per_byte")
    found = pareto_data(source.results, loss)
    main = pareto_data(source.results, shown_scores(source.results)[0])
    assert found.paired
    assert main.paired
    by_name = {point.variant: point.chance for point in main.points}
    assert {point.variant: point.chance for point in found.points} == pytest.approx(by_name, abs=0.02)


def test_a_difference_of_two_rows_is_that_of_scipy(source: Source, answers: dict[str, np.ndarray]) -> None:
    p = stats.ttest_rel(answers["MLKV-6"], answers["MHA-36"]).pvalue
    rows = source.results.rows()
    assert source.results.estimates.is_paired(rows, "quality")
    corrected = source.results.frame.set_index("variant").loc["MLKV-6", "quality_vs_mha_p"]
    assert corrected == pytest.approx(3 * p)  # the smallest of three, by Holm


def test_bars_of_variants_with_baselines_of_their_own_name_no_single_score() -> None:
    same = {"kind": "evaluate", "task": "t", "metric": "acc", "state": "DONE", "in_accuracy": True, "stderr": 0.01}
    values = {"MHA lr=1": 0.50, "MHA lr=2": 0.60, "A lr=1": 0.45, "A lr=2": 0.61}
    cells = [
        {
            **same,
            "variant": name,
            "value": value,
            "kv_bytes_per_token": 8,
            "baseline": "mha" if name.startswith("MHA") else None,
            "mha": f"MHA {name.split()[1]}",
        }
        for name, value in values.items()
    ]
    own = source_of(frame.make(cells))
    (panel,) = panels(own.results)
    assert [bar.difference for bar in panel.bars] == pytest.approx([-5.0, 1.0])
    assert panel.score == "50.00 to 60.00"
    note = present(tasks_figure(own)).get_supxlabel()
    assert note.startswith("difference from each variant's own baseline (scores above)")
