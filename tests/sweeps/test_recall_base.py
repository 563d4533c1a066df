"""A base that is trained on generated recall, and what a sweep says of its entry test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mlkv.corpus.recall import FEW, PART
from mlkv.recipes import RECALL_ROWS
from sweeps.planning.compose import Composer
from sweeps.planning.parse import parse
from sweeps.planning.plan import Plan
from sweeps.store.errors import UserError
from tests.support.read_back import present
from tests.support.shell import Shell
from tests.support.tiny import text_files as standard_library

Planner = Callable[[Sequence[str]], Plan]


def test_the_model_brings_its_corpus_and_its_training() -> None:
    plain, recall = (parse(Composer()([f"model={name}"])) for name in ("tiny", "embedded_recall"))
    assert (plain.corpus.recall, recall.corpus.recall) == (0.0, 0.7)
    assert plain.base.steps != recall.base.steps
    assert (recall.base.documents, recall.uptrain.documents) == ("apart", "apart")
    assert plain.model.decoder == recall.model.decoder
    assert parse(Composer()(["model=embedded_recall", "corpus=python_stdlib"])).corpus == plain.corpus


def test_how_rows_are_generated_stands_in_the_id_where_any_are(planner: Planner) -> None:
    for share, pinned in ((0.0, None), (0.7, RECALL_ROWS)):
        steps = planner([f"corpus.recall={share}"]).steps.values()
        assert [step.pinned.get("recall") for step in steps if step.kind == "corpus"] == [pinned]
    steps = planner(["evaluate=range", "corpus.recall_items=9"]).steps.values()
    assert {step.slice.get("task") for step in steps if "recall" in step.pinned} == {"domain_recall"}
    assert f"of {FEW} tokens" in RECALL_ROWS
    assert f"parts of {PART}" in RECALL_ROWS


@pytest.mark.parametrize("task", ["recall_copy", "recall_kv", "recall_associative"])
def test_a_generated_task_needs_a_corpus_with_its_items(planner: Planner, task: str) -> None:
    line = [f"evaluate.tasks=[{task}]", "evaluate.accuracy=[]", "evaluate.axis=null", "evaluate.converted=[]"]
    with pytest.raises(UserError, match=f"{task} is made of the corpus's items, and corpus.recall_items = 0"):
        planner(line)
    assert planner([*line, "corpus.recall_items=9"]).variants


@pytest.mark.long(minutes=1)
def test_a_sweep_scores_recall_by_distance_and_says_who_fails(mlkv: Shell, tmp_path: Path) -> None:
    text = standard_library(tmp_path / "text")
    corpus = ["corpus.source=text_files", f"corpus.files=['{text}/**/*.py']", "corpus.vocab_size=1024"]
    corpus += ["corpus.sequence_length=96", "corpus.held_out=0.3", "corpus.task_items=0", "corpus.recall_items=8"]
    smaller = ["model.decoder.layers=2", "base.steps=12", "base.batch_size=4", "evaluate.limit=8"]
    mlkv(
        "sweep",
        "experiment=recall_base",
        "scale=small",
        "model=embedded_recall",
        "evaluate=range",
        *corpus,
        *smaller,
        "tracking=off",
        "cluster.slots=1",
    )
    sweep = mlkv.store.sweep("recall_base-small")
    base = next(variant for variant in sweep.variants if variant.baseline == "untouched")
    records = {task: present(mlkv.store.step(id).record()) for task, id in base.steps.evaluate.items()}
    for task in ("recall_copy", "recall_kv", "recall_associative"):
        members = {row.subtask for row in records[task].metrics if row.subtask}
        assert members == {f"{task}_{distance}" for distance in (16, 32, 64)}
    nats = {row.subtask: present(row.value) for row in records["copying"].metrics}
    assert set(nats) == {None, "distance_8", "distance_16", "distance_32", "distance_64"}
    assert all(5 < value < 9 for value in nats.values()), "that of a guess among 1,024 tokens"
    places = {row.subtask: row.n for row in records["position_loss"].metrics}
    assert places == dict.fromkeys(
        [None, "position_16", "position_32", "position_64", "position_96", "beyond_192", "beyond_384"], 8
    )
    assert {row.subtask for row in records["retrieval"].metrics} == {None, "alone", "related", "unrelated"}
    library = {
        task: "library" in present(mlkv.store.step(id).spec()).pinned for task, id in base.steps.evaluate.items()
    }
    assert {task for task, pinned in library.items() if pinned} == {"domain_code", "domain_prose"}
    table = mlkv("table", "recall_base-small")
    assert "fails" in table
    assert "what is found on untouched says nothing about range" in " ".join(table.split())
    reason = mlkv("why", "recall_base-small", "untouched")
    assert f"{base.steps.evaluate['entry_test']} " in reason
    assert "DONE fails the entry test: copying costs" in reason
